"""The progress bar of a run: loss, the departments' losses, time left."""

import math
from collections.abc import Callable
from types import TracebackType

from tqdm import tqdm

from lorkd_monailabel.learning.training import Progress

SMOOTHING = 0.95


class Bar:
    """A tqdm bar fed by ``Progress``; losses are smoothed over about twenty steps.

    Args:
        title: shown in front.
        listen: told of every step as well, for example to write a log.
    """

    def __init__(self, title: str, listen: Callable[[Progress], None] | None = None) -> None:
        self.bar = tqdm(desc=title, unit="step", smoothing=0.1, dynamic_ncols=True)
        self.listen = listen
        self.losses: dict[str, float] = {}

    def close(self) -> None:
        """Leave the bar as it is."""
        self.bar.close()

    def __enter__(self) -> "Bar":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __call__(self, progress: Progress) -> None:
        """Show a step."""
        if self.bar.total is None:
            self.bar.reset(total=progress.steps)
            self.bar.update(progress.step - 1)
        for name, loss in progress.losses.items():
            if math.isnan(loss):
                continue
            self.losses[name] = SMOOTHING * self.losses.get(name, loss) + (1 - SMOOTHING) * loss
        mean = sum(self.losses.values()) / max(1, len(self.losses))
        self.bar.set_postfix_str(
            f"loss {mean:.3f} " + " ".join(f"{n[:6]} {v:.2f}" for n, v in sorted(self.losses.items()))
        )
        self.bar.update()
        if self.listen is not None:
            self.listen(progress)
