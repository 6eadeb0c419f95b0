"""Tests of lorkd_monailabel.active_learning.uncertainty: values by hand."""

import math

import pytest
import torch

from lorkd_monailabel.active_learning.uncertainty import binary_entropy, disagreement, mean_entropy, near


def bits(p: float) -> float:
    return -p * math.log2(p) - (1 - p) * math.log2(1 - p)


def volume(value: float, side: int = 9) -> torch.Tensor:
    return torch.full((side, side, side), value)


def test_entropy_is_one_bit_for_a_coin_and_nothing_for_what_is_certain() -> None:
    found = binary_entropy(torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0]))
    assert found.tolist() == pytest.approx([0, bits(0.25), 1, bits(0.25), 0])


def test_near_reaches_whole_voxels_along_each_axis() -> None:
    mask = torch.zeros(9, 9, 9, dtype=torch.bool)
    mask[4, 4, 4] = True
    where = near(mask, (5.0, 3.0, 20.0), 10.0).nonzero()
    assert where.min(dim=0).values.tolist() == [2, 1, 3]  # 10 mm are 2 voxels of 5, 3 of 3, and at least 1
    assert where.max(dim=0).values.tolist() == [6, 7, 5]
    assert len(where) == 5 * 7 * 3


def test_only_what_is_near_a_mask_counts() -> None:
    probability = volume(0.0)
    probability[4, 4, 4] = 0.9
    probability[0, 0, 0] = 0.5  # 4 voxels away along each axis
    assert mean_entropy(probability[None], (1, 1, 1), near_mm=1) == pytest.approx(bits(0.9) / 27)
    assert mean_entropy(probability[None], (1, 1, 1), near_mm=4) == pytest.approx((bits(0.9) + 1) / 729)


def test_what_is_nearly_found_is_uncertain_and_what_is_absent_is_not() -> None:
    nearly, absent = volume(0.0), volume(0.0)
    nearly[2, 2, 2] = 0.4
    assert mean_entropy(nearly[None], (1, 1, 1), near_mm=1) == pytest.approx(bits(0.4) / 27)
    assert mean_entropy(absent[None], (1, 1, 1)) == 0


def test_structures_count_alike_whatever_their_size() -> None:
    large, small = volume(0.75), volume(0.0)
    small[4, 4, 4] = 0.75
    found = mean_entropy(torch.stack([large, small]), (1, 1, 1), near_mm=1)
    assert found == pytest.approx((bits(0.75) + bits(0.75) / 27) / 2)


def test_disagreement_is_one_less_dice_and_empty_masks_agree() -> None:
    one, other = torch.zeros(3, 1, 1, 4), torch.zeros(3, 1, 1, 4)
    one[0, ..., :2], other[0, ..., 1:3] = 0.9, 0.9  # Dice 1/2
    one[1, ..., 0] = 0.9  # Dice 0
    assert disagreement(one, other) == pytest.approx((0.5 + 1 + 0) / 3)
