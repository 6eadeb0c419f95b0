"""The decomposition of a foundation into one base and an expert for each department (LoRKD, Algorithm 1).

First the base alone is warmed up on all departments; then base and experts learn together, each sample through the
weights of its own department. Both phases follow the task and the foundation.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lorkd_monailabel.experts import Base, Expert, fuse
from lorkd_monailabel.learning.samples import Samples
from lorkd_monailabel.learning.training import Progress, Trained, Trainer, Weights, run
from lorkd_monailabel.networks.low_rank import Factors, layer_ranks, layer_scales, rank_limit
from lorkd_monailabel.networks.segmenter import Segmenter
from lorkd_monailabel.text_encoder import QueryTable

PHASES = ("warmup", "joint")
"""Names of the two phases, and of their checkpoints."""


class Decomposition:
    """A base network and the factors of its departments, as they are trained.

    Args:
        network: the plain network of the base.
        ranks: department -> rank of its expert in the encoder; less in layers that cannot use as much.
        decoder_multiplier: rank in the pixel decoder over that in the encoder.
        alpha: scale times rank.
    """

    def __init__(
        self, network: Segmenter, *, ranks: Mapping[str, int], decoder_multiplier: int = 2, alpha: float = 16.0
    ) -> None:
        self.network = network
        self.weights: dict[str, Tensor] = dict(network.named_parameters())
        layers = network.low_rank_weights()
        self.factors = {}
        for department, rank in ranks.items():
            wanted = layer_ranks(layers, rank, decoder_multiplier=decoder_multiplier)
            # Layers with few inputs, as the first one of grey images, cannot use every rank.
            own = {name: min(number, rank_limit(self.weights[name].shape)) for name, number in wanted.items()}
            self.factors[department] = Factors(self.weights, ranks=own, scales=layer_scales(own, alpha=alpha))

    def weights_of(self, department: str) -> dict[str, Tensor]:
        """Fuse the weights of a department's network, differentiably."""
        factors = self.factors[department]
        return fuse(self.weights, factors.pairs(), factors.scales)

    def factor_tensors(self, departments: Sequence[str] = ()) -> dict[str, nn.Parameter]:
        """Name the factors of departments (of all, if none is named) for an optimiser."""
        return {
            f"{department}.{name}": tensor
            for department in departments or self.factors
            for name, tensor in self.factors[department].named_parameters()
        }

    def load(self, base: Base, experts: Sequence[Expert]) -> None:
        """Go on from a published base and experts; departments without one start as the base.

        Raises:
            ValueError: they belong to another network, or an expert has other ranks.
        """
        shapes = {name: tensor.shape for name, tensor in base.weights.items()}
        if shapes != {name: tensor.shape for name, tensor in self.weights.items()}:
            raise ValueError("the store's base is another network; give the config the same network size")
        with torch.no_grad():
            for name, tensor in self.weights.items():
                tensor.copy_(base.weights[name])
        for expert in experts:
            self.factors[expert.department].load_pairs(expert.factors)

    def base(
        self,
        *,
        network: Mapping[str, Any],
        window: int,
        query_space: str,
        about: Mapping[str, Any],
        dtype: torch.dtype = torch.float32,
    ) -> Base:
        """Take the base out of training: detached copies on the CPU, of a type."""
        weights = {name: tensor.detach().cpu().to(dtype, copy=True) for name, tensor in self.weights.items()}
        return Base(network=dict(network), weights=weights, window=window, query_space=query_space, about=dict(about))


def decompose(
    decomposition: Decomposition,
    samples: Samples,
    *,
    warmup_samples: Samples,
    foundation: nn.Module,
    queries: QueryTable,
    warmup_steps: int,
    steps: int,
    batch_size: int,
    learning_rate: float,
    expert_learning_rate: float,
    beta: float,
    balance: float,
    bf16: bool,
    folder: Path,
    report: Callable[[str], Callable[[Progress], None]],
    stop: Callable[[], bool],
    workers: int = 1,
) -> None:
    """Run both phases; each resumes from its own checkpoint in ``folder``.

    Args:
        decomposition: trained in place.
        samples: stream of all departments, each asking for its own structures.
        warmup_samples: stream for the base, which may ask for those of every department.
        foundation: frozen teacher.
        queries: table of query vectors.
        warmup_steps: of the base alone.
        steps: of base and experts together.
        batch_size: samples a step.
        learning_rate: of the base.
        expert_learning_rate: of the factors.
        beta: weight of the transfer loss.
        balance: of the cross-entropy, see ``task_loss``.
        bf16: train under bfloat16 autocast.
        folder: of the checkpoints ``warmup.pt`` and ``joint.pt``.
        report: name of a phase -> what to tell of its steps.
        stop: asked after every step.
        workers: processes that make samples.

    Raises:
        Interrupted: ``stop`` said so; the state is saved.
    """
    base = decomposition.weights
    factors = decomposition.factor_tensors()
    phases: tuple[tuple[str, int, Samples, Trained, Weights], ...] = (
        (PHASES[0], warmup_steps, warmup_samples, [(base, learning_rate)], lambda department: base),
        (
            PHASES[1],
            steps,
            samples,
            [(base, learning_rate), (factors, expert_learning_rate)],
            decomposition.weights_of,
        ),
    )
    for name, length, stream, trained, weights_of in phases:
        if length == 0:
            continue
        trainer = Trainer(
            decomposition.network,
            weights_of,
            trained,
            queries=queries,
            steps=length,
            foundation=foundation,
            beta=beta,
            balance=balance,
            bf16=bf16,
        )
        run(
            trainer,
            stream,
            batch_size=batch_size,
            checkpoint=folder / f"{name}.pt",
            report=report(name),
            stop=stop,
            workers=workers,
        )
