"""Tests of lorkd_monailabel.grids."""

import numpy as np
import pytest

from lorkd_monailabel.grids import Grid, canonical_grid, same_grid


def rotation(degrees: tuple[float, float, float]) -> np.ndarray:
    """Rotation matrix about x, then y, then z."""
    a, b, c = np.radians(degrees)
    about_x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    about_y = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    about_z = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    return about_z @ about_y @ about_x


def oblique_grid() -> Grid:
    """An oblique, anisotropic grid whose axes are permuted (S, R, A in place of R, A, S) and flipped."""
    affine = np.eye(4)
    permuted = np.zeros((3, 3))
    permuted[2, 0], permuted[0, 1], permuted[1, 2] = -1, -1, 1
    affine[:3, :3] = rotation((12, -9, 17)) @ permuted * np.array([4.0, 0.9, 1.3])
    affine[:3, 3] = (31.5, -77.25, 140.0)
    return Grid((11, 34, 27), affine)


def test_grid_properties() -> None:
    grid = oblique_grid()
    assert grid.spacing_mm == pytest.approx((4.0, 0.9, 1.3))
    assert grid.voxel_ml == pytest.approx(4.0 * 0.9 * 1.3 / 1000)
    assert grid == Grid(grid.shape, grid.affine.copy())
    assert hash(grid) == hash(Grid(grid.shape, grid.affine.copy()))
    assert grid != Grid(grid.shape, np.eye(4))
    assert not grid.affine.flags.writeable


@pytest.mark.parametrize(
    ("shape", "affine"),
    [
        ((3, 0, 3), np.eye(4)),
        ((3, 3), np.eye(4)),
        ((3, 3, 3), np.eye(3)),
        ((3, 3, 3), np.full((4, 4), np.nan)),
        ((3, 3, 3), np.diag([1.0, 1.0, 0.0, 1.0])),
        ((3, 3, 3), np.array([[1.0, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])),
    ],
)
def test_grid_refuses(shape: tuple[int, int, int], affine: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"shape|affine"):
        Grid(shape, affine)


def test_canonical_grid_of_a_flipped_volume_by_hand() -> None:
    grid = Grid((10, 20, 5), np.array([[-2.0, 0, 0, 9], [0, -2, 0, 19], [0, 0, 6, 0], [0, 0, 0, 1]]))
    # x runs from 9 down to -9 (edges 10, -10), y from 19 to -19 (20, -20), z from 0 to 24 (-3, 27)
    canonical = canonical_grid(grid, 3.0)
    assert canonical.shape == (7, 13, 10)
    np.testing.assert_allclose(np.diag(canonical.affine), (3, 3, 3, 1))
    np.testing.assert_allclose(canonical.affine[:3, 3], (-9, -18, -1.5))


@pytest.mark.parametrize("spacing", [0.7, 1.5, (1.0, 2.0, 3.5), 5.0])
def test_canonical_grid_keeps_the_field_of_view(spacing: float | tuple[float, float, float]) -> None:
    grid = oblique_grid()
    canonical = canonical_grid(grid, spacing)
    np.testing.assert_allclose(canonical.spacing_mm, np.broadcast_to(spacing, 3))
    # closest to RAS+: the diagonal is positive and dominant, and the directions are still those of the file
    directions = canonical.affine[:3, :3] / canonical.spacing_mm
    assert (np.abs(directions).argmax(axis=0) == (0, 1, 2)).all()
    assert (np.diag(directions) > 0.8).all()
    source_directions = grid.affine[:3, :3] / grid.spacing_mm
    np.testing.assert_allclose(np.sort(np.abs(directions.T @ source_directions).ravel()), [0] * 6 + [1] * 3, atol=1e-9)
    # outer edges of the field of view, in canonical voxels: within half a voxel of the source's
    corners = np.stack(np.meshgrid(*((-0.5, n - 0.5) for n in grid.shape), indexing="ij"), axis=-1).reshape(-1, 3)
    world = corners @ grid.affine[:3, :3].T + grid.affine[:3, 3]
    index = (world - canonical.affine[:3, 3]) @ np.linalg.inv(canonical.affine[:3, :3]).T
    np.testing.assert_allclose(index.min(axis=0), -0.5, atol=0.2501)
    np.testing.assert_allclose(index.max(axis=0), np.array(canonical.shape) - 0.5, atol=0.2501)


@pytest.mark.parametrize("spacing", [0.0, -1.0, float("nan"), (1.0, 1.0, 0.0)])
def test_canonical_grid_refuses(spacing: float | tuple[float, float, float]) -> None:
    with pytest.raises(ValueError, match="must be positive"):
        canonical_grid(oblique_grid(), spacing)


@pytest.mark.parametrize(
    ("moved_mm", "stretched", "voxels_more", "same"),
    [
        (0.0, 1.0, 0, True),
        (0.19, 1.0, 0, True),  # of voxels of 2 mm
        (0.21, 1.0, 0, False),
        (0.0, 1.0001, 0, True),
        (0.0, 1.001, 0, False),  # 0.002 mm a voxel, but two fifths of one at the far end
        (0.0, 1.0, 1, False),
    ],
)
def test_grids_are_the_same_to_a_tenth_of_a_voxel(
    moved_mm: float, stretched: float, voxels_more: int, same: bool
) -> None:
    grid = Grid((4, 400, 6), np.diag([1.0, 2.0, 3.0, 1.0]))
    affine = grid.affine.copy()
    affine[1, 1] *= stretched
    affine[1, 3] += moved_mm
    other = Grid((4, 400, 6 + voxels_more), affine)
    assert (same_grid(grid, other), same_grid(other, grid)) == (same, same)
