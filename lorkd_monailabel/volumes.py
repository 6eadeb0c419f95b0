"""Volumes: read them, and bring them to the orientation, spacing and intensity that networks expect.

Arrays are (X, Y, Z) in the file's own axis order; an affine maps voxel indices to RAS+ millimetres. Canonical arrays
have their axes closest to right, anterior, superior. Batches of tensors are (B, C, X, Y, Z).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar, cast

import numpy as np
import torch

from lorkd_monailabel.cores import each, pieces
from lorkd_monailabel.grids import Box as Box
from lorkd_monailabel.grids import Grid as Grid
from lorkd_monailabel.grids import canonical_grid as canonical_grid
from lorkd_monailabel.grids import same_grid as same_grid
from lorkd_monailabel.intensities import guess_modality as guess_modality
from lorkd_monailabel.intensities import normalise as normalise
from lorkd_monailabel.intensities import scaling
from lorkd_monailabel.resampling import resample
from lorkd_monailabel.unpacking import KEPT
from lorkd_monailabel.volume_files import read_volume_file

Modality = Literal["ct", "mri"]
Number = TypeVar("Number", int, float)


@dataclass(frozen=True, eq=False)
class Volume:
    """One image: array (X, Y, Z) in the file's own axis order, its grid and its modality.

    The array is float32, or 8 or 16 bits of a whole number where the file holds no more: a half or a quarter of the
    memory, and of the time of all that looks at each voxel.
    """

    array: np.ndarray
    grid: Grid
    modality: Modality


def read_volume(path: str | Path, modality: str = "auto") -> Volume:
    """Reads a 3D volume from .nii, .nii.gz, .nrrd, .mha or .mhd, or from a folder that holds one DICOM series.

    Args:
        path: the file or folder; further axes of length 1 are dropped.
        modality: "ct", "mri", or "auto": what a DICOM series says of itself, else ``guess_modality``.

    Raises:
        FileNotFoundError: there is nothing at the path.
        ValueError: it is no image, not 3D (or a single slice), empty, holds NaN or infinity or one value only, has a
            singular affine, or the modality is unknown.
    """
    path = Path(path)
    if modality not in ("auto", "ct", "mri"):
        raise ValueError(f"modality {modality!r} must be auto, ct or mri; leave it out for auto")
    file = read_volume_file(path)
    with np.errstate(over="ignore"):
        # in the file's order: another costs as much as reading it
        array = file.array if file.array.dtype in KEPT else np.asarray(file.array, dtype=np.float32)
    # of the extremes alone, as NaN and infinity always reach them: no temporary of the volume's size
    extremes = each(lambda piece: (piece.min(), piece.max()), pieces(array))
    low, high = float(np.min(extremes)), float(np.max(extremes))
    if not np.isfinite(low) or not np.isfinite(high):
        raise ValueError(f"{path} holds NaN or infinite values, but all must be finite numbers; export it again")
    if low == high:
        raise ValueError(f"{path} holds one value only ({low:g}), so there is nothing to segment; export it again")
    try:
        grid = Grid(cast("tuple[int, int, int]", array.shape), file.affine)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    chosen = modality if modality != "auto" else file.modality or guess_modality(array)
    return Volume(array, grid, cast("Modality", chosen))


def read_labels(path: str | Path) -> tuple[np.ndarray, Grid]:
    """Reads a label volume, which may hold one value only: its int32 array (X, Y, Z) and its grid.

    Args:
        path: as for ``read_volume``.

    Raises:
        FileNotFoundError: there is nothing at the path.
        ValueError: it is no 3D image, holds anything but whole numbers, or has a singular affine.
    """
    file = read_volume_file(Path(path))
    array = np.asarray(file.array, dtype=np.float64)
    if not np.array_equal(array, np.round(array)) or np.abs(array).max() > np.iinfo(np.int32).max:
        raise ValueError(f"{path} holds values that are no whole numbers, so it is no label volume; give its labels")
    try:
        return array.astype(np.int32), Grid(cast("tuple[int, int, int]", array.shape), file.affine)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def three(value: Number | Sequence[Number]) -> tuple[Number, Number, Number]:
    """Gives a number for each axis: the three of a list, or one number three times.

    Raises:
        ValueError: it is neither a number nor three of them.
    """
    numbers = (value,) * 3 if isinstance(value, int | float) else value
    if isinstance(numbers, str) or len(numbers) != 3 or not all(isinstance(each, int | float) for each in numbers):
        raise ValueError(f"{value!r} must be one number or three, one for each axis X, Y, Z")
    return numbers[0], numbers[1], numbers[2]


def canonical_image(
    volume: Volume, spacing_mm: float | tuple[float, float, float], intensities: str = "fixed", *, device: str = "cpu"
) -> tuple[torch.Tensor, Grid]:
    """Gives a volume as the networks see it: float32 (1, X, Y, Z) on its canonical grid, and that grid.

    "fixed" intensities are brought about before resampling, "sat" after it, as SAT does.

    Raises:
        ValueError: see ``canonical_grid`` and ``normalise``.
    """
    grid = canonical_grid(volume.grid, spacing_mm)
    image = torch.from_numpy(np.require(volume.array, requirements=["W"]))[None]
    if intensities == "fixed":
        scale = scaling(volume.array, volume.modality)

        def first(drawn: torch.Tensor) -> torch.Tensor:
            return torch.from_numpy(scale(drawn.numpy())).to(device)

        return resample(image, volume.grid, grid, "linear", first=first), grid
    resampled = resample(image, volume.grid, grid, "linear", first=lambda drawn: drawn.float().to(device)).cpu().numpy()
    return torch.from_numpy(normalise(resampled, volume.modality, intensities)).to(device), grid
