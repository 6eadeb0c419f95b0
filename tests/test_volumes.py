"""Tests of lorkd_monailabel.volumes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lorkd_monailabel.intensities import normalise
from lorkd_monailabel.resampling import resample
from lorkd_monailabel.volumes import Grid, Volume, canonical_grid, canonical_image, three
from tests.test_grids import oblique_grid, rotation


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
    monkeypatch.setattr("lorkd_monailabel.resampling._CHUNK_ELEMENTS", 5000)
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


@pytest.mark.parametrize("modality", ["ct", "mri"])
@pytest.mark.parametrize("intensities", ["fixed", "sat"])
def test_a_canonical_image_of_whole_numbers_is_that_of_the_same_floats(modality, intensities) -> None:
    grid = Grid((40, 37, 26), oblique_grid().affine)
    whole = np.asfortranarray(np.random.default_rng(0).integers(-1000, 1000, grid.shape, dtype=np.int16))
    spacing_mm = 4.3 * max(grid.spacing_mm)  # so that most voxels are not drawn from
    image, own = canonical_image(Volume(whole, grid, modality), spacing_mm, intensities)
    floats, _ = canonical_image(Volume(whole.astype(np.float32), grid, modality), spacing_mm, intensities)
    assert image.dtype == torch.float32
    assert torch.equal(image, floats)
    assert max(own.shape) < 15


def test_only_voxels_that_are_drawn_from_are_looked_at() -> None:
    source = Grid((20, 20, 20), np.eye(4))
    seen = []

    def first(drawn: torch.Tensor) -> torch.Tensor:
        seen.append(tuple(drawn.shape))
        return drawn

    resample(torch.zeros(1, 20, 20, 20), source, canonical_grid(source, 4.0), "linear", first=first)
    assert seen == [(1, 10, 10, 10)]  # five places along each axis, each half way between two voxels


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("channels", [0, 2])
def test_any_floating_type_and_no_channel_at_all_are_resampled(dtype, channels):
    source = Grid((8, 9, 10), np.diag([1.0, 1.0, 1.0, 1.0]))
    target = canonical_grid(source, 2.0)
    resampled = resample(torch.ones(channels, 8, 9, 10, dtype=dtype), source, target, "linear")
    assert resampled.dtype == dtype
    assert torch.equal(resampled, torch.ones(channels, *target.shape, dtype=dtype))
