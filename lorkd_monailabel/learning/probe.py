"""The losses of the same samples before and after the warm-up, and the ranks that follow, kept with the run.

Several processes measure a share of the samples each; what they found stands on the first one's disk.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from lorkd_monailabel.learning.checkpoint import load_checkpoint, save_checkpoint
from lorkd_monailabel.learning.ranks import RankChoice
from lorkd_monailabel.learning.samples import Samples
from lorkd_monailabel.learning.trainer import Trainer
from lorkd_monailabel.learning.training import Interrupted

SEED = 7919
"""Added to the seed of the training samples: the probe's samples are others."""

Losses = dict[str, list[float]]
"""Department -> loss of each of its samples."""

Choose = Callable[[dict[str, tuple[float, float]]], dict[str, RankChoice]]


class Probe:
    """Measures the departments before and after a warm-up and remembers what it found for a resumed run.

    Args:
        trainer: of the warm-up.
        samples: stream of the joint phase, whose departments, cases and kind of samples the probe's are.
        count: samples of each department.
        path: what was found; written whole or not at all.
        run: what this run was told, as far as losses and ranks depend on it.
        stop: asked after every sample.
        choose: department -> mean loss before and after; gives its rank.

    Raises:
        ValueError: a count below 1.
    """

    def __init__(
        self,
        trainer: Trainer,
        samples: Samples,
        *,
        count: int,
        path: Path,
        run: Mapping[str, Any],
        stop: Callable[[], bool],
        choose: Choose,
    ) -> None:
        if count < 1:
            raise ValueError(f"probe_samples {count} must be at least 1; set probe_samples in the config")
        self.trainer = trainer
        self.world = trainer.engine.world
        self.samples = samples
        self.count = count
        self.path = path
        self.run = dict(run)
        self.stop = stop
        self.choose = choose
        self.found: dict[str, Any] = {}

    def begin(self, checkpoint: Path) -> None:
        """Measure before the first step; a warm-up that left a checkpoint was measured then.

        Args:
            checkpoint: of the warm-up.

        Raises:
            ValueError: the checkpoint is there, but of another run than this; or ``choose`` can't.
            Interrupted: ``stop`` said so.
        """
        if not self.world.any(self.world.first and checkpoint.exists()):
            # whatever an earlier run found is of no concern to a new one
            before = self._losses()
            self.choose(means(finite_pairs(before, before)))  # refuses what it could not take after the warm-up
            self.found = {"run": self.run, "before": before}
            self._save()
            return
        self.found = self.world.share(load_checkpoint(self.path) if self.world.first else None) or {}
        if not self.found:
            raise ValueError(f"{checkpoint} is of a warm-up that began without a probe; remove it to start anew")
        known = self.found["run"]
        other = [name for name in self.run if known.get(name) != self.run[name]]
        if other:
            raise ValueError(
                f"{checkpoint} is of a run with {other[0]} {known.get(other[0])}, this one has {self.run[other[0]]}; "
                "set it back, or remove the file to start anew"
            )

    def finish(self) -> dict[str, RankChoice]:
        """Measure after the last step and choose the ranks, or give those that were chosen then.

        Raises:
            ValueError: ``choose`` can't.
            Interrupted: ``stop`` said so.
        """
        if "choices" not in self.found:
            pairs = finite_pairs(self.found["before"], self._losses())
            self.found["choices"] = {
                department: {**asdict(choice), "samples": len(pairs[department])}
                for department, choice in self.choose(means(pairs)).items()
            }
            self._save()
        return {department: RankChoice(**choice) for department, choice in self.found["choices"].items()}

    def _save(self) -> None:
        if self.world.first:
            save_checkpoint(self.found, self.path)

    def _losses(self) -> Losses:
        modes = [(module, module.training) for module in self.trainer.network.modules()]
        self.trainer.network.eval()  # dropout would draw anew each time
        try:
            return {department: self._losses_of(department) for department in self.samples.cases}
        finally:
            for module, mode in modes:
                module.training = mode

    @torch.no_grad()
    def _losses_of(self, department: str) -> list[float]:
        own = self.samples.only(department, seed=self.samples.seed + SEED)
        weights = self.trainer.weights(department)
        losses = [0.0] * self.count
        for start in range(0, self.count, self.world.size):  # all processes ask a teacher that is spread over them
            index = start + self.world.rank
            loss = self.trainer.loss(own[index % self.count], weights).item()
            if index < self.count:
                losses[index] = loss
            if self.world.any(self.stop()):
                raise Interrupted("stopped while the losses of the departments were measured; run again to go on")
        return self.world.sum(losses)


def finite_pairs(before: Losses, after: Losses) -> dict[str, list[tuple[float, float]]]:
    """Pair each department's losses before and after, over the samples whose loss is finite both times.

    A patch without any contrast can have a loss that is not a number. Where all of a department's are, all are kept.
    """
    paired = {department: list(zip(losses, after[department], strict=True)) for department, losses in before.items()}
    return {
        department: [pair for pair in pairs if all(map(math.isfinite, pair))] or pairs
        for department, pairs in paired.items()
    }


def means(pairs: Mapping[str, list[tuple[float, float]]]) -> dict[str, tuple[float, float]]:
    """Give the mean loss of each department before and after."""
    return {
        department: (sum(first for first, _ in own) / len(own), sum(second for _, second in own) / len(own))
        for department, own in pairs.items()
    }
