"""Tests of lorkd_monailabel.intensities."""

import numpy as np
import pytest

from lorkd_monailabel.intensities import guess_modality, normalise


def test_normalise_ct_by_hand() -> None:
    array = np.array([-1000, -500, 50, 250, 1000, 3000], dtype=np.int16)
    result = normalise(array, "ct")
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, [-2.75, -2.75, 0, 1, 4.75, 4.75])
    assert array[0] == -1000


def test_normalise_mri_is_a_clipped_z_score() -> None:
    array = np.random.default_rng(1).normal(400, 60, (20, 20, 20)).astype(np.float32)
    array[0, 0, 0] = 1e6
    before = array.copy()
    result = normalise(array, "mri")
    assert result.dtype == np.float32
    assert np.array_equal(array, before)
    assert abs(float(result.mean())) < 1e-4
    assert float(result.std()) == pytest.approx(1, abs=1e-4)
    assert float(result.max()) < 3
    assert np.array_equal(normalise(np.full((2, 2, 2), 7.0), "mri"), np.zeros((2, 2, 2)))
    assert normalise(np.zeros((0, 3, 3)), "mri").shape == (0, 3, 3)
    with pytest.raises(ValueError, match="must be ct or mri"):
        normalise(array, "pet")


def test_guess_modality() -> None:
    ct = np.full((10, 10, 10), 40.0)
    ct[:1] = -1000
    assert guess_modality(ct) == "ct"
    mri = np.full((10, 10, 10), 40.0)
    mri[0, 0, :5] = -600  # the overshoot of a spline, in half a percent of the voxels
    assert guess_modality(mri) == "mri"
    assert guess_modality(np.zeros((0,))) == "mri"


def test_normalise_as_sat_uses_the_box_of_voxels_above_0() -> None:
    array = np.full((5, 6, 7), -1000.0, dtype=np.float32)
    array[1:4, 2:5, 3:6] = -100  # the box, by two of its corners
    array[1, 2, 3], array[3, 4, 5] = 3000, 200
    inside = np.clip(array[1:4, 2:5, 3:6], -500, 1000)
    expected = (np.clip(array, -500, 1000) - inside.mean()) / inside.std()
    result = normalise(array, "ct", "sat")
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-5)
    assert array[0, 0, 0] == -1000

    mri = np.zeros((12, 12, 12), dtype=np.float32)
    mri[2:, 3:, 4:] = np.random.default_rng(0).uniform(1, 100, (10, 9, 8))
    mri[5, 5, 5] = 1e6
    low, high = np.percentile(mri[2:, 3:, 4:], (0.5, 99.5))
    clipped = np.clip(mri, low, high)
    inside = clipped[2:, 3:, 4:]
    np.testing.assert_allclose(normalise(mri, "mri", "sat"), (clipped - inside.mean()) / inside.std(), rtol=1e-4)
    assert not np.allclose(normalise(mri, "mri", "sat"), normalise(mri, "mri"), atol=0.1)


def test_normalise_as_sat_where_nothing_is_above_0_or_all_is_one_value() -> None:
    ct = np.array([[-400.0, -300], [-200, -100]])
    np.testing.assert_allclose(normalise(ct, "ct", "sat"), (ct + 250) / ct.std(), rtol=1e-6)
    assert np.array_equal(normalise(np.full((2, 2, 2), 7.0), "ct", "sat"), np.zeros((2, 2, 2)))
    assert normalise(np.zeros((0, 3, 3)), "ct", "sat").shape == (0, 3, 3)
    with pytest.raises(ValueError, match="intensities 'own' must be one of fixed, sat"):
        normalise(ct, "ct", "own")
