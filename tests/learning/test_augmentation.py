"""Tests of lorkd_monailabel.learning.augmentation."""

import math

import numpy as np
import pytest
import torch
from monai.transforms import RandAffineGrid, Resample

from lorkd_monailabel.learning.augmentation import MOVED, VARIATIONS, Augmentation, moved, reach, sampling_grid

SHAPE = (14, 10, 12)


def image() -> torch.Tensor:
    """A smooth image with a value for each place."""
    x, y, z = torch.meshgrid(*(torch.arange(length, dtype=torch.float32) for length in SHAPE), indexing="ij")
    return (torch.sin(x / 3) + torch.cos(y / 2) + z / 10)[None]


def test_patches_move_as_monai_moves_them() -> None:
    augmentation, moves = Augmentation(), 0
    monai = RandAffineGrid(rotate_range=(0.2,) * 3, translate_range=(4,) * 3, scale_range=(0.15,) * 3)
    for seed in range(12):
        affine = augmentation.motion(np.random.default_rng(seed))
        rng = np.random.default_rng(seed)
        if rng.random() >= MOVED:
            assert affine is None
            continue
        assert affine is not None
        motion = sampling_grid(affine, SHAPE, SHAPE, (0, 0, 0))
        monai.set_random_state(state=np.random.RandomState(rng.bit_generator))
        grid = monai(SHAPE)
        for mode in ("bilinear", "nearest"):
            theirs = Resample(mode=mode, padding_mode="border")(image(), grid).as_tensor()
            ours = moved(image(), motion, mode)
            # a voxel half between two others may go either way
            assert ((ours - theirs).abs() < 1e-4).float().mean() > (0.98 if mode == "nearest" else 0.9999)
        moves += 1
    assert moves >= 3


def test_a_shift_by_whole_voxels_is_exact() -> None:
    affine = torch.eye(4, dtype=torch.float64)
    affine[:3, 3] = torch.tensor([2.0, -1.0, 3.0])
    result = moved(image(), sampling_grid(affine, SHAPE, SHAPE, (0, 0, 0)), "bilinear")
    torch.testing.assert_close(result[:, :-2, 1:, :-3], image()[:, 2:, :-1, 3:], rtol=0, atol=1e-5)


def test_a_moved_patch_shows_what_lies_around_it() -> None:
    axes = [torch.arange(length, dtype=torch.float32) for length in (50, 46, 48)]
    places, start = torch.stack(torch.meshgrid(*axes, indexing="ij")), (18, 18, 18)
    middle = torch.tensor([first + (length - 1) / 2 for first, length in zip(start, SHAPE, strict=True)])
    axes = [torch.arange(length) - (length - 1) / 2 for length in SHAPE]
    own = torch.stack(torch.meshgrid(*axes, indexing="ij")).reshape(3, -1)
    augmentation, short = Augmentation(rotation_rad=0.5, scaling=0.3), 0
    for seed in range(40):
        affine = augmentation.motion(np.random.default_rng(seed))
        if affine is None:
            continue
        expected = (affine[:3, :3].float() @ own + (affine[:3, 3].float() + middle)[:, None]).reshape(3, *SHAPE)
        for less in (0, 1):
            around = [max(0, each - less) for each in reach(affine, SHAPE)]
            part = places[
                :,
                *(
                    slice(first - each, first + length + each)
                    for first, each, length in zip(start, around, SHAPE, strict=True)
                ),
            ]
            result = moved(part, sampling_grid(affine, SHAPE, part.shape[1:], around), "bilinear")
            exact = torch.allclose(result, expected, rtol=0, atol=1e-3)
            assert exact or less
            short += not exact
    assert short > 5  # a voxel less around them would not do


@pytest.mark.parametrize(("rotation", "scaling"), [(-0.1, 0.1), (4.0, 0.1), (0.1, -0.1), (0.1, 1.0), (math.nan, 0.1)])
def test_what_no_patch_can_be_moved_by_is_refused(rotation: float, scaling: float) -> None:
    with pytest.raises(ValueError, match=r"must be in 0..pi and scaling .* below 1; set them in data$"):
        Augmentation(rotation_rad=rotation, scaling=scaling)


def test_the_share_of_moved_patches() -> None:
    augmentation, count = Augmentation(), 300
    moves = sum(augmentation.motion(np.random.default_rng(seed)) is not None for seed in range(count))
    assert abs(moves - count * MOVED) < 4 * math.sqrt(count * MOVED * (1 - MOVED))


def test_intensities_follow_the_generator_alone() -> None:
    augmentation = Augmentation(VARIATIONS)
    first = [augmentation.varied(image(), np.random.default_rng(seed)) for seed in range(6)]
    torch.rand(3)
    again = [Augmentation(VARIATIONS).varied(image(), np.random.default_rng(seed)) for seed in reversed(range(6))]
    assert all(torch.equal(one, other) for one, other in zip(first, reversed(again), strict=True))
    assert len({each.numpy().tobytes() for each in first}) > 3
    assert all((type(each), each.dtype, each.shape) == (torch.Tensor, torch.float32, (1, *SHAPE)) for each in first)


def roughness(patch: torch.Tensor) -> float:
    return float(sum(patch.diff(dim=axis).abs().mean() for axis in (1, 2, 3)))


@pytest.mark.parametrize("variation", VARIATIONS)
def test_a_variation_does_what_its_name_says(variation: str) -> None:
    noisy = image() + torch.randn(1, *SHAPE, generator=torch.Generator().manual_seed(0))
    plain = {type(each) for each in Augmentation()._intensities}
    (transform,) = [each for each in Augmentation([variation])._intensities if type(each) not in plain]
    transform.set_random_state(state=np.random.RandomState(0))
    drawn = [transform(noisy).as_subclass(torch.Tensor) for _ in range(40)]
    changed = [patch for patch in drawn if not torch.equal(patch, noisy)]
    assert 2 <= len(changed) <= 22
    for patch in changed:
        if variation == "gamma":
            assert torch.equal(patch.flatten().argsort(stable=True), noisy.flatten().argsort(stable=True))
            assert patch.mean().item() == pytest.approx(noisy.mean().item(), abs=0.02)
        elif variation == "bias_field":
            least = noisy.min()
            above = noisy > least + 1
            field = (patch - least)[above] / (noisy - least)[above]
            assert patch.min().item() == pytest.approx(least.item(), abs=1e-5)  # air is not lit
            assert 0.2 < field.min() < field.max() < 5
            assert field.max() / field.min() > 1.05
            smooth = torch.where(above, (patch - least) / (noisy - least), torch.nan).log()
            assert smooth.diff(dim=1).abs().nan_to_num().max() < 0.5  # log of the field, from voxel to voxel
        else:
            assert roughness(patch) < roughness(noisy)


def test_an_unknown_variation_is_refused() -> None:
    with pytest.raises(ValueError, match=r"variation 'flip' must be one of gamma, blur, low_resolution, bias_field"):
        Augmentation(["blur", "flip"])
