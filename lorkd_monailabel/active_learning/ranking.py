"""The order in which cases are offered, by what is known of them so far.

- ``uncertainty``: the least sure first.
- ``diversity``: the greedy k-center choice; what is labelled and what others work on are its centres.
- ``uncertainty_diversity``: the same choice with each distance multiplied by the case's uncertainty, so that neither a
  near-duplicate of a labelled case (distance 0) nor a strange case that the expert is sure of (uncertainty 0) comes
  early.

Cases that were not scored yet follow in their natural order. Where none was scored, ``diversity`` stands in, which
needs the images' features alone, and where these are missing too, the natural order.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lorkd_monailabel.active_learning.diversity import Pick, k_center

UNCERTAINTY, DIVERSITY, BOTH, ORDER = "uncertainty", "diversity", "uncertainty_diversity", "order"
STRATEGIES = (BOTH, UNCERTAINTY, DIVERSITY)

Feature = Sequence[float]


@dataclass(frozen=True)
class Known:
    """What is known of a case.

    Attributes:
        image: its id.
        uncertainty: 0 to 1; None where it was not scored.
        feature: of its image; None where it was not looked at.
    """

    image: str
    uncertainty: float | None = None
    feature: Feature | None = None


@dataclass(frozen=True)
class Ranked:
    """A case in its place.

    Attributes:
        image: its id.
        score: by which it has its place, larger is sooner; None where it has none.
        uncertainty: as known.
        distance: to the nearest centre when it got its place; None where it was not needed or there was no centre.
    """

    image: str
    score: float | None = None
    uncertainty: float | None = None
    distance: float | None = None


def ranked(
    cases: Sequence[Known], centres: Sequence[Feature], *, strategy: str, limit: int | None = None
) -> tuple[str, list[Ranked]]:
    """Put cases into order.

    Args:
        cases: to choose from.
        centres: features of the images that are labelled, or being labelled.
        strategy: of ``STRATEGIES``, or ``order``.
        limit: most places; None ranks all.

    Returns:
        The strategy that was followed, for what was asked for may lack its scores, and the cases.
    """
    count = len(cases) if limit is None else limit
    followed, scored = _followed(cases, strategy)
    chosen = _scored(scored, centres, followed, count)
    placed = {case.image for case in scored}
    rest = sorted((case for case in cases if case.image not in placed), key=lambda case: natural(case.image))
    return followed, [*chosen, *(Ranked(case.image, uncertainty=case.uncertainty) for case in rest)][:count]


def natural(image: str) -> tuple[list[int | str], str]:
    """Give the key by which ids sort with numbers in their order: ``case 2`` before ``case 10``."""
    parts = re.split(r"(\d+)", image)  # text and digits by turns, so that numbers meet numbers
    return [int(part) if index % 2 else part for index, part in enumerate(parts)], image


def _followed(cases: Sequence[Known], strategy: str) -> tuple[str, list[Known]]:
    """Find the strategy that can be followed, and the cases that it can place."""
    for each in dict.fromkeys((strategy, DIVERSITY)) if strategy in STRATEGIES else ():
        usable = [
            case
            for case in cases
            if (each == DIVERSITY or case.uncertainty is not None) and (each == UNCERTAINTY or case.feature is not None)
        ]
        if usable:
            return each, usable
    return ORDER, []


def _scored(cases: Sequence[Known], centres: Sequence[Feature], strategy: str, count: int) -> list[Ranked]:
    if not cases:
        return []
    cases = sorted(cases, key=lambda case: natural(case.image))  # what decides between equals
    if strategy == UNCERTAINTY:
        order = sorted(cases, key=lambda case: -(case.uncertainty or 0.0))[:count]
        return [Ranked(case.image, case.uncertainty, case.uncertainty) for case in order]
    points = np.array([case.feature for case in cases], dtype=np.float64)
    there = np.array(centres, dtype=np.float64).reshape(-1, points.shape[1])
    weights = np.array([1.0 if strategy == DIVERSITY else case.uncertainty or 0.0 for case in cases])
    return [
        _placed(cases[pick.row], pick, float(weights[pick.row]))
        for pick in k_center(points, there, weights=weights, count=count)
    ]


def _placed(case: Known, pick: Pick, weight: float) -> Ranked:
    score = None if pick.distance is None else weight * pick.distance
    return Ranked(case.image, score, case.uncertainty, pick.distance)
