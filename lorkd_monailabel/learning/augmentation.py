"""Augmentation: patches moved and their intensities varied, by MONAI's transforms. Never a flip: sides matter."""

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import grid_sample

VARIATIONS = ("gamma", "blur", "low_resolution", "bias_field")
"""Variations of intensities that a run can ask for beside contrast, brightness and noise, which are always there."""

MOVED = 0.5
"""Share of the patches that are moved."""

SHIFT = 4
"""The largest shift along each axis, in voxels."""

ROTATION_RAD, SCALING = 0.2, 0.15
"""How far a patch is turned and stretched unless a run asks for more."""


class Augmentation:
    """Rotations, scalings and shifts; contrast, brightness, noise and what ``variations`` adds.

    Args:
        variations: some of ``VARIATIONS``: ``gamma`` (exponents 0.7 to 1.5; mean and deviation stay), ``blur``
            (Gaussian, 0.5 to 1 voxel), ``low_resolution`` (half to full resolution and back), ``bias_field`` (a coil's:
            the intensities above the least times a smooth field, the exponential of polynomials of third degree).
        rotation_rad: the largest angle about each axis.
        scaling: the largest change of a length along each axis, 0.15 for 85 to 115 %.

    Raises:
        ValueError: a variation is unknown, the angle not in 0..pi or the scaling not in 0..1.
    """

    def __init__(
        self, variations: Sequence[str] = (), *, rotation_rad: float = ROTATION_RAD, scaling: float = SCALING
    ) -> None:
        unknown = sorted(set(variations) - set(VARIATIONS))
        if unknown:
            raise ValueError(f"variation {unknown[0]!r} must be one of {', '.join(VARIATIONS)}; set data.variations")
        if not (0 <= rotation_rad <= math.pi and 0 <= scaling < 1):
            raise ValueError(
                f"rotation_rad {rotation_rad} must be in 0..pi and scaling {scaling} at least 0 and below 1; "
                "set them in data"
            )
        # monai is imported here, as it takes seconds and a server that only segments needs none of its transforms
        from monai.transforms import (
            RandAdjustContrast,
            RandAffineGrid,
            RandBiasField,
            RandGaussianNoise,
            RandGaussianSmooth,
            RandScaleIntensity,
            RandShiftIntensity,
            RandSimulateLowResolution,
        )

        self._affine = RandAffineGrid(
            rotate_range=(rotation_rad,) * 3, translate_range=(SHIFT,) * 3, scale_range=(scaling,) * 3
        )
        more = {
            "gamma": RandAdjustContrast(prob=0.3, gamma=(0.7, 1.5), retain_stats=True),
            "blur": RandGaussianSmooth(prob=0.2, sigma_x=(0.5, 1), sigma_y=(0.5, 1), sigma_z=(0.5, 1)),
            "low_resolution": RandSimulateLowResolution(prob=0.2, zoom_range=(0.5, 1)),
            "bias_field": AboveLeast(RandBiasField(prob=0.3, coeff_range=(-0.15, 0.15))),
        }
        self._intensities: tuple[Any, ...] = (
            RandScaleIntensity(factors=0.2, prob=0.5),
            RandShiftIntensity(offsets=0.2, prob=0.5),
            *(more[name] for name in VARIATIONS if name in variations),
            RandGaussianNoise(std=0.1, prob=0.3),
        )

    def motion(self, rng: np.random.Generator) -> Tensor | None:
        """Draw how a patch is moved, for ``reach`` and ``sampling_grid``; None where it stays.

        Returns:
            ``(4, 4)``, from voxels of the result to voxels of the case, both counted from the patch's middle.
        """
        if rng.random() >= MOVED:
            return None
        self._affine.set_random_state(state=np.random.RandomState(rng.bit_generator))
        self._affine(spatial_size=(1, 1, 1), lazy=True)
        return torch.as_tensor(self._affine.get_transformation_matrix())

    def varied(self, image: Tensor, rng: np.random.Generator) -> Tensor:
        """Vary the intensities of an image ``(1, X, Y, Z)``."""
        state = np.random.RandomState(rng.bit_generator)  # MONAI's kind of generator, around the same stream of bits
        for transform in self._intensities:
            image = transform.set_random_state(state=state)(image)
        return image.as_subclass(Tensor)  # MONAI's tensors carry what nobody reads here


class AboveLeast:
    """A transform of what intensities are above the least of them: it may multiply, and air stays what it is.

    Args:
        transform: one of MONAI's random ones.
    """

    def __init__(self, transform: Any) -> None:
        self.transform = transform

    def set_random_state(self, *, state: np.random.RandomState) -> "AboveLeast":
        """Draw from a generator from now on."""
        self.transform.set_random_state(state=state)
        return self

    def __call__(self, image: Tensor) -> Tensor:
        """Give the transformed image; one that the transform left alone is the same to the last bit."""
        least = image.min()
        above = image - least
        result = self.transform(above)
        return image if torch.equal(result, above) else result + least


def reach(affine: Tensor, shape: Sequence[int]) -> tuple[int, ...]:
    """Say how many voxels around a patch it may need, on each side of each axis, to be moved."""
    half = (torch.tensor(shape, dtype=affine.dtype) - 1) / 2
    most = affine[:3, :3].abs() @ half + affine[:3, 3].abs()
    return tuple(max(0, math.ceil(each)) for each in (most - half).tolist())


def sampling_grid(affine: Tensor, shape: Sequence[int], source: Sequence[int], offset: Sequence[int]) -> Tensor:
    """Say where each voxel of a moved patch comes from.

    Args:
        affine: ``(4, 4)``, see ``Augmentation.motion``.
        shape: of the patch.
        source: shape of the part of the case that is at hand, the patch and what lies around it.
        offset: of the patch in that part, in voxels.

    Returns:
        ``(1, X, Y, Z, 3)``, what ``grid_sample`` takes: the last axis first, borders of the part at -1 and 1.
    """
    x, y, z = (torch.arange(length) - (length - 1) / 2 for length in shape)
    middle = torch.tensor([start + length / 2 for start, length in zip(offset, shape, strict=True)])
    lengths = torch.tensor(source)
    columns = (affine[:3].float() * (2 / lengths)[:, None]).flip(0).T
    shift = columns[3] + (2 * middle / lengths - 1).flip(0)
    # sums of three lines: four times as fast as ``affine_grid``, which multiplies every voxel by the matrix
    lines = x[:, None, None] * columns[0] + y[:, None] * columns[1]
    return (lines[:, :, None] + (z[:, None] * columns[2] + shift))[None]


def moved(patches: Tensor, grid: Tensor, mode: Literal["bilinear", "nearest"]) -> Tensor:
    """Give moved patches out of parts ``(C, X, Y, Z)`` of a case; beyond their border the outermost voxels repeat."""
    return grid_sample(patches[None], grid, mode=mode, padding_mode="border", align_corners=False)[0]
