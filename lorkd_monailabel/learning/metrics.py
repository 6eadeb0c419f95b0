"""How well a mask agrees with a reference: Dice of the volumes (DSC) and of the surfaces (NSD).

Empty sets count as SAT and LoRKD count them: both empty is 1, one empty is 0.
"""

import warnings
from collections.abc import Sequence

import numpy as np

SPACING_DIGITS = 5
"""Of a spacing in mm: float32 affines make 1.0000001 of 1, which would put a neighbour beyond a tolerance of 1 mm."""


def dice(prediction: np.ndarray, reference: np.ndarray) -> float:
    """Compute the Dice coefficient of two masks of one shape.

    Both empty gives 1, one empty gives 0 (the convention of SAT and LoRKD).
    """
    total = int(np.count_nonzero(prediction)) + int(np.count_nonzero(reference))
    if total == 0:
        return 1.0
    return 2 * int(np.count_nonzero(prediction & reference)) / total


def surface_dice(
    prediction: np.ndarray, reference: np.ndarray, *, spacing_mm: Sequence[float], tolerance_mm: float = 1.0
) -> float:
    """Compute the share of both surfaces that lies within a tolerance of the other one (NSD).

    The surface Dice of Nikolov et al. 2018 (arXiv 1809.04430): surfaces run between voxel centres, and each element
    counts by its area in mm². The mask ends at the border of the volume, so there is a surface there. SAT and LoRKD use
    DeepMind's package surface-distance. This is MONAI's ``compute_surface_dice`` with subvoxels, which follows it: the
    two agreed to 1e-7 (surface-distance 0.1, MONAI 1.6.1) on shifted boxes, single voxels, masks at the border and
    random shapes with anisotropic spacing, and MONAI is there anyway. Without subvoxels MONAI counts voxels instead of
    areas, which is another number.

    Both empty gives 1, one empty gives 0 (the convention of SAT and LoRKD).

    Args:
        prediction: boolean mask ``(X, Y, Z)``.
        reference: boolean mask of the same shape.
        spacing_mm: of the voxels along X, Y and Z.
        tolerance_mm: distance up to which an element agrees.

    Raises:
        ValueError: shapes differ, or a spacing or the tolerance is out of range.
    """
    if prediction.shape != reference.shape or prediction.ndim != 3:
        raise ValueError(f"masks {prediction.shape} and {reference.shape} must be (X, Y, Z) of one grid; resample one")
    if len(spacing_mm) != 3 or not min(spacing_mm) > 0 or not 0 <= tolerance_mm < np.inf:
        raise ValueError(
            f"spacing {tuple(spacing_mm)} must be three lengths over 0, tolerance {tolerance_mm} mm finite"
        )
    here, there = prediction.any(), reference.any()
    if not here or not there:
        return float(here == there)
    # here, as the import of monai costs seconds, which a Dice does not need
    import torch
    from monai.metrics.surface_dice import compute_surface_dice

    box = _box(prediction | reference)  # beyond it monai takes all for empty, as it is
    masks = [
        torch.from_numpy(np.ascontiguousarray(mask[box], dtype=bool))[None, None] for mask in (prediction, reference)
    ]
    spacing = [round(float(length), SPACING_DIGITS) for length in spacing_mm]
    with warnings.catch_warnings():
        # monai 1.6.1 gives itself an argument that it deprecated
        warnings.filterwarnings("ignore", ".*always_return_as_numpy", FutureWarning)
        result = compute_surface_dice(
            *masks, class_thresholds=[tolerance_mm], include_background=True, spacing=spacing, use_subvoxels=True
        )
    return float(result)


def _box(mask: np.ndarray) -> tuple[slice, ...]:
    """Give the smallest box that holds all of a mask that is not empty."""
    where = (np.flatnonzero(mask.any(axis=tuple(other for other in range(3) if other != axis))) for axis in range(3))
    return tuple(slice(int(found[0]), int(found[-1]) + 1) for found in where)
