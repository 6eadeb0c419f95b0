"""The one training loop: for a foundation, for base and experts together, for one expert alone.

Each of several processes runs it on its share of every batch; one process is the case of a share of all.

A run that is stopped, killed or moved to another number of processes goes on from its checkpoint with the losses that
an unbroken run would have had: samples and dropout are functions of a sample's number in the whole run.
"""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import torch
from torch.utils.data import DataLoader

from lorkd_monailabel.learning.checkpoint import load_checkpoint, save_checkpoint
from lorkd_monailabel.learning.engine import OutOfMemory, is_out_of_memory, smaller
from lorkd_monailabel.learning.sampler import ShareOfSamples
from lorkd_monailabel.learning.samples import Sample, Samples
from lorkd_monailabel.learning.trainer import Trainer


class Interrupted(Exception):
    """The run was asked to stop; its state is saved."""


@dataclass(frozen=True)
class Progress:
    """Where a run stands after a step.

    Attributes:
        step: finished steps.
        steps: of the whole run.
        loss: mean over the departments of the batch.
        losses: department -> its loss in this step.
        seconds_left: at the pace so far.
        learning_rate: of the first group of tensors, in this step.
        samples_per_second: of all processes, since this one started.
        waiting: share of that time that the loop waited for samples; 0..1.
    """

    step: int
    steps: int
    loss: float
    losses: dict[str, float]
    seconds_left: float
    learning_rate: float
    samples_per_second: float
    waiting: float


@dataclass(frozen=True)
class Loop:
    """How the loop goes, whatever is learned.

    Attributes:
        batch_size: samples of an optimiser step, over all processes.
        stop: asked after every step; one process that is told to stop stops all.
        workers: processes that make samples, of each process; 0 makes them in this one.
    """

    batch_size: int
    stop: Callable[[], bool]
    workers: int = 1


def run(
    trainer: Trainer, samples: Samples, loop: Loop, *, checkpoint: Path, report: Callable[[Progress], None]
) -> None:
    """Train to the end of the schedule, resuming from ``checkpoint`` where there is one.

    At the end the averages that the engine may have asked for stand in the place of the trained tensors.

    Args:
        trainer: to run; every process starts from the first one's tensors.
        samples: stream to draw batches from.
        loop: see there.
        checkpoint: saved on the way, at a stop and at the end, by the first process, which alone needs to see it.
        report: told after every step, on every process.

    Raises:
        Interrupted: the loop's ``stop`` said so; the state is saved.
        ValueError: the batch can't be shared by the processes; the checkpoint is of another run; memory does not
            suffice.
    """
    engine, world = trainer.engine, trainer.engine.world
    own = engine.share(loop.batch_size)
    _resume(trainer, checkpoint)
    first = trainer.step
    began = saved = time.monotonic()
    waited = 0.0
    batches = _batches(samples, trainer, own, loop.workers)
    while trainer.step < trainer.steps:
        asked = time.monotonic()
        batch = next(batches)
        waited += time.monotonic() - asked
        losses = _step(trainer, batch, samples, batch_size=loop.batch_size, checkpoint=checkpoint)
        now = time.monotonic()
        done, seconds = trainer.step - first, max(now - began, 1e-9)
        report(
            Progress(
                step=trainer.step,
                steps=trainer.steps,
                loss=sum(losses.values()) / len(losses),
                losses=losses,
                seconds_left=seconds / done * (trainer.steps - trainer.step),
                learning_rate=trainer.optimizer.param_groups[0]["lr"],
                samples_per_second=done * loop.batch_size / seconds,
                waiting=min(1.0, waited / seconds),
            )
        )
        stopped, due = world.sum([loop.stop(), world.first and now - saved >= engine.save_every_s])
        if stopped or due or trainer.step == trainer.steps:
            _save(trainer, checkpoint)
            saved = now
        if stopped:
            raise Interrupted(f"stopped after step {trainer.step} of {trainer.steps}; run again to go on")
    trainer.finish()


def _step(
    trainer: Trainer, batch: list[Sample], samples: Samples, *, batch_size: int, checkpoint: Path
) -> dict[str, float]:
    try:
        return trainer.train_step(batch)
    except OutOfMemory as error:
        reason, whole = str(error), True
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        reason, whole = str(error).partition("\n")[0] or type(error).__name__, False
    # the error is gone here, and with it the tensors that its traceback held
    if whole:
        _save(trainer, checkpoint)
    advice = smaller(trainer.engine, batch_size=batch_size, patch=samples.patch, stride=samples.stride)
    kept = "its state is saved" if whole else "the last checkpoint stands"
    raise ValueError(f"step {trainer.step + 1} lacked memory ({reason}), {kept}; {advice} and run again to go on")


def _resume(trainer: Trainer, checkpoint: Path) -> None:
    """Take up the checkpoint; without one, let every process start as the first one does."""
    world = trainer.engine.world
    state = load_checkpoint(checkpoint) if world.first else None
    if world.size > 1 and not world.any(state is not None):
        state = trainer.state()
    state = world.share(state)
    if state is not None:
        trainer.load(state)


def _save(trainer: Trainer, checkpoint: Path) -> None:
    """Save on the first process; the others wait until it is done."""
    state, world = trainer.state(), trainer.engine.world
    if world.first:
        save_checkpoint(state, checkpoint)
    world.barrier()


def _batches(samples: Samples, trainer: Trainer, size: int, workers: int) -> Iterator[list[Sample]]:
    """Yield this process's share of each batch that is left."""
    world = trainer.engine.world
    whole = size * world.size
    return iter(
        DataLoader(
            samples,
            batch_size=size,
            sampler=ShareOfSamples(trainer.step * whole, trainer.steps * whole, rank=world.rank, world=world.size),
            num_workers=workers,
            collate_fn=list,
            generator=torch.Generator(),  # the loader's seed must not take from the numbers that a resumed run has too
            worker_init_fn=_leave_signals_to_parent,
        )
    )


def _leave_signals_to_parent(worker: int) -> None:
    # Ctrl+C reaches the whole process group; the parent finishes its step and then ends the workers by SIGTERM.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextmanager
def stop_on_signal() -> Iterator[Callable[[], bool]]:
    """Turn Ctrl+C and SIGTERM into a question that is asked between steps."""
    asked: list[int] = []

    def remember(number: int, frame: FrameType | None) -> None:
        asked.append(number)

    before = {number: signal.signal(number, remember) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
