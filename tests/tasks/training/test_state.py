"""Tests of lorkd_monailabel.tasks.training.state."""

from dataclasses import asdict, replace
from pathlib import Path

import pytest

from lorkd_monailabel.json_files import read_json
from lorkd_monailabel.learning.training import Progress
from lorkd_monailabel.tasks.training.state import (
    RunState,
    Teller,
    read_state,
    state_file,
    train_stats,
    write_state,
)

PROGRESS = Progress(
    step=3,
    steps=9,
    loss=0.5,
    losses={"abdomen": 0.5},
    seconds_left=12.0,
    learning_rate=1e-3,
    samples_per_second=2.0,
    waiting=0.1,
)


def test_a_state_is_kept_by_run_and_by_task(tmp_path: Path) -> None:
    state = RunState("a", "finetune_abdomen", dice={"abdomen": {"new": 0.5}})
    write_state(tmp_path, state)
    assert read_state(state_file(tmp_path, "a")) == state
    assert read_json(tmp_path / "finetune_abdomen.json") == asdict(state)


@pytest.mark.parametrize("text", ["", "{", "{}", '{"id": "a", "task": "b", "surplus": 1}'])
def test_what_is_no_state_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text, encoding="utf-8")
    assert read_state(tmp_path / "a.json") is None


def test_steps_are_written_twice_a_second_and_the_last_one_always(tmp_path: Path) -> None:
    now = [100.0]
    teller = Teller(tmp_path, RunState("a", "task"), clock=lambda: now[0])
    report = teller.steps("train")
    seen = []
    for step, seconds in ((1, 0.1), (2, 0.1), (3, 0.6), (4, 0.1), (9, 0.1)):
        now[0] += seconds
        report(replace(PROGRESS, step=step))
        state = read_state(state_file(tmp_path, "a"))
        assert state is not None
        seen.append(state.step)
    assert seen == [0, 0, 3, 3, 9]
    assert teller.state.losses == {"abdomen": 0.5}


def test_a_stage_tells_the_time_that_is_left(tmp_path: Path) -> None:
    now = [0.0]
    teller = Teller(tmp_path, RunState("a", "task", stage="cases", step=7), clock=lambda: now[0])
    progress = teller.stage("validate")
    progress(0, 4)
    assert (teller.state.stage, teller.state.step, teller.state.steps, teller.state.seconds_left) == (
        "validate",
        0,
        4,
        None,
    )
    now[0] = 10.0
    progress(1, 4)
    assert teller.state.seconds_left == 30.0


def test_statistics_have_the_stock_keys_and_all_of_ours() -> None:
    dice = {"abdomen": {"new": 0.75, "current": 0.5}, "thorax": {"new": 0.25, "current": None}}
    state = RunState("a", "task", state="running", step=3, steps=9, loss=0.5, began=1.0, dice=dice)
    stats = train_stats(state)
    assert (stats["epoch"], stats["total_epochs"], stats["best_metric"]) == (3, 9, 0.5)
    assert (stats["train"]["loss"], stats["eval"], stats["lorkd"]) == (0.5, {"dice": dice}, asdict(state))
    assert ("current_time" in stats, "total_time" in stats) == (True, False)
    over = train_stats(replace(state, state="done", ended=3662.0))
    assert (over["total_time"], "current_time" in over) == ("1:01:01", False)


def test_before_a_run_began_there_are_none() -> None:
    assert train_stats(None) == train_stats(RunState("a", "task")) == {}
