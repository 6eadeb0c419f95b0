"""Cases that are unlike those that are labelled: the greedy k-center choice.

Sener and Savarese, Active Learning for Convolutional Neural Networks: A Core-Set Approach (ICLR 2018), algorithm 1: the
case whose distance to the nearest chosen one is largest is chosen next. With weights it is the greedy choice of the
weighted p-centre problem (Dyer and Frieze, Operations Research Letters 3, 1985): distances count by the case's weight.
"""

from typing import NamedTuple

import numpy as np


class Pick(NamedTuple):
    """A case that was chosen.

    Attributes:
        row: of the points.
        distance: to the nearest centre when it was chosen; None for the very first, which had none.
    """

    row: int
    distance: float | None


def k_center(points: np.ndarray, centres: np.ndarray, *, weights: np.ndarray, count: int) -> list[Pick]:
    """Choose points one after the other; each becomes a centre for those after it.

    Without any centre the first is the one of the largest weight, among equals the one nearest to the mean of all.

    Args:
        points: ``(n, d)``.
        centres: ``(m, d)``, those that are there already; m may be 0.
        weights: ``(n,)``, not negative.
        count: most points to choose.
    """
    picks: list[Pick] = []
    left = np.ones(len(points), bool)
    distances = np.full(len(points), np.inf)
    for centre in centres:
        distances = np.minimum(distances, np.linalg.norm(points - centre, axis=1))
    while len(picks) < min(count, len(points)):
        if np.isinf(distances).all():
            central = np.linalg.norm(points - points.mean(axis=0), axis=1)
            index, distance = int(np.lexsort((central, -weights))[0]), None
        else:
            index = int(np.argmax(np.where(left, weights * distances, -1.0)))
            distance = float(distances[index])
        picks.append(Pick(index, distance))
        left[index] = False
        distances = np.minimum(distances, np.linalg.norm(points - points[index], axis=1))
    return picks
