"""Tests of the history: what a killed process leaves, what a resumed one keeps."""

import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lorkd_monailabel.learning.training import Progress
from train.reporting.history import History, Record, ends, histories, read_history, seconds_at_work


@pytest.fixture
def tell() -> Callable[..., Progress]:
    def tell(step: int, **losses: float) -> Progress:
        return Progress(
            step=step,
            steps=100,
            loss=sum(losses.values()) / max(1, len(losses)),
            losses=losses,
            seconds_left=1.0,
            learning_rate=step / 1000,
            samples_per_second=2.5,
            waiting=0.25,
        )

    return tell


Tell = Callable[..., Progress]


def record(step: int, *, loss: float = 1.0, time: float = 0.0) -> Record:
    return Record(step, loss, {"abdomen": loss}, 1e-3, 1.0, 0.0, time)


def test_a_step_is_a_line_of_json_that_reads_back(tmp_path: Path, tell: Tell) -> None:
    path = tmp_path / "run" / "joint.jsonl"
    history = History(path)
    history(tell(1, abdomen=0.5, brain=1.5))
    history(tell(2, brain=math.nan))
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert set(lines[0]) == {"step", "loss", "losses", "learning_rate", "samples_per_second", "waiting", "time"}
    assert (lines[0]["step"], lines[0]["loss"], lines[0]["losses"]) == (1, 1.0, {"abdomen": 0.5, "brain": 1.5})
    assert (lines[0]["learning_rate"], lines[0]["samples_per_second"], lines[0]["waiting"]) == (0.001, 2.5, 0.25)
    assert lines[1]["losses"] == {"brain": None}  # JSON has no NaN
    first, second = read_history(path)
    assert first.losses == {"abdomen": 0.5, "brain": 1.5}
    assert math.isnan(second.loss)
    assert math.isnan(second.losses["brain"])
    assert second.time >= first.time > 1.6e9


def test_a_torn_last_line_is_dropped_and_does_not_spoil_the_next(tmp_path: Path, tell: Tell) -> None:
    path = tmp_path / "joint.jsonl"
    history = History(path)
    for step in (1, 2, 3):
        history(tell(step, brain=1.0))
    path.write_bytes(path.read_bytes()[:-20])
    assert [own.step for own in read_history(path)] == [1, 2]
    History(path)(tell(3, brain=9.0))
    assert [(own.step, own.loss) for own in read_history(path)] == [(1, 1.0), (2, 1.0), (3, 9.0)]


def test_a_resumed_run_has_each_step_once(tmp_path: Path, tell: Tell) -> None:
    path = tmp_path / "joint.jsonl"
    killed = History(path)
    for step in range(1, 8):
        killed(tell(step, brain=1.0))
    before = path.read_bytes().splitlines()
    resumed = History(path)
    resumed.resume(4)
    assert path.read_bytes().splitlines() == before[:4]
    for step in range(5, 9):
        resumed(tell(step, brain=2.0))
    assert [own.step for own in read_history(path)] == list(range(1, 9))
    assert [own.loss for own in read_history(path)] == [1.0] * 4 + [2.0] * 4


def test_the_first_step_that_is_told_resumes_by_itself(tmp_path: Path, tell: Tell) -> None:
    path = tmp_path / "joint.jsonl"
    for first in (1, 3, 1):  # the last one had no checkpoint: it starts anew
        history = History(path)
        for step in range(first, first + 4):
            history(tell(step, brain=float(first)))
    assert [(own.step, own.loss) for own in read_history(path)] == [(step, 1.0) for step in (1, 2, 3, 4)]


def test_a_failed_resume_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "joint.jsonl"
    path.write_text('{"step": 1}\nno step\n', encoding="utf-8")
    with pytest.raises(ValueError, match=r"line 1 of .*joint\.jsonl is no step of a run; remove it"):
        History(path).resume(1)
    assert path.read_text(encoding="utf-8") == '{"step": 1}\nno step\n'
    assert list(tmp_path.iterdir()) == [path]


def test_a_sigkill_loses_the_last_line_at_most(root: Path, tmp_path: Path) -> None:
    script = (
        "import sys\nfrom pathlib import Path\n"
        "from lorkd_monailabel.learning.training import Progress\nfrom train.reporting.history import History\n"
        f"history = History(Path({str(tmp_path / 'joint.jsonl')!r}))\n"
        "for step in range(1, 10**9):\n"
        "    history(Progress(step, 10**9, 1.0, {'brain': 1.0}, 0.0, 1e-3, 1.0, 0.0))\n"
        "    sys.stdout.write(f'{step}\\n')\n    sys.stdout.flush()\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script], cwd=root, stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        for _ in range(200):
            process.stdout.readline()
        os.kill(process.pid, signal.SIGKILL)
        told = process.stdout.read().decode().splitlines()
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    last = int(told[-1]) if told else 200
    steps = [own.step for own in read_history(tmp_path / "joint.jsonl")]
    assert steps == list(range(1, len(steps) + 1))
    assert last <= len(steps) <= last + 1


def test_a_step_reads_nothing_of_those_before_it(tmp_path: Path, tell: Tell) -> None:
    path = tmp_path / "joint.jsonl"
    history = History(path)
    history(tell(1, brain=1.0))
    path.unlink()
    history(tell(2, brain=1.0))
    assert [own.step for own in read_history(path)] == [2]


def test_phases_are_found_in_the_order_of_their_beginning(tmp_path: Path, tell: Tell) -> None:
    for name in ("warmup", "joint"):
        History(tmp_path / f"{name}.jsonl")(tell(1, brain=1.0))
    (tmp_path / "cases.jsonl").write_text('{"image": "a.nii.gz"}\n', encoding="utf-8")
    (tmp_path / "empty.jsonl").touch()
    assert list(histories(tmp_path)) == ["warmup", "joint"]


def test_a_damaged_history_is_one_sentence(tmp_path: Path, tell: Tell) -> None:
    path = tmp_path / "joint.jsonl"
    History(path)(tell(1, brain=1.0))
    with path.open("a", encoding="utf-8") as file:
        file.write("[]\n")
    with pytest.raises(ValueError, match=r"line 2 of .*joint\.jsonl is no step") as caught:
        histories(tmp_path)
    assert "\n" not in str(caught.value)


def test_ends_are_means_of_a_twentieth_of_what_is_finite() -> None:
    values = [4.0, 2.0, *[9.0] * 36, math.nan, 1.0, 0.0]  # 40 finite ones: two at each end
    assert ends(values) == (3.0, 0.5)
    assert ends([7.0]) == (7.0, 7.0)
    assert all(map(math.isnan, ends([math.nan])))


def test_a_pause_is_no_work() -> None:
    times = [0.0, 2.0, 4.0, 6.0, 1006.0, 1008.0]
    assert seconds_at_work([record(step, time=at) for step, at in enumerate(times)]) == 2 + 4 * 2 + 2
    assert seconds_at_work([record(1)]) == 0
