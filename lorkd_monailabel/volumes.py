"""Volumes: read them, bring them to canonical orientation, spacing and intensity, and the exact way back.

Arrays are (X, Y, Z) in the file's own axis order; an affine maps voxel indices to RAS+ millimetres. Canonical arrays
have their axes closest to right, anterior, superior. Batches of tensors are (B, C, X, Y, Z).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar, cast

import numpy as np
import torch

from lorkd_monailabel.grids import Grid as Grid
from lorkd_monailabel.grids import canonical_grid as canonical_grid
from lorkd_monailabel.grids import same_grid as same_grid
from lorkd_monailabel.intensities import guess_modality as guess_modality
from lorkd_monailabel.intensities import normalise as normalise
from lorkd_monailabel.intensities import scaling
from lorkd_monailabel.volume_files import KEPT, read_volume_file

Modality = Literal["ct", "mri"]
Number = TypeVar("Number", int, float)
Box = tuple[slice, slice, slice]

_TOLERANCE_VOXELS = 1e-3
_CHUNK_ELEMENTS = 1 << 20


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
    low, high = float(array.min()), float(array.max())
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


def resample(
    tensor: torch.Tensor,
    source: Grid,
    target: Grid,
    mode: Literal["linear", "nearest"],
    *,
    part: Box | None = None,
    first: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> torch.Tensor:
    """Brings a tensor (C, X, Y, Z) from the source grid to the target grid, axis by axis.

    The grids may differ by permutation, flip, scale and shift, not by rotation. Axes that only move by whole voxels
    are copied, so identity, permutation and flip are bit exact; between equal grids the result may share memory with
    the argument. Beyond the source the outermost voxels repeat. Shrinking is plain linear interpolation (or the
    nearest voxel) without a low-pass filter, so beyond a factor of about 1.5 it skips voxels and keeps their noise.

    Args:
        tensor: (C, X, Y, Z) on the source.
        source: its grid.
        target: the grid that it is brought to.
        mode: for probabilities and images, or for labels.
        part: of the target, if not all of it is wanted; its voxels are the same as in the whole.
        first: done to those voxels that are drawn from, each for itself, before they are mixed.

    Raises:
        ValueError: the tensor does not fit the source, the grids are rotated against each other, the mode is unknown,
            or it is "linear" for whole numbers.
    """
    if mode not in ("linear", "nearest"):
        raise ValueError(f"mode {mode!r} must be linear or nearest; use nearest for labels")
    if tensor.ndim != 4 or tuple(tensor.shape[1:]) != source.shape:
        raise ValueError(f"tensor {tuple(tensor.shape)} must be (C, X, Y, Z) on the source grid {source.shape}")
    axes, positions = _axis_maps(source, target)
    tensor = tensor.permute(0, *(axis + 1 for axis in axes))
    # the axis that shrinks most goes first, so that the others have less to do; of those that grow the innermost one,
    # where neighbours are single voxels and not whole rows
    shrinks = [target.shape[axis] / tensor.shape[axis + 1] for axis in range(3)]
    order = sorted(range(3), key=lambda axis: (min(shrinks[axis], 1.0), -axis))
    if part is not None:
        positions = [position[wanted] for position, wanted in zip(positions, part, strict=True)]
    tensor, positions = _drawn(tensor, positions, mode)
    tensor = tensor if first is None else first(tensor)
    if mode == "linear" and not tensor.is_floating_point():
        raise ValueError(f"linear needs floating point, not {tensor.dtype}; use nearest or convert it")
    for axis in order:
        tensor = _along(tensor, axis + 1, positions[axis], mode)
    return tensor.contiguous()


def within_reach(box: Box, source: Grid, target: Grid) -> Box | None:
    """Gives the smallest box of the target's voxels that linear resampling draws from a box of the source's voxels.

    None where there is none. Grids as in ``resample``.
    """
    reached = []
    for axis, position in zip(*_axis_maps(source, target), strict=True):
        near = np.flatnonzero((position > box[axis].start - 1) & (position < box[axis].stop))
        if near.size == 0:
            return None
        reached.append(slice(int(near[0]), int(near[-1]) + 1))
    return reached[0], reached[1], reached[2]


def _axis_maps(source: Grid, target: Grid) -> tuple[list[int], list[np.ndarray]]:
    """For each target axis: the source axis it runs along, and its positions there in source voxels."""
    matrix = np.linalg.solve(source.affine, target.affine)
    axes = [int(axis) for axis in np.abs(matrix[:3, :3]).argmax(axis=0)]
    reach = np.abs(matrix[:3, :3]) * (np.asarray(target.shape) - 1)
    reach[axes, range(3)] = 0
    if sorted(axes) != [0, 1, 2] or reach.sum(axis=1).max() > _TOLERANCE_VOXELS:
        raise ValueError("the grids are rotated against each other, but may differ by permutation, flip, scale and "
                         "shift only; make the target with canonical_grid(source, spacing_mm)")  # fmt: skip
    positions = []
    for axis, (along, length) in enumerate(zip(axes, target.shape, strict=True)):
        position = matrix[along, axis] * np.arange(length) + matrix[along, 3]
        whole = np.round(position)
        exact = np.abs(position - whole).max() <= _TOLERANCE_VOXELS
        # nine digits, so that rounding errors cannot decide which way a voxel half between two others goes
        position = whole if exact else np.round(position, 9)
        positions.append(np.clip(position, 0, source.shape[along] - 1))
    return axes, positions


def _drawn(tensor: torch.Tensor, positions: Sequence[np.ndarray], mode: str) -> tuple[torch.Tensor, list[np.ndarray]]:
    """Gives the voxels of (C, X, Y, Z) that are drawn from at the positions along each axis, and where these are now.

    A CT that shrinks by 4 along each axis is drawn from in an eighth of its voxels, and all that follows is as quick.
    """
    moved = list(positions)
    for axis in sorted(range(3), key=lambda axis: tensor.stride(axis + 1), reverse=True):  # whole slabs of memory first
        position = positions[axis] if mode == "linear" else np.floor(positions[axis] + 0.5)
        low = np.floor(position).astype(np.int64)
        drawn = np.union1d(low, np.ceil(position).astype(np.int64))
        moved[axis] = np.searchsorted(drawn, low) + (position - low)
        if len(drawn) == drawn[-1] - drawn[0] + 1:
            tensor = tensor.narrow(axis + 1, int(drawn[0]), len(drawn))
        else:
            tensor = _picked(tensor, axis + 1, drawn)
    return tensor, moved


def _picked(tensor: torch.Tensor, axis: int, places: np.ndarray) -> torch.Tensor:
    """Picks places along an axis; the axes keep their order in memory, as index_select alone would turn them over."""
    order = sorted(range(tensor.ndim), key=tensor.stride, reverse=True)
    index = torch.from_numpy(places).to(tensor.device)
    turned, along = tensor.permute(order), order.index(axis)
    shape = (*turned.shape[:along], len(places), *turned.shape[along + 1 :])
    picked = torch.index_select(turned, along, index, out=_empty(shape, tensor))
    return picked.permute([order.index(each) for each in range(tensor.ndim)])


def _along(tensor: torch.Tensor, axis: int, position: np.ndarray, mode: str) -> torch.Tensor:
    """Picks or interpolates (C, X, Y, Z) at positions along one axis."""
    last = tensor.shape[axis] - 1
    low = np.floor(position if mode == "linear" else position + 0.5).astype(np.int64)
    weight = position - low
    if mode == "nearest" or not weight.any():
        if np.array_equal(low, np.arange(last + 1)):
            return tensor
        return tensor.index_select(axis, torch.from_numpy(low).to(tensor.device))
    first = torch.from_numpy(low).to(tensor.device)
    second = (first + 1).clamp(max=last)
    shape = [1, 1, 1, 1]
    shape[axis] = len(low)
    weights = torch.from_numpy(weight).to(tensor).reshape(shape)
    result = _empty((*tensor.shape[:axis], len(low), *tensor.shape[axis + 1 :]), tensor)
    # slab by slab along another axis: two neighbours of the whole tensor at once would be two more copies of it;
    # along the one that is outermost in memory, so that a slab is in one piece
    across = max((each for each in (1, 2, 3) if each != axis), key=tensor.stride)
    slab = max(1, _CHUNK_ELEMENTS * tensor.shape[across] // max(1, result.numel()))
    for part, out in zip(tensor.split(slab, across), result.split(slab, across), strict=True):
        torch.lerp(part.index_select(axis, first), part.index_select(axis, second), weights, out=out)
    return result


def _empty(shape: Sequence[int], like: torch.Tensor) -> torch.Tensor:
    """Gives an uninitialised tensor of another's type and device.

    In main memory it is numpy's, which asks Linux for huge pages; of torch's ordinary ones, each of the many costs a
    fault, which for large volumes is most of the time of what is done here.
    """
    size = math.prod(shape) * like.element_size()
    if like.device.type != "cpu" or not size:
        return like.new_empty(tuple(shape))
    return torch.from_numpy(np.empty(size, np.uint8)).view(like.dtype).reshape(tuple(shape))


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
