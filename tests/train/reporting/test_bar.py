"""Tests of what a person sees of a run, in a terminal and in a log file."""

import fcntl
import io
import math
import os
import select
import struct
import termios
from contextlib import closing
from pathlib import Path

import pytest

from lorkd_monailabel.departments import DEPARTMENT_IDS
from lorkd_monailabel.learning.training import Progress
from train.reporting import bar
from train.reporting.bar import Bar

COLUMNS = 100


def told(step: int, *, waiting: float = 0.0, **losses: float) -> Progress:
    return Progress(
        step=step,
        steps=1000,
        loss=1.0,
        losses=losses,
        seconds_left=3725.0,
        learning_rate=1e-3,
        samples_per_second=12.345,
        waiting=waiting,
    )


def on_terminal(*steps: Progress) -> list[str]:
    """Give what a terminal of 100 columns is told, piece by piece."""
    master, slave = os.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, COLUMNS, 0, 0))
    seen = b""
    with os.fdopen(slave, "w", encoding="utf-8") as file:
        with closing(Bar("joint", file)) as shown:
            for step in steps:
                shown(step)
        file.flush()
        while select.select([master], [], [], 0.1)[0]:
            seen += os.read(master, 65536)
    os.close(master)
    return [piece.replace("\x1b[A", "") for piece in seen.decode().replace("\r", "\n").split("\n") if piece.strip()]


def test_a_terminal_shows_loss_time_left_and_throughput_in_its_width() -> None:
    losses = dict.fromkeys(DEPARTMENT_IDS, 1.23456)
    pieces = on_terminal(told(250, waiting=0.25, **losses))
    assert all(len(piece) <= COLUMNS for piece in pieces)
    newest = [piece for piece in pieces if piece.startswith("joint")][-1]
    for part in (" 25%|", "250/1000", "loss 1.235", "1:02:05 left", "12.3 samples/s", "waiting 25 %"):
        assert part in newest
    assert pieces[-1].split() == [word for name in sorted(losses) for word in (name[:6], "1.23")]


def test_waiting_is_shown_where_it_is_much() -> None:
    assert "waiting" not in "".join(on_terminal(told(1, waiting=0.1, brain=1.0)))


def test_a_phase_that_is_over_leaves_its_bar_to_the_next() -> None:
    last = on_terminal(told(999, brain=1.0), told(1000, brain=1.0))
    assert "1000/1000" in last[-2]
    assert last[-1] == "brain 1.00"


def test_losses_are_smoothed_and_what_is_not_a_number_is_left_out() -> None:
    shown = Bar("joint", io.StringIO())
    for loss in (2.0, math.nan, 1.0):
        shown(told(1, brain=loss))
    assert shown.losses == {"brain": pytest.approx(0.95 * 2 + 0.05 * 1)}


def test_a_log_file_gets_whole_lines_at_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(bar.time, "monotonic", lambda: now)
    path = tmp_path / "log"
    with path.open("w", encoding="utf-8") as file, closing(Bar("joint", file)) as shown:
        for step in range(1, 101):  # a second each
            shown(told(step, waiting=0.3, brain=0.5))
            now += 1
        shown(told(1000, brain=0.5))
    text = path.read_text(encoding="utf-8")
    assert "\r" not in text
    assert "\x1b" not in text
    lines = text.splitlines()
    assert [line.split()[2] for line in lines] == ["1", "31", "61", "91", "1000"]
    assert lines[1] == (
        "joint: step 31 of 1000 (3 %), loss 0.500, 1:02:05 left, 12.3 samples/s, waiting 30 %, brain 0.50"
    )


def test_a_log_is_written_while_the_run_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with path.open("w", encoding="utf-8") as file:
        Bar("joint", file)(told(1, brain=0.5))
        assert "step 1 of 1000" in path.read_text(encoding="utf-8")
