"""Augmentation: patches moved and their intensities varied, by MONAI's transforms. Never a flip: sides matter."""

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


class Augmentation:
    """Small rotations, scalings and shifts; contrast, brightness, noise and what ``variations`` adds.

    Args:
        variations: some of ``VARIATIONS``: ``gamma`` (exponents 0.7 to 1.5; mean and deviation stay), ``blur``
            (Gaussian, 0.5 to 1 voxel), ``low_resolution`` (half to full resolution and back), ``bias_field`` (a coil's:
            the intensities above the least times a smooth field, the exponential of polynomials of third degree).

    Raises:
        ValueError: a variation is unknown.
    """

    def __init__(self, variations: Sequence[str] = ()) -> None:
        unknown = sorted(set(variations) - set(VARIATIONS))
        if unknown:
            raise ValueError(f"variation {unknown[0]!r} must be one of {', '.join(VARIATIONS)}; set data.variations")
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
            rotate_range=(0.2, 0.2, 0.2), translate_range=(4, 4, 4), scale_range=(0.15, 0.15, 0.15)
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

    def motion(self, shape: Sequence[int], rng: np.random.Generator) -> Tensor | None:
        """Draw where the voxels of a moved patch come from, for ``moved``; None where the patch stays."""
        if rng.random() >= MOVED:
            return None
        self._affine.set_random_state(state=np.random.RandomState(rng.bit_generator))
        self._affine(spatial_size=tuple(shape), lazy=True)
        return sampling_grid(self._affine.get_transformation_matrix(), shape)

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


def sampling_grid(affine: Tensor, shape: Sequence[int]) -> Tensor:
    """Say where each voxel of a patch comes from.

    Args:
        affine: ``(4, 4)``, from voxels of the result to voxels of the patch, both counted from the patch's middle.
        shape: of the patch.

    Returns:
        ``(1, X, Y, Z, 3)``, what ``grid_sample`` takes: the last axis first, borders at -1 and 1.
    """
    x, y, z = (torch.arange(length) - (length - 1) / 2 for length in shape)
    scale = 2 / torch.tensor(shape)
    columns = (affine[:3].float() * scale[:, None]).flip(0).T
    # sums of three lines: four times as fast as ``affine_grid``, which multiplies every voxel by the matrix
    lines = x[:, None, None] * columns[0] + y[:, None] * columns[1]
    return (lines[:, :, None] + (z[:, None] * columns[2] + columns[3]))[None]


def moved(patches: Tensor, grid: Tensor, mode: Literal["bilinear", "nearest"]) -> Tensor:
    """Move patches ``(C, X, Y, Z)``; beyond the border the outermost voxels repeat."""
    return grid_sample(patches[None], grid, mode=mode, padding_mode="border", align_corners=False)[0]
