"""Intensities: what the networks expect of a volume's values, and which modality they speak of."""

from typing import Literal

import numpy as np

INTENSITIES = ("fixed", "sat")
"""Ways to normalise: this project's own, and that of SAT and of the released LoRKD networks."""


def normalise(array: np.ndarray, modality: str, intensities: str = "fixed") -> np.ndarray:
    """Brings intensities of any shape to what the networks expect, as a new float32 array.

    CT is clipped to [-500, 1000] HU, MRI to its 0.5th and 99.5th percentile. Then "fixed" takes 50 off CT and divides
    by 200, and makes MRI its z-score; "sat" makes the z-score of both, with percentiles, mean and deviation of the
    smallest box that holds every voxel above 0, to which SAT crops. Where one value is left, all is 0.

    Raises:
        ValueError: the modality is neither "ct" nor "mri", or the intensities are unknown.
    """
    if modality not in ("ct", "mri"):
        raise ValueError(f"modality {modality!r} must be ct or mri; read the volume with read_volume")
    if intensities not in INTENSITIES:
        raise ValueError(f"intensities {intensities!r} must be one of {', '.join(INTENSITIES)}")
    result = np.array(array, dtype=np.float32)
    if result.size == 0:
        return result
    inside = result[_box_above_0(result)] if intensities == "sat" else result  # a view: what changes one, changes both
    low, high = (-500.0, 1000.0) if modality == "ct" else np.percentile(inside, (0.5, 99.5))
    np.clip(result, np.float32(low), np.float32(high), out=result)
    if (modality, intensities) == ("ct", "fixed"):
        result -= np.float32(50)
        result /= np.float32(200)
        return result
    result -= np.float32(inside.mean(dtype=np.float64))
    deviation = float(inside.std(dtype=np.float64))
    return result / np.float32(deviation) if deviation > 0 else np.zeros_like(result)


def _box_above_0(array: np.ndarray) -> tuple[slice, ...]:
    """The smallest box of all voxels above 0; everything where there is none."""
    above = array > 0
    box = []
    for axis in range(array.ndim):
        found = np.flatnonzero(above.any(axis=tuple(other for other in range(array.ndim) if other != axis)))
        box.append(slice(found[0], found[-1] + 1) if len(found) else slice(None))
    return tuple(box)


def guess_modality(array: np.ndarray) -> Literal["ct", "mri"]:
    """Guesses CT or MRI from intensities: CT where at least 1 % of the voxels are -50 or less, else MRI.

    A field of view in Hounsfield units nearly always holds that much air (-1000), lung or fat (-100). Magnitudes of
    magnetic resonance are not negative, but for the few voxels where resampling by splines overshot, which is why a
    share decides and not the minimum. A CT stored without its offset must be named.
    """
    return "ct" if array.size and np.count_nonzero(array <= -50) >= 0.01 * array.size else "mri"
