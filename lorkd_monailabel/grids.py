"""Grids: where the voxels of a volume are, which grids are the same, and the canonical one. Axes as in ``volumes``."""

from __future__ import annotations

from dataclasses import dataclass

import nibabel
import numpy as np

Box = tuple[slice, slice, slice]

_SAME_PLACE_VOXELS = 0.1


@dataclass(frozen=True, eq=False)
class Grid:
    """Where the voxels of a volume are: shape (X, Y, Z) and affine (4, 4), voxel index to RAS+ millimetres.

    Raises:
        ValueError: the shape has an empty axis, or the affine is not a finite, invertible 4 x 4 matrix.
    """

    shape: tuple[int, int, int]
    affine: np.ndarray

    def __post_init__(self) -> None:
        """Copies shape and affine into their own types and refuses what is no grid."""
        shape = tuple(int(length) for length in self.shape)
        affine = np.array(self.affine, dtype=np.float64)
        if len(shape) != 3 or min(shape) < 1:
            raise ValueError(f"shape {shape} must be three lengths of at least 1; give a 3D volume")
        if affine.shape != (4, 4) or not np.isfinite(affine).all():
            raise ValueError("the affine must be a 4 x 4 matrix of finite numbers; export the volume again")
        lengths = np.linalg.norm(affine[:3, :3], axis=0)
        if lengths.min() < 1e-6 or abs(np.linalg.det(affine[:3, :3] / lengths)) < 1e-6:
            raise ValueError("the affine is singular, so voxels have no place in space; export the volume again")
        affine.setflags(write=False)
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "affine", affine)

    def __eq__(self, other: object) -> bool:
        """Equal when shape and affine are exactly equal."""
        return isinstance(other, Grid) and self.shape == other.shape and np.array_equal(self.affine, other.affine)

    def __hash__(self) -> int:
        """Agrees with equality (adding 0.0 makes -0.0 and 0.0 the same bytes)."""
        return hash((self.shape, (self.affine + 0.0).tobytes()))

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Length of one voxel step along each array axis, in millimetres."""
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(x), float(y), float(z)

    @property
    def voxel_ml(self) -> float:
        """Volume of one voxel, in millilitres."""
        return float(abs(np.linalg.det(self.affine[:3, :3]))) / 1000.0


def same_grid(one: Grid, other: Grid) -> bool:
    """Say whether two grids have one shape and lie in one place, at every corner to a tenth of a voxel.

    Files of one grid rarely agree to the last digit: headers keep single precision, or angles.
    """
    if one.shape != other.shape:
        return False
    matrix = np.linalg.solve(one.affine, other.affine)
    corners = np.array(np.meshgrid(*[(0, length - 1) for length in one.shape])).reshape(3, -1)
    moved = matrix[:3, :3] @ corners + matrix[:3, 3:] - corners
    return bool(np.abs(moved).max() < _SAME_PLACE_VOXELS)


def canonical_grid(grid: Grid, spacing_mm: float | tuple[float, float, float]) -> Grid:
    """Gives the grid of the same field of view with axes closest to RAS+ and the given spacing.

    Axes are permuted and flipped only, so an oblique volume stays oblique and no voxel is mixed at its own spacing.
    The centre of the field of view stays where it is, and its outer edges move by at most a quarter of a new voxel.

    Args:
        grid: the grid of the file.
        spacing_mm: one spacing for all axes, or one for each axis of the canonical grid, in millimetres.

    Raises:
        ValueError: a spacing is not a positive number.
    """
    spacing = np.broadcast_to(np.asarray(spacing_mm, dtype=np.float64), (3,))
    if not (np.isfinite(spacing).all() and spacing.min() > 0):
        raise ValueError(f"spacing {spacing_mm} mm must be positive; give one number or three")
    orientation = nibabel.io_orientation(grid.affine)
    canonical_axis = orientation[:, 0].astype(int)  # of each file axis
    order = np.argsort(canonical_axis)
    old_spacing = np.asarray(grid.spacing_mm)[order]
    columns = grid.affine[:3, :3][:, order] * orientation[order, 1] / old_spacing
    old_shape = np.asarray(grid.shape)[order]
    shape = np.maximum(1, np.floor(old_shape * old_spacing / spacing + 0.5)).astype(int)
    centre = grid.affine[:3, :3] @ ((np.asarray(grid.shape) - 1) / 2) + grid.affine[:3, 3]
    affine = np.eye(4)
    affine[:3, :3] = columns * spacing
    affine[:3, 3] = centre - affine[:3, :3] @ ((shape - 1) / 2)
    return Grid((int(shape[0]), int(shape[1]), int(shape[2])), affine)
