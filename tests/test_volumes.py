"""Tests of lorkd_monailabel.volumes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lorkd_monailabel.intensities import normalise
from lorkd_monailabel.volumes import (
    Grid,
    Volume,
    canonical_grid,
    canonical_image,
    resample,
    three,
)


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


def labels_of(grid: Grid) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 9, (1, *grid.shape)).astype(np.uint8))


def ball(grid: Grid, centre_mm: np.ndarray, radius_mm: float) -> torch.Tensor:
    """Soft ball: 1 inside, 0 outside, 4 mm wide edge; (1, X, Y, Z)."""
    index = np.stack(np.meshgrid(*(np.arange(n) for n in grid.shape), indexing="ij"), axis=-1)
    place = index @ grid.affine[:3, :3].T + grid.affine[:3, 3]
    distance = np.linalg.norm(place - centre_mm, axis=-1)
    return torch.from_numpy(np.clip((radius_mm - distance) / 4 + 0.5, 0, 1)[None]).float()


def centre_of_mass_mm(tensor: torch.Tensor, grid: Grid) -> np.ndarray:
    weight = tensor[0].numpy().astype(np.float64)
    index = np.stack(np.meshgrid(*(np.arange(n) for n in grid.shape), indexing="ij"), axis=-1)
    mean = (index * weight[..., None]).sum(axis=(0, 1, 2)) / weight.sum()
    return grid.affine[:3, :3] @ mean + grid.affine[:3, 3]


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


@pytest.mark.parametrize("mode", ["linear", "nearest"])
def test_identity_shares_every_bit(mode: str) -> None:
    grid = oblique_grid()
    tensor = torch.randn(2, *grid.shape)
    assert torch.equal(resample(tensor, grid, grid, mode), tensor)  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", ["linear", "nearest"])
def test_own_spacing_is_permutation_and_flip_and_comes_back_exactly(mode: str) -> None:
    grid = oblique_grid()
    canonical = canonical_grid(grid, (0.9, 1.3, 4.0))
    assert canonical.shape == (34, 27, 11)
    image = torch.randn(2, *grid.shape)
    there = resample(image, grid, canonical, mode)  # type: ignore[arg-type]
    assert torch.equal(there, image.permute(0, 2, 3, 1).flip(1, 3))
    assert torch.equal(resample(there, canonical, grid, mode), image)  # type: ignore[arg-type]


def test_labels_come_back_exactly_for_every_orientation() -> None:
    """The 48 orientations, each turned obliquely: volume, canonical, back is the identity."""
    seen = set()
    for order in ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)):
        for flips in np.ndindex(2, 2, 2):
            permuted = np.zeros((3, 3))
            permuted[order, range(3)] = 1 - 2 * np.array(flips)
            affine = np.eye(4)
            affine[:3, :3] = rotation((5, -8, 11)) @ permuted * np.array([0.8, 1.1, 3.0])
            affine[:3, 3] = (-100, 40, 7)
            grid = Grid((5, 6, 7), affine)
            spacing = np.empty(3)
            spacing[list(order)] = grid.spacing_mm
            canonical = canonical_grid(grid, tuple(spacing))
            labels = labels_of(grid)
            back = resample(resample(labels, grid, canonical, "nearest"), canonical, grid, "nearest")
            assert torch.equal(back, labels)
            seen.add((order, flips))
    assert len(seen) == 48


@pytest.mark.parametrize("spacing", [0.7, 1.5, 3.0])
def test_geometry_survives_another_spacing(spacing: float) -> None:
    grid = oblique_grid()
    centre = grid.affine[:3, :3] @ np.array([5.2, 15.7, 14.1]) + grid.affine[:3, 3]
    image = ball(grid, centre, 9.0)
    canonical = canonical_grid(grid, spacing)
    there = resample(image, grid, canonical, "linear")
    np.testing.assert_allclose(centre_of_mass_mm(there, canonical), centre_of_mass_mm(image, grid), atol=0.1)
    back = resample((there > 0.5).float(), canonical, grid, "linear") > 0.5
    np.testing.assert_allclose(centre_of_mass_mm(back, grid), centre_of_mass_mm(image > 0.5, grid), atol=0.35)


def test_linear_values_by_hand() -> None:
    source = Grid((3, 1, 1), np.eye(4))
    affine = np.diag([0.5, 1.0, 1.0, 1.0])
    affine[0, 3] = -0.5
    target = Grid((7, 1, 1), affine)  # at -0.5, 0, 0.5, 1, 1.5, 2, 2.5: both ends clamp
    tensor = torch.tensor([10.0, 20.0, 40.0]).reshape(1, 3, 1, 1)
    expected = [10.0, 10.0, 15.0, 20.0, 30.0, 40.0, 40.0]
    assert resample(tensor, source, target, "linear").flatten().tolist() == expected
    assert resample(tensor, source, target, "nearest").flatten().tolist() == [10.0, 10.0, 20.0, 20.0, 40.0, 40.0, 40.0]


def test_linear_reproduces_a_linear_field() -> None:
    source = oblique_grid()
    target = canonical_grid(source, 1.1)

    def field(grid: Grid) -> torch.Tensor:
        index = np.stack(np.meshgrid(*(np.arange(n) for n in grid.shape), indexing="ij"), axis=-1)
        world = index @ grid.affine[:3, :3].T + grid.affine[:3, 3]
        return torch.from_numpy(world @ (0.3, -0.2, 0.5))[None]

    result = resample(field(source), source, target, "linear")
    inside = (slice(None), slice(2, -2), slice(2, -2), slice(4, -4))
    torch.testing.assert_close(result[inside], field(target)[inside], atol=1e-6, rtol=0)


def test_slabs_agree_with_one_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    grid = oblique_grid()
    target = canonical_grid(grid, 1.0)
    image = torch.randn(3, *grid.shape)
    whole = resample(image, grid, target, "linear")
    monkeypatch.setattr("lorkd_monailabel.volumes._CHUNK_ELEMENTS", 5000)
    assert torch.equal(resample(image, grid, target, "linear"), whole)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_constant_stays_constant(dtype: torch.dtype) -> None:
    grid = oblique_grid()
    target = canonical_grid(grid, 2.2)
    image = torch.full((1, *grid.shape), 0.3, dtype=dtype)
    result = resample(image, grid, target, "linear")
    assert result.dtype == dtype
    assert torch.equal(result, torch.full((1, *target.shape), 0.3, dtype=dtype))


def test_resample_leaves_its_argument_alone_and_keeps_dtype() -> None:
    grid = oblique_grid()
    labels = labels_of(grid)
    before = labels.clone()
    result = resample(labels, grid, canonical_grid(grid, 2.0), "nearest")
    assert result.dtype == torch.uint8
    assert result.is_contiguous()
    assert torch.equal(labels, before)


def test_small_noise_of_a_stored_affine_is_still_exact() -> None:
    grid = oblique_grid()
    stored = Grid(grid.shape, grid.affine.astype(np.float32))
    image = torch.randn(1, *grid.shape)
    assert torch.equal(resample(image, grid, stored, "linear"), image)


def test_resample_refuses() -> None:
    grid = Grid((4, 5, 6), np.eye(4))
    turned = np.eye(4)
    turned[:3, :3] = rotation((0, 0, 1))
    tensor = torch.zeros(1, 4, 5, 6)
    with pytest.raises(ValueError, match="rotated against each other"):
        resample(tensor, grid, Grid((4, 5, 6), turned), "linear")
    with pytest.raises(ValueError, match="on the source grid"):
        resample(torch.zeros(4, 5, 6), grid, grid, "linear")
    with pytest.raises(ValueError, match="on the source grid"):
        resample(torch.zeros(1, 4, 5, 7), grid, grid, "linear")
    with pytest.raises(ValueError, match="floating point"):
        resample(tensor.to(torch.uint8), grid, grid, "linear")
    with pytest.raises(ValueError, match="must be linear or nearest"):
        resample(tensor, grid, grid, "cubic")  # type: ignore[arg-type]


def test_three_numbers_of_one() -> None:
    assert three(96) == (96, 96, 96)
    assert three(1.5) == (1.5, 1.5, 1.5)
    assert three([288, 288, 96]) == three((288, 288, 96)) == (288, 288, 96)
    for wrong in ((1, 2), "333", [1, "2", 3], ()):
        with pytest.raises(ValueError, match="must be one number or three, one for each axis"):
            three(wrong)  # type: ignore[type-var]


def test_canonical_image_in_both_intensities() -> None:
    grid = oblique_grid()
    array = np.random.default_rng(0).normal(0, 400, grid.shape).astype(np.float32)
    array.setflags(write=False)
    volume = Volume(array, grid, "ct")
    fixed, own = canonical_image(volume, 2.0)
    assert own == canonical_grid(grid, 2.0)
    before = torch.from_numpy(normalise(array, "ct"))[None]
    assert torch.equal(fixed, resample(before, grid, own, "linear"))
    sat, own = canonical_image(volume, (1, 1, 3), "sat")
    assert own == canonical_grid(grid, (1, 1, 3))
    after = resample(torch.from_numpy(array.copy())[None], grid, own, "linear").numpy()
    np.testing.assert_array_equal(sat.numpy(), normalise(after, "ct", "sat"))
    assert sat.shape == (1, *own.shape)
