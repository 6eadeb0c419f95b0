"""What every recipe that trains has around its training: processes, errors, and what a run shows and leaves behind.

Every process of ``torchrun`` runs the whole recipe; the first one alone shows, writes and publishes.
"""

import io
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, nullcontext, redirect_stderr
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from lorkd_monailabel.learning.distributed import World, joined
from lorkd_monailabel.learning.engine import Engine
from lorkd_monailabel.learning.samples import Sample, Samples
from lorkd_monailabel.learning.training import Interrupted, Progress
from lorkd_monailabel.process import tune
from lorkd_monailabel.text_encoder import QueryTable
from train.config import parse
from train.report import write_report
from train.reporting.bar import Bar
from train.reporting.board import Board
from train.reporting.history import History
from train.reporting.overlays import Overlay, first_samples, overlays_of
from train.reporting.provenance import write_provenance
from train.settings import EngineConfig

Recipe = Callable[[Any, World], Sequence[str]]
"""Config and processes -> lines to print at the end."""


def run_recipe(recipe: Recipe, config_class: type, description: str, argv: Sequence[str] | None = None) -> int:
    """Parse, run and report; returns the exit status: 0, 2 for bad input, 130 for a run that was stopped."""
    tune()
    with _quiet(first=os.environ.get("RANK", "0") == "0"):
        config = parse(config_class, description, argv)
    device = "" if config.engine.device == "auto" else config.engine.device
    try:
        with joined(device, describe=described, announce=announce) as world:
            lines = recipe(config, world)
    except (ValueError, OSError, Interrupted, KeyboardInterrupt) as error:
        sentence, status = described(error)
        announce(sentence)
        return status
    for line in lines if world.first else ():
        print(line)
    return 0


def described(error: BaseException) -> tuple[str, int]:
    """Give the sentence and the exit status of an error."""
    if isinstance(error, Interrupted):
        return str(error), 130
    if isinstance(error, KeyboardInterrupt):
        return "stopped outside of the training; run again to go on", 130
    if isinstance(error, ValueError | OSError):
        return str(error), 2
    return f"{type(error).__name__}: {error}", 1


def announce(sentence: str) -> None:
    """Show why a run ends."""
    print(sentence, file=sys.stderr, flush=True)


def engine_of(config: EngineConfig, world: World) -> Engine:
    """Make the engine of a config."""
    return Engine(
        world=world,
        bf16=config.bf16,
        accumulate=config.accumulate,
        ema=config.ema,
        compile=config.compile,
        shard=config.shard,
        save_every_s=config.save_every_s,
    )


@contextmanager
def cases_once(world: World) -> Iterator[None]:
    """Prepare cases in this block: one process of each machine first, its others out of the cache; one bar in all."""
    with world.one_first(), _quiet(first=world.first):
        yield


def _quiet(*, first: bool) -> Any:
    return nullcontext() if first else redirect_stderr(io.StringIO())


class Session:
    """What a run shows and leaves in its folder; nothing on any process but the first.

    Args:
        config: of the run, with ``seed`` and ``engine``.
        folder: of the run.
        world: its processes.
    """

    def __init__(self, config: Any, folder: Path, world: World) -> None:
        self.config = config
        self.folder = folder
        self.world = world
        self.open = ExitStack()

    def __enter__(self) -> "Session":
        if self.world.first:
            write_provenance(self.folder, self.config, self.config.seed, device=self.world.device)
        return self

    def __exit__(self, *raised: object) -> None:
        self.open.close()

    def listener(self, phase: str, title: str = "") -> Callable[[Progress], None]:
        """Make what is told of the steps of a phase: a bar, the history and, where it is asked for, TensorBoard."""
        if not self.world.first:
            return lambda progress: None
        listeners: list[Callable[[Progress], None]] = [History(self.folder / f"{phase}.jsonl")]
        if self.config.engine.tensorboard:
            listeners.append(self.open.enter_context(closing(Board(self.folder / "tensorboard" / phase))))
        listeners.append(self.open.enter_context(closing(Bar(title or phase))))

        def tell(progress: Progress) -> None:
            for listener in listeners:
                listener(progress)

        return tell

    def report(self, title: str, overlays: Sequence[Overlay]) -> None:
        """Write the report; a run that is over does not fail for the want of one."""
        if self.world.first:
            try:
                write_report(self.folder, title=title, overlays=overlays)
            except ValueError as error:
                announce(f"no report was written: {error}")


def overlays(
    samples: Samples,
    network: nn.Module,
    queries: QueryTable,
    weights_of: Callable[[str], Mapping[str, Tensor]] | None = None,
) -> list[Overlay]:
    """Draw the first samples of a stream with the masks of each department's network.

    Args:
        samples: stream.
        network: plain network; left in evaluation mode.
        queries: table of query vectors.
        weights_of: see ``Trainer``.
    """
    network.eval()

    @torch.no_grad()
    def predict(sample: Sample) -> Tensor:
        device = next(network.parameters()).device
        inputs = (sample.image[None].to(device), queries.queries(sample.names, sample.modality).to(device))
        if weights_of is None:
            logits = network(*inputs)
        else:
            logits = functional_call(network, dict(weights_of(sample.department)), inputs)
        return logits[0].float().sigmoid().cpu()

    return overlays_of(first_samples(samples), predict)
