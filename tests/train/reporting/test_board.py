"""Tests of the scalars for TensorBoard, read back by TensorBoard itself."""

import math
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lorkd_monailabel.learning.training import Progress
from train.reporting import board
from train.reporting.board import Board


def told(step: int, **losses: float) -> Progress:
    mean = sum(losses.values()) / max(1, len(losses))
    return Progress(step, 100, mean, losses, 1.0, learning_rate=step / 8, samples_per_second=2.5, waiting=0.25)


def read(folder: Path) -> Mapping[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(folder)).Reload()
    return {tag: [(own.step, own.value) for own in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_every_scalar_of_a_step_reads_back(tmp_path: Path) -> None:
    with closing(Board(tmp_path / "joint")) as listener:
        listener(told(1, abdomen=0.5, brain=1.5))
        listener(told(2, brain=0.25))
    assert read(tmp_path / "joint") == {
        "loss": [(1, 1.0), (2, 0.25)],
        "department/abdomen": [(1, 0.5)],
        "department/brain": [(1, 1.5), (2, 0.25)],
        "learning_rate": [(1, 0.125), (2, 0.25)],
        "pace/samples_per_second": [(1, 2.5), (2, 2.5)],
        "pace/waiting": [(1, 0.25), (2, 0.25)],
    }


@pytest.mark.parametrize("said", [True, False])
def test_a_resumed_run_has_each_step_once(tmp_path: Path, said: bool) -> None:
    with closing(Board(tmp_path)) as killed:
        for step in range(1, 7):
            killed(told(step, brain=1.0))
    with closing(Board(tmp_path)) as resumed:
        if said:
            resumed.resume(4)
        for step in range(5, 9):
            resumed(told(step, brain=2.0))
    assert read(tmp_path)["loss"] == [(step, 1.0 if step < 5 else 2.0) for step in range(1, 9)]


def test_what_is_not_finite_is_left_out(tmp_path: Path) -> None:
    with closing(Board(tmp_path)) as listener:
        listener(told(1, brain=math.nan))
        listener(told(2, brain=1.0))
    assert read(tmp_path)["department/brain"] == [(2, 1.0)]


def test_nothing_is_written_before_a_step(tmp_path: Path) -> None:
    with closing(Board(tmp_path / "joint")):
        pass
    assert not (tmp_path / "joint").exists()


def test_without_the_package_it_is_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(board, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"tensorboard.*is not installed; pip install 'lorkd-monailabel\[train\]'"):
        Board(tmp_path)
