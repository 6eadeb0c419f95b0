"""TensorBoard: what a run tells, as curves that can be watched while it goes on."""

import math
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from lorkd_monailabel.learning.training import Progress

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

FLUSH_EVERY_S = 10
"""What a killed run loses of its curves at most."""


class Board:
    """A listener that writes scalars for TensorBoard into ``folder``, which is one run there.

    The first step that is told hides what an earlier process wrote from that step on; so a resumed run has each step
    once.

    Raises:
        ValueError: tensorboard is not installed.
    """

    def __init__(self, folder: Path) -> None:
        if find_spec("tensorboard") is None:
            raise ValueError(
                "engine.tensorboard needs the package tensorboard, which is not installed; "
                "pip install 'lorkd-monailabel[train]', or set engine.tensorboard=false"
            )
        self.folder = folder
        self.writer: SummaryWriter | None = None

    def close(self) -> None:
        """Write what is left."""
        if self.writer is not None:
            self.writer.close()

    def __call__(self, progress: Progress) -> None:
        """Write the scalars of a step."""
        if self.writer is None:
            self.resume(progress.step - 1)
        assert self.writer is not None
        scalars = {
            "loss": progress.loss,
            **{f"department/{name}": loss for name, loss in progress.losses.items()},
            "learning_rate": progress.learning_rate,
            "pace/samples_per_second": progress.samples_per_second,
            "pace/waiting": progress.waiting,
        }
        for tag, value in scalars.items():
            if math.isfinite(value):
                self.writer.add_scalar(tag, value, progress.step)

    def resume(self, step: int) -> None:
        """Go on after a step: what was written of later ones is hidden."""
        from torch.utils.tensorboard import SummaryWriter

        self.close()
        self.writer = SummaryWriter(str(self.folder), purge_step=step + 1, flush_secs=FLUSH_EVERY_S)
