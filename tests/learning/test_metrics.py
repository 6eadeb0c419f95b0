"""Tests of lorkd_monailabel.learning.metrics."""

from math import sqrt

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from lorkd_monailabel.learning.metrics import dice, surface_dice


def mask_of(shape: tuple[int, int, int], *boxes: tuple[slice, slice, slice]) -> np.ndarray:
    mask = np.zeros(shape, dtype=bool)
    for box in boxes:
        mask[box] = True
    return mask


@pytest.mark.parametrize(
    ("prediction", "reference", "expected"),
    [
        ([1, 1, 0, 0], [1, 0, 0, 0], 2 / 3),
        ([1, 1, 0, 0], [0, 1, 1, 1], 2 / 5),
        ([1, 1, 1, 0], [1, 1, 1, 0], 1.0),
        ([1, 1, 0, 0], [0, 0, 1, 1], 0.0),
        ([0, 0, 0, 0], [0, 0, 0, 0], 1.0),
        ([0, 0, 0, 0], [0, 1, 0, 0], 0.0),
        ([0, 1, 0, 0], [0, 0, 0, 0], 0.0),
    ],
)
def test_dice_by_hand(prediction: list[int], reference: list[int], expected: float) -> None:
    masks = [np.array(mask, dtype=bool).reshape(2, 2, 1) for mask in (prediction, reference)]
    assert dice(*masks) == pytest.approx(expected)
    assert dice(*reversed(masks)) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("here", "there", "expected"), [(False, False, 1.0), (True, False, 0.0), (False, True, 0.0), (True, True, 1.0)]
)
def test_surfaces_of_empty_masks_follow_sat(here: bool, there: bool, expected: float) -> None:
    masks = [np.full((3, 4, 5), full) for full in (here, there)]
    assert surface_dice(*masks, spacing_mm=(1, 1, 1)) == expected


@pytest.mark.parametrize(("tolerance_mm", "expected"), [(7.9, 0.0), (8.0, None), (11.9, None), (12.0, 1.0)])
def test_two_slabs_a_known_distance_apart(tolerance_mm: float, expected: float | None) -> None:
    """Slabs of 2 x 6 x 6 voxels of 2 x 1 x 1 mm, 4 voxels (8 mm) apart face to face, 12 mm from far face to near face.

    A face has 4 corners, 20 edges and 25 flat elements; half way between the two faces there are 4 edges and 20 flat
    elements on the sides, 10 mm from the other slab.
    """
    first, second = mask_of((20, 6, 6), np.s_[3:5, :, :]), mask_of((20, 6, 6), np.s_[9:11, :, :])
    face = 4 * sqrt(1 + 4 + 4) / 8 + 20 * sqrt(1 + 4) / 2 + 25 * 1
    sides = 4 * sqrt(4 + 4) / 2 + 20 * 2
    if expected is None:
        near = face + (sides if tolerance_mm >= 10 else 0)
        expected = near / (2 * face + sides)
    found = surface_dice(first, second, spacing_mm=(2.0, 1.0, 1.0), tolerance_mm=tolerance_mm)
    assert found == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("spacing_mm", [(1.0, 1.0, 1.0), (1.0, 1.0, 3.0), (0.7, 1.3, 2.5)])
def test_one_voxel_against_two_by_hand(spacing_mm: tuple[float, float, float]) -> None:
    """One voxel has 8 surface elements, one for each corner, 4 of which it shares with the two-voxel box above it.

    With the sides' areas ``a = (yz, xz, xy)`` a corner's element has area ``|a| / 8``; one half way up an edge of the
    box, which is parallel to Z, has ``|(yz, xz)| / 2``. Of the 16 corners and 4 such elements all but the box's 4 far
    corners lie on an element of the other, at distance 0; those are a voxel away.
    """
    x, y, z = spacing_mm
    corner = sqrt((y * z) ** 2 + (x * z) ** 2 + (x * y) ** 2) / 8
    edge = sqrt((y * z) ** 2 + (x * z) ** 2) / 2
    one = mask_of((5, 5, 6), (slice(2, 3), slice(2, 3), slice(2, 3)))
    two = mask_of((5, 5, 6), (slice(2, 3), slice(2, 3), slice(2, 4)))
    share = (12 * corner + 4 * edge) / (16 * corner + 4 * edge)
    assert surface_dice(one, two, spacing_mm=spacing_mm, tolerance_mm=0.99 * z) == pytest.approx(share, abs=1e-6)
    assert surface_dice(one, two, spacing_mm=spacing_mm, tolerance_mm=z) == 1.0


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_shifted_voxel_shares_half_its_surface_until_the_step_is_tolerated(axis: int) -> None:
    spacing_mm = [1.2, 1.3, 1.4]
    step = spacing_mm[axis]
    mask = mask_of((5, 5, 5), (slice(2, 3), slice(2, 3), slice(2, 3)))
    shifted = np.roll(mask, 1, axis=axis)
    assert surface_dice(mask, shifted, spacing_mm=spacing_mm, tolerance_mm=step - 0.01) == pytest.approx(0.5)
    assert surface_dice(mask, shifted, spacing_mm=spacing_mm, tolerance_mm=step) == 1.0


@pytest.mark.parametrize(
    ("spacing_mm", "tolerance_mm", "expected"),
    [
        ((1.0, 1.0, 1.0), 0.5, 0.3860096663702708),
        ((1.0, 1.0, 1.0), 1.0, 0.577459865828125),
        ((1.0, 1.0, 1.0), 2.0, 1.0),
        ((3.0, 1.0, 1.0), 1.0, 0.5904456250239819),
    ],
)
def test_a_shifted_box_as_deepminds_package_has_it(
    spacing_mm: tuple[float, float, float], tolerance_mm: float, expected: float
) -> None:
    """Values of surface-distance 0.1: compute_surface_dice_at_tolerance(compute_surface_distances(...), tolerance)."""
    box = mask_of((20, 20, 20), (slice(5, 10), slice(5, 15), slice(5, 15)))
    found = surface_dice(np.roll(box, 2, axis=0), box, spacing_mm=spacing_mm, tolerance_mm=tolerance_mm)
    assert found == pytest.approx(expected, abs=1e-6)


def test_a_mask_has_a_surface_at_the_border_of_the_volume() -> None:
    """Value of surface-distance 0.1."""
    prediction, reference = mask_of((9, 9, 9), np.s_[:3, :, :]), mask_of((9, 9, 9), np.s_[:4, :, :])
    assert surface_dice(prediction, reference, spacing_mm=(2, 1, 1)) == pytest.approx(0.8177881178200843, abs=1e-6)


def test_the_room_around_two_masks_changes_nothing() -> None:
    noise = gaussian_filter(np.random.default_rng(0).normal(size=(14, 12, 10)), 1.5)
    prediction, reference = noise > 0.03, np.roll(noise, 2, axis=1) > 0.03
    alone = surface_dice(prediction, reference, spacing_mm=(0.8, 2.0, 3.0))
    assert 0.1 < alone < 0.9
    around = [np.pad(mask, ((30, 40), (5, 0), (0, 25))) for mask in (prediction, reference)]
    assert surface_dice(*around, spacing_mm=(0.8, 2.0, 3.0)) == alone


def test_rounding_errors_of_an_affine_decide_nothing() -> None:
    mask = mask_of((5, 5, 5), (slice(2, 3), slice(2, 3), slice(2, 3)))
    assert surface_dice(mask, np.roll(mask, 1, axis=0), spacing_mm=(1.0000002, 1.0, 1.0), tolerance_mm=1.0) == 1.0


@pytest.mark.parametrize(
    ("shape", "spacing_mm", "tolerance_mm", "sentence"),
    [
        ((2, 3, 5), (1, 1, 1), 1.0, "must be \\(X, Y, Z\\) of one grid"),
        ((2, 3, 4), (1, 0, 1), 1.0, "must be three lengths over 0"),
        ((2, 3, 4), (1, 1), 1.0, "must be three lengths over 0"),
        ((2, 3, 4), (1, 1, 1), -1.0, "tolerance -1.0 mm"),
    ],
)
def test_what_has_no_surface_dice_is_one_sentence(
    shape: tuple[int, int, int], spacing_mm: tuple[float, ...], tolerance_mm: float, sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        surface_dice(np.ones((2, 3, 4), bool), np.ones(shape, bool), spacing_mm=spacing_mm, tolerance_mm=tolerance_mm)
