"""What a person sees of a run: a bar in a terminal, a line now and then in a log file."""

import math
import sys
import time
from typing import TextIO

from tqdm import tqdm

from lorkd_monailabel.learning.training import Progress

SMOOTHING = 0.95
LOG_EVERY_S = 30.0
WAITING_IS_MUCH = 0.1
LETTERS = 6


class Bar:
    """A listener that shows where a run stands: losses, time left, throughput, and waiting where it is much.

    In a terminal it is a bar with the departments' losses below; elsewhere, as in a log file, a line for the first
    step, one every half minute and one for the last step. Losses are smoothed over about twenty steps.

    Args:
        title: shown in front.
        file: to write to; standard error if none is given.
    """

    def __init__(self, title: str, file: TextIO | None = None) -> None:
        self.title = title
        self.file = sys.stderr if file is None else file
        self.lines: list[tqdm] = []
        self.losses: dict[str, float] = {}
        self.logged = -math.inf

    def close(self) -> None:
        """Leave the bar as it is, with the losses below it."""
        for line in reversed(self.lines):
            line.close()
        if self.lines:
            print(_losses(self.losses), file=self.file, flush=True)
        self.lines = []

    def __call__(self, progress: Progress) -> None:
        """Show a step."""
        for name, loss in progress.losses.items():
            if not math.isnan(loss):
                self.losses[name] = SMOOTHING * self.losses.get(name, loss) + (1 - SMOOTHING) * loss
        if self.file.isatty():
            self._draw(progress)
        elif progress.step == progress.steps or time.monotonic() - self.logged >= LOG_EVERY_S:
            self.logged = time.monotonic()
            share = f"{100 * progress.step / progress.steps:.0f} %"
            where = f"{self.title}: step {progress.step} of {progress.steps} ({share})"
            print(f"{where}, {self._pace(progress)}, {_losses(self.losses)}", file=self.file, flush=True)

    def _draw(self, progress: Progress) -> None:
        if not self.lines:
            form = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}{postfix}"
            first = {"total": progress.steps, "initial": progress.step - 1, "desc": self.title, "bar_format": form}
            below = {"position": 1, "leave": False, "bar_format": "{desc}"}
            self.lines = [tqdm(file=self.file, dynamic_ncols=True, **each) for each in (first, below)]
        bar, below = self.lines
        bar.set_postfix_str(self._pace(progress), refresh=False)
        bar.update()
        below.set_description_str(_losses(self.losses), refresh=False)
        below.update()
        if progress.step == progress.steps:  # another phase may begin before anybody closes this one
            self.close()

    def _pace(self, progress: Progress) -> str:
        mean = sum(self.losses.values()) / max(1, len(self.losses))
        left = tqdm.format_interval(progress.seconds_left)
        parts = [f"loss {mean:.3f}", f"{left} left", f"{progress.samples_per_second:.3g} samples/s"]
        if progress.waiting > WAITING_IS_MUCH:
            parts.append(f"waiting {100 * progress.waiting:.0f} %")
        return ", ".join(parts)


def _losses(losses: dict[str, float]) -> str:
    return " ".join(f"{name[:LETTERS]} {loss:.2f}" for name, loss in sorted(losses.items()))
