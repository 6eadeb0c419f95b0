"""The one training loop: for a foundation, for base and experts together, for one expert alone.

What differs is which weights a department's plain network has (``weights_of``) and which of them are trained. In a step
every department present runs once through ``torch.func.functional_call`` with its own weights, and gradients add up:
with normalisation per sample this is exactly the mixed batch of LoRKD's EKS convolution, with one department's
activations in memory at a time. A department that is absent gets no gradient and does not move.
"""

import math
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.data import DataLoader

from lorkd_monailabel.learning.checkpoint import load_checkpoint, save_checkpoint
from lorkd_monailabel.learning.losses import check_transfer_form, task_loss, transfer_loss
from lorkd_monailabel.learning.sampler import ShareOfSamples
from lorkd_monailabel.learning.samples import Sample, Samples
from lorkd_monailabel.teachers.protocol import Teacher
from lorkd_monailabel.text_encoder import QueryTable

SAVE_EVERY_S = 60.0
MOST_SKIPPED = 20

Weights = Callable[[str], Mapping[str, Tensor]]
"""Department -> the weights of its plain network."""

Trained = Sequence[tuple[Mapping[str, Tensor], float]]
"""Groups of named tensors with their learning rates."""


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
    """

    step: int
    steps: int
    loss: float
    losses: dict[str, float]
    seconds_left: float


class Trainer:
    """Optimises named tensors so that each department's network does its task and follows a teacher.

    Args:
        network: plain network that is called with a department's weights.
        weights_of: department -> weights, differentiable in the trained tensors.
        trained: groups of named tensors with their learning rates.
        queries: table of query vectors.
        teacher: frozen; samples that bring a teacher's masks need none. None trains the others on the task alone.
        beta: weight of the transfer loss (LoRKD Eq. 9).
        transfer: form of the transfer loss, see ``transfer_loss``.
        balance: see ``task_loss``.
        weight_decay: of AdamW.
        steps: length of the schedule: linear warm-up over a twentieth, then cosine to zero.
        bf16: run the networks under bfloat16 autocast.

    Raises:
        ValueError: an unknown form of the transfer loss.
    """

    def __init__(
        self,
        network: nn.Module,
        weights_of: Weights,
        trained: Trained,
        *,
        queries: QueryTable,
        steps: int,
        teacher: Teacher | None = None,
        beta: float = 0.1,
        transfer: str = "bernoulli",
        balance: float = 0.0,
        weight_decay: float = 1e-2,
        bf16: bool = True,
    ) -> None:
        check_transfer_form(transfer)
        self.network = network
        self.weights_of = weights_of
        self.trained = {name: tensor for group, _ in trained for name, tensor in group.items()}
        self.queries = queries
        self.steps = steps
        self.teacher = teacher
        self.beta = beta
        self.transfer = transfer
        self.balance = balance
        self.bf16 = bf16
        self.step = 0
        self.skipped = 0
        self.rates = [rate for _, rate in trained]
        self.optimizer = torch.optim.AdamW(
            [{"params": list(group.values()), "lr": rate} for group, rate in trained], weight_decay=weight_decay
        )

    def train_step(self, samples: Sequence[Sample]) -> dict[str, float]:
        """Take one optimiser step on a batch; return the mean loss of each department present.

        A step whose gradients are not finite leaves all weights as they are.

        Raises:
            ValueError: many such steps in a row.
        """
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * schedule(self.step, self.steps)
        self.optimizer.zero_grad(set_to_none=True)
        losses = {}
        for department in sorted({sample.department for sample in samples}):
            own = [sample for sample in samples if sample.department == department]
            weights = self.weights_of(department)
            loss = torch.stack([self.loss(sample, weights) for sample in own]).sum()
            (loss / len(samples)).backward()
            losses[department] = loss.item() / len(own)
        if nn.utils.clip_grad_norm_(list(self.trained.values()), 1.0).isfinite():
            self.optimizer.step()
            self.skipped = 0
        else:  # instance norm divides by the spread of a channel, which can vanish on a small patch
            self.skipped += 1
            if self.skipped >= MOST_SKIPPED:
                raise ValueError(
                    f"the gradients of {self.skipped} steps in a row are not finite; set a smaller learning rate"
                )
        self.step += 1
        return losses

    def loss(self, sample: Sample, weights: Mapping[str, Tensor]) -> Tensor:
        """Compute the loss of one sample with a department's weights, differentiably: task plus beta times transfer."""
        image = sample.image[None].to(memory_format=torch.channels_last_3d)
        queries = self.queries.queries(sample.names, sample.modality)
        with torch.autocast(image.device.type, torch.bfloat16, enabled=self.bf16):
            logits = functional_call(self.network, dict(weights), (image, queries))
        annotated = None if sample.annotated is None else sample.annotated[None]
        loss = task_loss(logits.float(), sample.masks[None], annotated=annotated, balance=self.balance)
        probabilities = sample.teacher
        if probabilities is None and self.teacher is not None:
            with torch.no_grad(), torch.autocast(image.device.type, torch.bfloat16, enabled=self.bf16):
                probabilities = self.teacher(sample.image, sample.names, sample.modality)
        if probabilities is None:
            return loss
        return loss + self.beta * transfer_loss(logits.float(), probabilities[None].float(), form=self.transfer)

    def state(self) -> dict[str, Any]:
        """Everything that the next step depends on."""
        return {
            "step": self.step,
            "trained": {name: tensor.detach() for name, tensor in self.trained.items()},
            "optimizer": self.optimizer.state_dict(),
            "random": torch.get_rng_state(),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Take up a state.

        Raises:
            ValueError: it belongs to other tensors.
        """
        shapes = {name: tensor.shape for name, tensor in state.get("trained", {}).items()}
        if shapes != {name: tensor.shape for name, tensor in self.trained.items()}:
            raise ValueError("the checkpoint belongs to another network or other departments; remove it to start anew")
        with torch.no_grad():
            for name, tensor in self.trained.items():
                tensor.copy_(state["trained"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["random"])
        self.step = state["step"]


def run(
    trainer: Trainer,
    samples: Samples,
    *,
    batch_size: int,
    checkpoint: Path,
    report: Callable[[Progress], None],
    stop: Callable[[], bool],
    workers: int = 1,
) -> None:
    """Train to the end of the schedule, resuming from ``checkpoint`` where there is one.

    Args:
        trainer: to run.
        samples: stream to draw batches from.
        batch_size: samples a step.
        checkpoint: saved every minute, at a stop and at the end.
        report: told after every step.
        stop: asked after every step.
        workers: processes that make samples; 0 makes them in this one.

    Raises:
        Interrupted: ``stop`` said so; the state is saved.
    """
    state = load_checkpoint(checkpoint)
    if state is not None:
        trainer.load(state)
    first = trainer.step
    began = saved = time.monotonic()
    for batch in _batches(samples, trainer, batch_size, workers):
        losses = trainer.train_step(batch)
        now = time.monotonic()
        done = trainer.step - first
        left = (now - began) / done * (trainer.steps - trainer.step)
        report(Progress(trainer.step, trainer.steps, sum(losses.values()) / len(losses), losses, left))
        if stop():
            save_checkpoint(trainer.state(), checkpoint)
            raise Interrupted(f"stopped after step {trainer.step} of {trainer.steps}; run again to go on")
        if now - saved > SAVE_EVERY_S:
            save_checkpoint(trainer.state(), checkpoint)
            saved = now
    if trainer.step > first:
        save_checkpoint(trainer.state(), checkpoint)


def _batches(samples: Samples, trainer: Trainer, batch_size: int, workers: int) -> Iterable[list[Sample]]:
    indices = ShareOfSamples(trainer.step * batch_size, trainer.steps * batch_size)
    return DataLoader(
        samples,
        batch_size=batch_size,
        sampler=indices,
        num_workers=workers,
        collate_fn=list,
        generator=torch.Generator(),  # the loader's seed must not come from dropout's numbers: a resumed run draws anew
        worker_init_fn=_leave_signals_to_parent,
    )


def _leave_signals_to_parent(worker: int) -> None:
    # Ctrl+C reaches the whole process group; the parent finishes its step and then ends the workers by SIGTERM.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def schedule(step: int, steps: int) -> float:
    """Factor of the learning rate: linear warm-up over the first twentieth, then a cosine to zero."""
    warmup = max(1, steps // 20)
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


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
