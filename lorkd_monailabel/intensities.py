"""Intensities: what the networks expect of a volume's values, and which modality they speak of."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from lorkd_monailabel.cores import each, pieces

INTENSITIES = ("fixed", "sat")
"""Ways to normalise: this project's own, and that of SAT and of the released LoRKD networks."""

_CT = np.float32(-500), np.float32(1000)


@dataclass(frozen=True)
class Scaling:
    """What is done to each voxel alone: it is clipped to [low, high], loses the centre, and is divided by the spread.

    Attributes:
        low: the lowest value that is kept.
        high: the highest.
        centre: what becomes 0.
        spread: what becomes 1; infinite where all is to be 0.
    """

    low: np.float32
    high: np.float32
    centre: np.float32
    spread: np.float32

    def __call__(self, array: np.ndarray) -> np.ndarray:
        """Give a new float32 array of the same shape."""
        result = np.clip(array, self.low, self.high, dtype=np.float32, casting="unsafe")
        result -= self.centre
        result /= self.spread
        return result


def scaling(array: np.ndarray, modality: str, intensities: str = "fixed") -> Scaling:
    """Give what brings intensities of any shape to what the networks expect.

    CT is clipped to [-500, 1000] HU, MRI to its 0.5th and 99.5th percentile. Then "fixed" takes 50 off CT and divides
    by 200, without a look at the array, and makes MRI its z-score; "sat" makes the z-score of both, with percentiles,
    mean and deviation of the smallest box that holds every voxel above 0, to which SAT crops. Where one value is left,
    all is 0.

    Raises:
        ValueError: the modality is neither "ct" nor "mri", or the intensities are unknown.
    """
    if modality not in ("ct", "mri"):
        raise ValueError(f"modality {modality!r} must be ct or mri; read the volume with read_volume")
    if intensities not in INTENSITIES:
        raise ValueError(f"intensities {intensities!r} must be one of {', '.join(INTENSITIES)}")
    if (modality, intensities) == ("ct", "fixed") or array.size == 0:
        return Scaling(*_CT, np.float32(50), np.float32(200))
    inside = np.asarray(array, np.float32)
    inside = inside[_box_above_0(inside)] if intensities == "sat" else inside
    low, high = _CT if modality == "ct" else np.percentile(inside, (0.5, 99.5)).astype(np.float32)
    inside = np.clip(inside, low, high)
    spread = float(inside.std(dtype=np.float64))
    return Scaling(low, high, np.float32(inside.mean(dtype=np.float64)), np.float32(spread if spread > 0 else np.inf))


def normalise(array: np.ndarray, modality: str, intensities: str = "fixed") -> np.ndarray:
    """Bring intensities of any shape to what the networks expect, as a new float32 array; see ``scaling``."""
    return scaling(array, modality, intensities)(array)


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
    low = sum(each(lambda piece: np.count_nonzero(piece <= -50), pieces(array)))
    return "ct" if array.size and low >= 0.01 * array.size else "mri"
