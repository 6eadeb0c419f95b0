"""One optimiser step: of a foundation, of base and experts together, of one expert alone.

What differs is which weights a department's plain network has (``weights_of``) and which of them are trained. In a step
every department present runs through ``torch.func.functional_call`` with its own weights, and gradients add up: with
normalisation per sample this is exactly the mixed batch of LoRKD's EKS convolution, with one department's activations
in memory at a time. A department that is absent gets no gradient and does not move.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from lorkd_monailabel.departments import DEPARTMENT_IDS
from lorkd_monailabel.learning.engine import BACKEND, Engine, OutOfMemory, check_compiler, is_out_of_memory
from lorkd_monailabel.learning.losses import Objective, task_loss, transfer_loss
from lorkd_monailabel.learning.samples import Sample
from lorkd_monailabel.learning.sharding import gathered, is_sharded, placed, placed_optimizer, whole
from lorkd_monailabel.teachers.protocol import Teacher
from lorkd_monailabel.text_encoder import QueryTable

MOST_SKIPPED = 20

Weights = Callable[[str], Mapping[str, Tensor]]
"""Department -> the weights of its plain network."""

Trained = Sequence[tuple[Mapping[str, Tensor], float]]
"""Groups of named tensors with their learning rates."""


class Trainer:
    """Optimises named tensors so that each department's network does its task and follows a teacher.

    Network and trained tensors are moved, in place, to the device of the engine's world.

    Args:
        network: plain network that is called with a department's weights.
        weights_of: department -> weights, differentiable in the trained tensors; None: the network has its own.
        trained: groups of named tensors with their learning rates.
        queries: table of query vectors.
        teacher: frozen, on the same device; samples that bring a teacher's masks need none. None trains the others on
            the task alone.
        objective: see there.
        weight_decay: of AdamW.
        steps: length of the schedule: linear warm-up over a twentieth, then cosine to zero.
        engine: how steps are computed.

    Raises:
        ValueError: nothing can be compiled here.
    """

    def __init__(
        self,
        network: nn.Module,
        weights_of: Weights | None,
        trained: Trained,
        *,
        queries: QueryTable,
        steps: int,
        teacher: Teacher | None = None,
        objective: Objective | None = None,
        weight_decay: float = 1e-2,
        engine: Engine | None = None,
    ) -> None:
        self.engine = engine or Engine()
        self.device = self.engine.world.device
        self.network = network.to(self.device)
        self.weights_of = weights_of
        self.trained = {name: tensor for group, _ in trained for name, tensor in group.items()}
        for tensor in self.trained.values():
            if not is_sharded(tensor):
                tensor.data = tensor.data.to(self.device)
        self.queries = queries
        self.steps = steps
        self.teacher = teacher
        self.objective = objective or Objective()
        self.step = 0
        self.skipped = 0
        self.dropout_seed = int(torch.randint(2**31, ()))
        self.rates = [rate for _, rate in trained]
        self.optimizer = torch.optim.AdamW(
            [{"params": list(group.values()), "lr": rate} for group, rate in trained], weight_decay=weight_decay
        )
        self.average = {name: tensor.detach().clone() for name, tensor in self.trained.items() if self.engine.ema}
        self.run_network: Callable[..., Tensor] = self._run_network
        if self.engine.compile:
            check_compiler(self.device)
            self.run_network = torch.compile(self._run_network, backend=BACKEND)

    @property
    def sharded(self) -> bool:
        """Whether what is trained is spread over the processes."""
        return any(map(is_sharded, self.trained.values()))

    def weights(self, department: str) -> Mapping[str, Tensor] | None:
        """Give the weights of a department's network; None where the network has its own."""
        return self.weights_of(department) if self.weights_of else None

    def train_step(self, samples: Sequence[Sample]) -> dict[str, float]:
        """Take one optimiser step on this process's share of a batch; the shares of all are equally large.

        A step whose gradients are not finite leaves all weights as they are.

        Returns:
            The mean loss of each department present on any process.

        Raises:
            OutOfMemory: on all processes, where one had too little for its gradients.
            ValueError: many steps in a row that are not finite.
        """
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * schedule(self.step, self.steps)
        self.optimizer.zero_grad(set_to_none=True)
        lacking, own = "", {}
        try:
            own = self._backward(samples)
        except (RuntimeError, MemoryError) as error:
            if self.engine.shard or not is_out_of_memory(error):  # while weights are gathered nobody can wait for us
                raise
            lacking = str(error).partition("\n")[0] or type(error).__name__
        losses = self._means(own, lacking=lacking)
        if not self.sharded:
            self.engine.world.average_gradients(self.trained.values())
        self._move()
        self.step += 1
        return losses

    def _backward(self, samples: Sequence[Sample]) -> dict[str, list[float]]:
        """Leave the mean gradient of samples in the trained tensors; return each department's losses."""
        world = self.engine.world
        first = self.step * len(samples) * world.size + world.rank
        numbered = [(first + world.size * place, sample) for place, sample in enumerate(samples)]
        numbered.sort(key=lambda pair: pair[1].department)
        # FSDP2 sums up one backward pass for each forward pass
        size = 1 if self.sharded else len(samples) // self.engine.accumulate
        losses: dict[str, list[float]] = {}
        for start in range(0, len(numbered), size):
            for department, group in groupby(numbered[start : start + size], key=lambda pair: pair[1].department):
                weights = self.weights(department)
                own = []
                for index, sample in group:
                    self._seed_dropout(index)
                    own.append(self.loss(sample, weights))
                (torch.stack(own).sum() / len(samples)).backward()
                losses.setdefault(department, []).extend(loss.item() for loss in own)
        return losses

    def _seed_dropout(self, index: int) -> None:
        """Make dropout a function of the sample's global number: for any number of processes and parts the same."""
        torch.manual_seed(int(np.random.SeedSequence((self.dropout_seed, index)).generate_state(1)[0]))

    def _means(self, losses: Mapping[str, Sequence[float]], *, lacking: str) -> dict[str, float]:
        """Give the mean loss of each department over all processes, unless one of them lacked memory."""
        own = [losses.get(department, ()) for department in DEPARTMENT_IDS]
        numbers = self.engine.world.sum([bool(lacking), *map(sum, own), *map(len, own)])
        if numbers[0]:
            self.optimizer.zero_grad(set_to_none=True)
            raise OutOfMemory(lacking or "on another process")
        sums, counts = numbers[1 : 1 + len(own)], numbers[1 + len(own) :]
        pairs = sorted(zip(DEPARTMENT_IDS, sums, counts, strict=True))
        return {department: total / count for department, total, count in pairs if count}

    def _move(self) -> None:
        norm = nn.utils.clip_grad_norm_(list(self.trained.values()), 1.0)
        if whole(norm).isfinite():
            self.optimizer.step()
            self.skipped = 0
            # A short run would be averaged with where it began: the decay rises to its value.
            decay = min(self.engine.ema, (1 + self.step) / (10 + self.step))
            for name, tensor in self.average.items():
                tensor.lerp_(self.trained[name].detach(), 1 - decay)
            return
        # instance norm divides by the spread of a channel, which can vanish on a small patch
        self.skipped += 1
        if self.skipped >= MOST_SKIPPED:
            raise ValueError(
                f"the gradients of {self.skipped} steps in a row are not finite; set a smaller learning rate"
            )

    def loss(self, sample: Sample, weights: Mapping[str, Tensor] | None) -> Tensor:
        """Compute the loss of one sample with a department's weights, differentiably: task plus beta times transfer."""
        sample = on_device(sample, self.device)
        logits = self.logits(sample, weights).float()
        annotated = None if sample.annotated is None else sample.annotated[None]
        loss = task_loss(logits, sample.masks[None], annotated=annotated, balance=self.objective.balance)
        probabilities = sample.teacher
        if probabilities is None and self.teacher is not None:
            with torch.no_grad(), torch.autocast(self.device.type, torch.bfloat16, enabled=self.engine.bf16):
                probabilities = self.teacher(sample.image, sample.names, sample.modality)
        if probabilities is None:
            return loss
        form = self.objective.transfer
        return loss + self.objective.beta * transfer_loss(logits, probabilities[None].float(), form=form)

    def logits(self, sample: Sample, weights: Mapping[str, Tensor] | None) -> Tensor:
        """Run the network with a department's weights on a sample of the same device; ``(1, N, X, Y, Z)``."""
        image = sample.image[None].to(memory_format=torch.channels_last_3d)
        queries = self.queries.queries(sample.names, sample.modality).to(self.device)
        if self.engine.compile:  # sides of any length are more than inductor can take; numbers of queries are not
            torch._dynamo.mark_static(image)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.engine.bf16):
            return self.run_network(None if weights is None else dict(weights), image, queries)

    def _run_network(self, weights: dict[str, Tensor] | None, image: Tensor, queries: Tensor) -> Tensor:
        if weights is None:
            return self.network(image, queries)
        return functional_call(self.network, weights, (image, queries))

    def finish(self) -> None:
        """Put the averages in the place of the trained tensors, if there are any."""
        with torch.no_grad():
            for name, tensor in self.average.items():
                self.trained[name].copy_(tensor)

    def state(self) -> dict[str, Any]:
        """Everything that the next step depends on, on the first process; the others must call it too.

        Tensors are whole whatever the number of processes.
        """
        state: dict[str, Any] = {
            "step": self.step,
            "trained": {name: tensor.detach() for name, tensor in self.trained.items()},
            "optimizer": self.optimizer.state_dict(),
            "random": torch.get_rng_state(),
            "dropout_seed": self.dropout_seed,
        }
        if self.average:
            state["average"] = self.average
        return gathered(state, self.engine.world)

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
                tensor.copy_(placed(state["trained"][name], tensor))
            averages = state.get("average", state["trained"])  # a run that was begun without begins it here
            for name, tensor in self.average.items():
                tensor.copy_(placed(averages[name], tensor))
        self.optimizer.load_state_dict(placed_optimizer(state["optimizer"], list(self.trained.values())))
        torch.set_rng_state(state["random"])
        self.dropout_seed = state.get("dropout_seed", self.dropout_seed)
        self.step = state["step"]


def on_device(sample: Sample, device: torch.device) -> Sample:
    """Bring the tensors of a sample to a device."""
    return replace(
        sample,
        image=sample.image.to(device),
        masks=sample.masks.to(device),
        annotated=None if sample.annotated is None else sample.annotated.to(device),
        teacher=None if sample.teacher is None else sample.teacher.to(device),
    )


def schedule(step: int, steps: int) -> float:
    """Factor of the learning rate: linear warm-up over the first twentieth, then a cosine to zero."""
    warmup = max(1, steps // 20)
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
