"""The decomposition of a foundation into one base and an expert for each department (LoRKD, Algorithm 1).

First the base alone is warmed up on all departments; then base and experts learn together, each sample through the
weights of its own department. Both phases follow the task and the foundation. Ranks are equal (LoRKD), or follow from
how much the warm-up reduced each department's loss (LoRKD*).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lorkd_monailabel.experts import Base, Expert, fuse, tensors_sha256
from lorkd_monailabel.learning.engine import Engine
from lorkd_monailabel.learning.losses import Objective
from lorkd_monailabel.learning.probe import Probe
from lorkd_monailabel.learning.ranks import RankChoice, RankRule, check_rank, choose_ranks, needs_losses
from lorkd_monailabel.learning.samples import Samples
from lorkd_monailabel.learning.trainer import Trained, Trainer, Weights
from lorkd_monailabel.learning.training import Loop, Progress, run
from lorkd_monailabel.networks.low_rank import Factors, decomposable, layer_ranks, layer_scales, rank_limit
from lorkd_monailabel.networks.segmenter import Segmenter
from lorkd_monailabel.teachers.protocol import Teacher
from lorkd_monailabel.text_encoder import QueryTable
from lorkd_monailabel.volumes import three

PHASES = ("warmup", "joint")
"""Names of the two phases, and of their checkpoints."""

RANKS = "ranks"
"""Name of the file of ranks and of what led to them."""


class Decomposition:
    """A base network and the factors of its departments, as they are trained.

    Factors are there from the start where the ranks are known (LoRKD), or attached after the warm-up (LoRKD*).

    Args:
        network: the plain network of the base.
        ranks: see ``attach``; None leaves the base alone.
        decoder_multiplier: rank in the pixel decoder over that in the encoder.
        alpha: scale times rank.

    Raises:
        ValueError: see ``attach``; a multiplier below 1; or a layer that can't have factors.
    """

    def __init__(
        self,
        network: Segmenter,
        *,
        ranks: Mapping[str, int] | None = None,
        decoder_multiplier: int = 2,
        alpha: float = 16.0,
    ) -> None:
        self.network = network
        self.weights: dict[str, Tensor] = dict(network.named_parameters())
        self.layers = network.low_rank_weights()
        decomposable(network, self.layers)
        self.decoder_multiplier = decoder_multiplier
        self.alpha = alpha
        self.factors: dict[str, Factors] = {}
        layer_ranks(self.layers, 1, decoder_multiplier=decoder_multiplier)  # refuses before a warm-up, not after it
        self.attach(ranks or {})

    def attach(self, ranks: Mapping[str, int], *, layers: Mapping[str, Mapping[str, int]] | None = None) -> None:
        """Give departments factors, which start as no change of the base.

        Args:
            ranks: department -> rank in the encoder; less in layers that cannot use as much.
            layers: department -> weight -> rank of that layer alone, in place of what ``ranks`` makes of it.

        Raises:
            ValueError: a rank that no layer could use, or of an unknown department or layer.
        """
        chosen = layers or {}
        for department in chosen:
            if department not in ranks:
                raise ValueError(f"layers of {department!r} have ranks but the department has none; give it one")
        for department, rank in ranks.items():
            assert department not in self.factors
            own = self.spread(department, rank)
            for name, number in chosen.get(department, {}).items():
                if name not in own:
                    raise ValueError(f"{name!r} is no layer that an expert changes; use one of {', '.join(own)}")
                own[name] = number
            self.factors[department] = Factors(self.weights, ranks=own, scales=layer_scales(own, alpha=self.alpha))

    def spread(self, department: str, rank: int) -> dict[str, int]:
        """Spread a department's rank over the layers: name of the weight -> rank.

        Raises:
            ValueError: a rank that no layer could use.
        """
        check_rank(department, rank, limit=self.rank_limit)
        wanted = layer_ranks(self.layers, rank, decoder_multiplier=self.decoder_multiplier)
        # Layers with few inputs, as the first one of grey images, cannot use every rank.
        return {name: min(number, rank_limit(self.weights[name].shape)) for name, number in wanted.items()}

    @property
    def rank_limit(self) -> int:
        """The largest rank that any layer can use."""
        return max(rank_limit(self.weights[name].shape) for name in self.layers)

    def rank_of(self, department: str) -> int:
        """Give the rank of a department that has factors: the largest of its encoder layers."""
        return max(rank for name, rank in self.factors[department].ranks.items() if not self.layers[name])

    def weights_of(self, department: str) -> dict[str, Tensor]:
        """Fuse the weights of a department's network, differentiably.

        Raises:
            ValueError: the department has no factors.
        """
        if department not in self.factors:
            have = ", ".join(self.factors) or "none"
            raise ValueError(f"department {department!r} has no factors (there are: {have}); attach a rank to it first")
        factors = self.factors[department]
        return fuse(self.weights, factors.pairs(), factors.scales)

    def factor_tensors(self) -> dict[str, nn.Parameter]:
        """Name the factors of all departments for an optimiser."""
        return {
            f"{department}.{name}": tensor
            for department, factors in self.factors.items()
            for name, tensor in factors.named_parameters()
        }

    def load(self, base: Base, experts: Sequence[Expert]) -> None:
        """Go on from a published base and experts; departments without one start as the base.

        An expert brings its ranks along, layer by layer, unless its department has factors already.

        Raises:
            ValueError: they belong to another network, or an expert has other ranks than its department's factors.
        """
        shapes = {name: tensor.shape for name, tensor in base.weights.items()}
        if shapes != {name: tensor.shape for name, tensor in self.weights.items()}:
            raise ValueError("the store's base is another network; give the config the same network size")
        with torch.no_grad():
            for name, tensor in self.weights.items():
                tensor.copy_(base.weights[name])
        for expert in experts:
            if expert.department not in self.factors:
                if expert.ranks.keys() != self.layers.keys():
                    raise ValueError(
                        f"the expert of {expert.department} changes other layers than this network's; "
                        "give the config the same network size"
                    )
                own = Factors(self.weights, ranks=expert.ranks, scales=expert.scales)
                self.factors[expert.department] = own
            self.factors[expert.department].load_pairs(expert.factors)

    def base(
        self,
        *,
        network: Mapping[str, Any],
        window: int | tuple[int, int, int],
        query_space: str,
        about: Mapping[str, Any],
        intensities: str = "fixed",
        dtype: torch.dtype = torch.float32,
    ) -> Base:
        """Take the base out of training: detached copies on the CPU, of a type."""
        weights = {name: tensor.detach().cpu().to(dtype, copy=True) for name, tensor in self.weights.items()}
        return Base(
            network=dict(network),
            weights=weights,
            window=three(window),
            query_space=query_space,
            about=dict(about),
            intensities=intensities,
        )


def decompose(
    decomposition: Decomposition,
    samples: Samples,
    loop: Loop,
    *,
    warmup_samples: Samples,
    teacher: Teacher | None,
    queries: QueryTable,
    warmup_steps: int,
    steps: int,
    learning_rate: float,
    expert_learning_rate: float,
    objective: Objective,
    engine: Engine,
    folder: Path,
    report: Callable[[str], Callable[[Progress], None]],
    rule: RankRule | None = None,
    probe_samples: int = 16,
    ranked: Callable[[dict[str, RankChoice]], None] | None = None,
) -> dict[str, RankChoice]:
    """Run both phases; each resumes from its own checkpoint in ``folder``, with the ranks that it had.

    Args:
        decomposition: trained in place; departments that have factors keep them, the others get theirs by ``rule``.
        samples: stream of all departments, each asking for its own structures.
        loop: see there.
        warmup_samples: stream for the base, which may ask for those of every department.
        teacher: frozen; None where the samples bring a teacher's masks.
        queries: table of query vectors.
        warmup_steps: of the base alone.
        steps: of base and experts together.
        learning_rate: of the base.
        expert_learning_rate: of the factors.
        objective: see there.
        engine: how steps are computed.
        folder: of the checkpoints ``warmup.pt`` and ``joint.pt``, and of ``ranks.pt`` where losses were measured.
        report: name of a phase -> what to tell of its steps.
        rule: how departments come to their ranks; None is the rule of equal ranks with its own rank.
        probe_samples: of each department, whose loss is measured before and after the warm-up.
        ranked: told of the ranks, before the joint phase.

    Returns:
        Department -> its rank and why.

    Raises:
        Interrupted: the loop's ``stop`` said so; the state is saved.
        ValueError: ranks that the network can't have, or of an unknown department.
    """
    rule = rule or RankRule()
    departments = tuple(samples.cases)
    kept = {name: decomposition.rank_of(name) for name in departments if name in decomposition.factors}
    measure = needs_losses(rule, departments, kept=kept, limit=decomposition.rank_limit, warmup_steps=warmup_steps)
    told: dict[str, Any] = {**asdict(objective), "warmup_steps": warmup_steps}

    def trainer_of(weights_of: Weights | None, trained: Trained, length: int) -> Trainer:
        return Trainer(
            decomposition.network,
            weights_of,
            trained,
            queries=queries,
            steps=length,
            teacher=teacher,
            objective=objective,
            engine=engine,
        )

    def run_phase(name: str, trainer: Trainer, stream: Samples) -> None:
        run(trainer, stream, loop, checkpoint=folder / f"{name}.pt", report=report(name))

    def decide(losses: Mapping[str, tuple[float, float]] | None) -> dict[str, RankChoice]:
        return choose_ranks(rule, departments, losses=losses, kept=kept)

    def attach(choices: dict[str, RankChoice]) -> dict[str, RankChoice]:
        decomposition.attach({name: choice.rank for name, choice in choices.items() if name not in kept})
        if ranked is not None:
            ranked(choices)
        return choices

    warmup, joint = PHASES
    base = decomposition.weights
    choices = {} if measure else attach(decide(None))
    if warmup_steps:
        trainer = trainer_of(None, [(base, learning_rate)], warmup_steps)
        probe = None
        if measure:
            told |= {"probe_samples": probe_samples, "seed": samples.seed, "departments": list(departments)}
            told |= {"kept": kept, "rule": asdict(rule), "start": tensors_sha256(base)[:12]}
            told = engine.world.share(told)
            path = folder / f"{RANKS}.pt"
            probe = Probe(trainer, samples, count=probe_samples, path=path, run=told, stop=loop.stop, choose=decide)
            probe.begin(folder / f"{warmup}.pt")
        run_phase(warmup, trainer, warmup_samples)
        if probe is not None:
            choices = attach(probe.finish())
    if steps:
        trained: Trained = [(base, learning_rate), (decomposition.factor_tensors(), expert_learning_rate)]
        run_phase(joint, trainer_of(decomposition.weights_of, trained, steps), samples)
    return choices
