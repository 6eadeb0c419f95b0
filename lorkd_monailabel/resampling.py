"""Resampling: a tensor is brought from one grid to another and back, axis by axis, in slabs that the cores share.

Tensors are (C, X, Y, Z) in the axis order of their grid, and in any order in memory.
"""

import math
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import torch

from lorkd_monailabel.cores import each, slabs
from lorkd_monailabel.grids import Box, Grid

_TOLERANCE_VOXELS = 1e-3
_CHUNK_ELEMENTS = 1 << 20
_SLAB_ELEMENTS = 1 << 21


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
    # the axis that shrinks most goes first, so that the others have less to do; of those that grow the innermost one,
    # where neighbours are single voxels and not whole rows
    shrinks = [target.shape[axis] / source.shape[axes[axis]] for axis in range(3)]
    order = sorted(range(3), key=lambda axis: (min(shrinks[axis], 1.0), -axis))
    if part is not None:
        positions = [position[wanted] for position, wanted in zip(positions, part, strict=True)]
    # in the order of the memory, until there is less to turn over
    turn = sorted(range(3), key=lambda axis: tensor.stride(axes[axis] + 1), reverse=True)
    turned = tensor.permute(0, *(axes[axis] + 1 for axis in turn))
    places = [positions[axis] for axis in turn]

    def resampled(slab: slice) -> torch.Tensor:
        drawn, at = _drawn(turned, [places[0][slab], places[1], places[2]], mode)
        drawn = drawn if first is None else first(drawn)
        if mode == "linear" and not drawn.is_floating_point():
            raise ValueError(f"linear needs floating point, not {drawn.dtype}; use nearest or convert it")
        for axis in map(turn.index, order):
            drawn = _along(drawn, axis + 1, at[axis], mode)
        return drawn

    length = len(places[0])
    if first is None or tensor.device.type != "cpu":
        whole = resampled(slice(0, length))
    else:  # it makes a copy of all that is drawn from; slab by slab this stays in the cache of a core
        whole = torch.cat(each(resampled, slabs(length, _SLAB_ELEMENTS * length // max(1, tensor.numel()))), 1)
    return whole.permute(0, *(turn.index(axis) + 1 for axis in range(3))).contiguous()


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
    for axis in range(3):  # whole slabs of memory first
        position = positions[axis] if mode == "linear" else np.floor(positions[axis] + 0.5)
        low = np.floor(position).astype(np.int64)
        drawn = np.union1d(low, np.ceil(position).astype(np.int64))
        moved[axis] = np.searchsorted(drawn, low) + (position - low)
        if len(drawn) == drawn[-1] - drawn[0] + 1:
            tensor = tensor.narrow(axis + 1, int(drawn[0]), len(drawn))
        else:
            shape = list(tensor.shape)
            shape[axis + 1] = len(drawn)
            index = torch.from_numpy(drawn).to(tensor.device)
            tensor = torch.index_select(tensor, axis + 1, index, out=_empty(shape, tensor))
    return tensor, moved


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
