"""Tests of lorkd_monailabel.volumes: a part of a grid is resampled as the whole is."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
import torch

from lorkd_monailabel.resampling import resample, within_reach
from lorkd_monailabel.volumes import Grid, canonical_grid


def oblique_grid() -> Grid:
    """An oblique, anisotropic grid (4, 0.9, 1.3 mm) whose axes are permuted and flipped."""
    directions = np.array([[2, -1, 2], [2, 2, -1], [-1, 2, 2]]) / 3  # orthonormal
    affine = np.eye(4)
    affine[:3, :3] = directions[:, [2, 0, 1]] * np.array([-4.0, -0.9, 1.3])
    affine[:3, 3] = (31.5, -77.25, 140.0)
    return Grid((11, 34, 27), affine)


@pytest.mark.parametrize("mode", ["linear", "nearest"])
@pytest.mark.parametrize("spacing", [0.7, 1.3, 5.0])
def test_a_part_is_bit_for_bit_that_part_of_the_whole(mode: Literal["linear", "nearest"], spacing: float) -> None:
    target = oblique_grid()
    source = canonical_grid(target, spacing)
    tensor = torch.from_numpy(np.random.default_rng(0).random((2, *source.shape)).astype(np.float32))
    whole = resample(tensor, source, target, mode)
    for part in (
        (slice(2, 7), slice(5, 30), slice(0, 9)),
        (slice(10, 11), slice(33, 34), slice(26, 27)),
        (slice(0, 11), slice(0, 34), slice(0, 27)),
    ):
        assert torch.equal(resample(tensor, source, target, mode, part=part), whole[:, *part])


@pytest.mark.parametrize("spacing", [0.7, 1.3, 5.0])
def test_nothing_is_drawn_from_a_box_but_within_its_reach(spacing: float) -> None:
    target = oblique_grid()
    source = canonical_grid(target, spacing)
    for number in range(5):
        starts = np.random.default_rng(number).integers(0, [length - 1 for length in source.shape])
        box = tuple(slice(int(start), int(start) + 2) for start in starts)
        tensor = torch.zeros(1, *source.shape, dtype=torch.float64)
        tensor[:, *box] = 1
        drawn = np.argwhere(resample(tensor, source, target, "linear")[0].numpy())
        reached = within_reach(box, source, target)
        if len(drawn) == 0:
            continue
        assert reached is not None
        assert [each.start for each in reached] == drawn.min(axis=0).tolist()
        assert [each.stop for each in reached] == (drawn.max(axis=0) + 1).tolist()


def test_between_two_voxels_there_may_be_nothing_to_draw_on() -> None:
    source, target = Grid((9, 9, 9), np.eye(4)), Grid((2, 2, 2), np.diag([8.0, 8.0, 8.0, 1.0]))
    box = slice(4, 5), slice(0, 9), slice(0, 9)
    assert within_reach(box, source, target) is None


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("spacing", [0.7, 1.3, 5.0])
def test_slabs_that_cores_share_make_up_the_whole(
    monkeypatch: pytest.MonkeyPatch, spacing: float, order: Literal["C", "F"]
) -> None:
    source = oblique_grid()
    target = canonical_grid(source, spacing)
    values = np.random.default_rng(0).integers(-1000, 1000, source.shape).astype(np.int16)
    image = torch.from_numpy(np.asarray(values, order=order))[None]
    whole = resample(image.float(), source, target, "linear")
    seen = []

    def first(drawn: torch.Tensor) -> torch.Tensor:
        seen.append(drawn.numel())
        return drawn.float()

    monkeypatch.setattr("lorkd_monailabel.resampling._SLAB_ELEMENTS", 1000)
    assert torch.equal(resample(image, source, target, "linear", first=first), whole)
    assert len(seen) > 4
    assert max(seen) < image.numel() / 2
