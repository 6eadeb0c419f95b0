"""Simulated annotation: train, choose, label, again. What a strategy chooses follows from its seed alone."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np

from lorkd_monailabel.active_learning.ranking import DIVERSITY, UNCERTAINTY, Known, ranked
from train.experiments.active_learning.plan import Plan

RANDOM = "random"


class Judged(Protocol):
    """What was learned from labelled cases."""

    @property
    def mean_dice(self) -> float:
        """On the validation cases."""


Expert = TypeVar("Expert", bound=Judged)


@dataclass(frozen=True)
class Round:
    """One training.

    Attributes:
        department: id.
        strategy: that chose the cases.
        seed: of the run.
        cases: that were labelled.
        dice: mean over structures, of the validation cases.
    """

    department: str
    strategy: str
    seed: int
    cases: int
    dice: float


def simulate(
    size: int,
    plan: Plan,
    *,
    department: str,
    strategy: str,
    seed: int,
    learn: Callable[[Sequence[int], int], Expert],
    uncertainties: Callable[[Expert, Sequence[int]], Mapping[int, float]],
    features: Callable[[], Mapping[int, Sequence[float]]],
) -> Iterator[Round]:
    """Annotate a pool, and yield every training.

    Args:
        size: cases in the pool, which are numbered.
        plan: of the experiment.
        department: id.
        strategy: of the plan's.
        seed: see ``Plan``.
        learn: gives what is learned from labelled cases with a seed.
        uncertainties: gives an expert's uncertainty of cases.
        features: gives the feature of every case; asked for when something has been learned.
    """
    labelled = first_cases(size, plan.start, seed)
    for turn in range(plan.rounds):
        expert = learn(labelled, seed)
        yield Round(department, strategy, seed, len(labelled), expert.mean_dice)
        left = [number for number in range(size) if number not in labelled]
        if not left or turn == plan.rounds - 1:
            return
        if strategy == RANDOM:
            order = np.random.default_rng((seed, 1)).permutation(size).tolist()
            labelled += [number for number in order if number in left][: plan.each]
            continue
        unsure = uncertainties(expert, left) if strategy != DIVERSITY else {}
        seen = features() if strategy != UNCERTAINTY else {}
        known = [Known(str(number), unsure.get(number), seen.get(number)) for number in left]
        centres = [seen[number] for number in labelled if number in seen]
        labelled += [int(case.image) for case in ranked(known, centres, strategy=strategy, limit=plan.each)[1]]


def first_cases(size: int, start: int, seed: int) -> list[int]:
    """Draw the cases that all strategies of a seed begin with."""
    drawn: list[int] = np.random.default_rng(seed).permutation(size)[:start].tolist()
    return drawn
