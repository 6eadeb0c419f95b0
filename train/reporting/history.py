"""The history of a run: a file of JSON lines, one for each step, that outlives a killed process."""

import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import fmean, median
from typing import Any

from lorkd_monailabel.drafts import draft_of
from lorkd_monailabel.learning.training import Progress


@dataclass(frozen=True)
class Record:
    """What a line tells of a step.

    Attributes:
        step: finished steps.
        loss: mean over the departments of the batch.
        losses: department -> its loss, of the departments in the batch.
        learning_rate: of the first group of tensors.
        samples_per_second: since the process started.
        waiting: share of that time that the loop waited for samples; 0..1.
        time: seconds since 1970.
    """

    step: int
    loss: float
    losses: dict[str, float]
    learning_rate: float
    samples_per_second: float
    waiting: float
    time: float


NUMBERS = ("loss", "learning_rate", "samples_per_second", "waiting", "time")
BROKEN = (ValueError, TypeError, KeyError, AttributeError, OverflowError)
"""What reading a line raises that no history wrote."""

WINDOW = 0.05
"""Share of the steps whose mean stands for a loss, where that of one step says little."""

PAUSE = 20
"""A time between two steps that is as many times the usual one is a pause, not work."""


class History:
    """A listener that appends a line a step to ``path``.

    Every line is handed to the system before the next step begins, so that a killed process loses the one that it was
    writing at most. The first step that is told drops the lines of an earlier run from that step on; so a resumed run
    has each step once.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.resumed = False

    def __call__(self, progress: Progress) -> None:
        """Append a step."""
        if not self.resumed:
            self.resume(progress.step - 1)
        line = {
            "step": progress.step,
            "loss": _or_null(progress.loss),
            "losses": {name: _or_null(loss) for name, loss in progress.losses.items()},
            "learning_rate": progress.learning_rate,
            "samples_per_second": progress.samples_per_second,
            "waiting": progress.waiting,
            "time": time.time(),
        }
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(f"{json.dumps(line, allow_nan=False)}\n")

    def resume(self, step: int) -> None:
        """Drop the lines after a step, and a torn last one; the file is as before or done, whatever happens.

        Raises:
            ValueError: the file holds something else.
        """
        with draft_of(self.path) as draft, draft.open("wb") as file:
            if self.path.exists():
                file.writelines(line for line, record in _lines(self.path) if record.step <= step)
        self.resumed = True


def read_history(path: Path) -> list[Record]:
    """Read the steps of a history; a last line without an end is left out. A loss that was not finite is NaN.

    Raises:
        ValueError: a line is no step.
        OSError: the file can't be read.
    """
    return [record for _, record in _lines(path)]


def histories(folder: Path) -> dict[str, Sequence[Record]]:
    """Read every history of a folder: phase -> steps, in the order in which the phases began.

    Other JSON lines that lie there are left out, and so are phases without a step.

    Raises:
        ValueError: a line of a history is no step.
    """
    found = {path.stem: read_history(path) for path in sorted(folder.glob("*.jsonl")) if _is_history(path)}
    return dict(sorted(found.items(), key=lambda item: item[1][0].time))


def ends(values: Sequence[float]) -> tuple[float, float]:
    """Give the mean of the first and of the last ``WINDOW`` of what is finite, of one value at least; NaN of none."""
    finite = [value for value in values if math.isfinite(value)]
    count = max(1, round(len(finite) * WINDOW))
    return (fmean(finite[:count]), fmean(finite[-count:])) if finite else (math.nan, math.nan)


def seconds_at_work(records: Sequence[Record]) -> float:
    """Add up the time between steps; a pause between two processes counts as one step."""
    gaps = [max(after.time - before.time, 0.0) for before, after in pairwise(records)]
    usual = median(gaps) if gaps else 0.0
    return usual + sum(gap if gap <= PAUSE * usual else usual for gap in gaps)


def _is_history(path: Path) -> bool:
    with open(path, "rb") as file:
        first = file.readline()
    try:
        return first.endswith(b"\n") and bool(_record(first))
    except BROKEN:
        return False


def _lines(path: Path) -> Iterator[tuple[bytes, Record]]:
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):  # only the last one can be: its process was killed
                return
            try:
                record = _record(line)
            except BROKEN as error:
                raise ValueError(f"line {number} of {path} is no step of a run; remove it or the file") from error
            yield line, record


def _record(line: bytes) -> Record:
    values = json.loads(line)
    losses = {name: _number(loss) for name, loss in values["losses"].items()}
    return Record(step=int(values["step"]), losses=losses, **{key: _number(values[key]) for key in NUMBERS})


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def _or_null(value: float) -> float | None:
    """Put null in the place of what JSON has no number for."""
    return value if math.isfinite(value) else None
