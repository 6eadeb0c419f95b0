"""How sure an expert is of a case: entropy of its probabilities, and disagreement with another network.

The entropy of the predicted class is the classic measure of uncertainty sampling (Settles, Active Learning Literature
Survey, 2009, section 3.1) and the "max entropy" of Gal, Islam and Ghahramani (Deep Bayesian Active Learning with Image
Data, ICML 2017), here of one pass of the network without dropout. Masks are independent, so that each voxel
has two classes for each structure.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lorkd_monailabel.label_maps import THRESHOLD

NEAR_MM = 10.0
"""How far from a mask its entropy is looked at: far away all networks are sure, and large volumes would seem safe."""


def mean_entropy(probabilities: Tensor, spacing_mm: Sequence[float], *, near_mm: float = NEAR_MM) -> float:
    """Give the mean over structures of the mean entropy, in bits, of the voxels near each mask.

    A mask is where the probability is above one half; where that is nowhere, its most probable voxel stands for it, so
    that a structure which was nearly found counts as uncertain, and one that is certainly absent as certain.

    Args:
        probabilities: ``(N, X, Y, Z)``, one for each structure, N at least 1.
        spacing_mm: of the voxels along X, Y and Z.
        near_mm: along each axis; a voxel is near a mask that begins within it.

    Returns:
        From 0, certain everywhere, to 1, as good as a coin.
    """
    means = []
    for probability in probabilities:
        mask = probability > THRESHOLD
        if not mask.any():
            mask = torch.zeros_like(mask)
            mask.view(-1)[probability.argmax()] = True
        means.append(binary_entropy(probability[near(mask, spacing_mm, near_mm)]).mean().item())
    return math.fsum(means) / len(means)


def binary_entropy(probability: Tensor) -> Tensor:
    """Give the entropy in bits of events of these probabilities."""
    p = probability.double().clamp(0, 1)
    return -(torch.xlogy(p, p) + torch.xlogy(1 - p, 1 - p)) / math.log(2)


def near(mask: Tensor, spacing_mm: Sequence[float], distance_mm: float) -> Tensor:
    """Widen a mask ``(X, Y, Z)`` by a distance along each axis, in whole voxels and at least one."""
    widened = mask.float()[None, None]
    for axis, spacing in enumerate(spacing_mm):
        reach = max(1, math.floor(distance_mm / spacing + 1e-6))
        kernel, padding = [1, 1, 1], [0, 0, 0]
        kernel[axis], padding[axis] = 2 * reach + 1, reach
        widened = torch.nn.functional.max_pool3d(widened, kernel, stride=1, padding=padding)
    return widened[0, 0] > 0


def disagreement(one: Tensor, other: Tensor) -> float:
    """Give 1 - Dice of the masks of two networks, averaged over structures: query by committee with two members.

    Two members are the smallest committee (Seung, Opper and Sompolinsky, Query by Committee, COLT 1992); Dice takes the
    place of the votes, as segmentations are compared by it. Masks that are both empty agree.

    Args:
        one: probabilities ``(N, X, Y, Z)``.
        other: likewise, of the same structures on the same grid.
    """
    distances = []
    for a, b in zip(one > THRESHOLD, other > THRESHOLD, strict=True):
        total = int(a.sum()) + int(b.sum())
        distances.append(1 - 2 * int((a & b).sum()) / total if total else 0.0)
    return math.fsum(distances) / len(distances)
