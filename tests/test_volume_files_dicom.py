"""Tests of lorkd_monailabel.volume_files: where the slices and frames of DICOM lie."""

from collections.abc import Callable
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest

from lorkd_monailabel.volumes import read_volume


@pytest.mark.parametrize("lost", ["ImagePositionPatient", "ImageOrientationPatient"])
def test_series_that_does_not_say_where_it_lies(
    tmp_path: Path, make_series: Callable[..., np.ndarray], lost: str
) -> None:
    make_series(tmp_path)
    for file in tmp_path.iterdir():
        header = pydicom.dcmread(file)
        del header[lost]
        header.save_as(file)
    with pytest.raises(ValueError, match=r"do not all say where they lie .*; export the series again"):
        read_volume(tmp_path)


def framed(folder: Path, target: Path, *, backwards: bool = False) -> None:
    """Write the slices of a folder as one file of many frames."""
    slices = sorted((pydicom.dcmread(file) for file in folder.iterdir()), key=lambda each: each.InstanceNumber)
    for each in slices:
        each.AcquisitionNumber, each.ContentDate, each.ContentTime = 1, "20260101", "120000"
    made = highdicom.legacy.LegacyConvertedEnhancedCTImage(
        legacy_datasets=slices[::-1] if backwards else slices,
        series_instance_uid="1.2.3.4",
        series_number=1,
        sop_instance_uid="1.2.3.4.5",
        instance_number=1,
    )
    target.mkdir()
    made.save_as(target / "frames.dcm")


@pytest.mark.parametrize("backwards", [False, True])
def test_frames_of_one_file_are_a_volume(
    tmp_path: Path, make_series: Callable[..., np.ndarray], series_affine: Callable[..., np.ndarray], backwards: bool
) -> None:
    values = make_series(tmp_path / "slices")
    framed(tmp_path / "slices", tmp_path / "frames", backwards=backwards)
    volume = read_volume(tmp_path / "frames")
    affine = series_affine()
    if backwards:
        values = values[:, :, ::-1]
        affine[:3, 3] += affine[:3, 2] * (values.shape[2] - 1)
        affine[:3, 2] *= -1
    np.testing.assert_array_equal(volume.array, values)
    np.testing.assert_allclose(volume.grid.affine, affine, atol=1e-4)
    assert volume.modality == "ct"


def test_frames_in_uneven_steps_are_refused(tmp_path: Path, make_series: Callable[..., np.ndarray]) -> None:
    make_series(tmp_path / "slices", missing=(2,))
    framed(tmp_path / "slices", tmp_path / "frames")
    with pytest.raises(ValueError, match=r"are 2\.50 to 5.00 mm apart, but must be evenly"):
        read_volume(tmp_path / "frames")


def test_one_slice_is_no_volume(tmp_path: Path, make_series: Callable[..., np.ndarray]) -> None:
    make_series(tmp_path, shape=(5, 4, 1))
    with pytest.raises(ValueError, match="is 2D"):
        read_volume(tmp_path)
