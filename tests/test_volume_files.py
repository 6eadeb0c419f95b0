"""Tests of lorkd_monailabel.volume_files, through volumes.read_volume, which checks what it reads."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from lorkd_monailabel.volumes import Grid, read_volume


def oblique_grid() -> Grid:
    """A rotated, anisotropic grid (spacing 4, 0.9, 1.3 mm) whose axes run to S, R, A, two of them flipped."""
    directions = np.array([[2, -1, 2], [2, 2, -1], [-1, 2, 2]]) / 3  # orthonormal
    affine = np.eye(4)
    affine[:3, :3] = directions[:, [2, 0, 1]] * np.array([-4.0, -0.9, 1.3])
    affine[:3, 3] = (31.5, -77.25, 140.0)
    return Grid((11, 34, 27), affine)


def image_array(shape: tuple[int, ...] = (6, 5, 4)) -> np.ndarray:
    return np.arange(np.prod(shape), dtype=np.int16).reshape(shape)


def write_nifti(path: Path, array: np.ndarray, affine: np.ndarray | None = None) -> Path:
    nibabel.save(nibabel.Nifti1Image(array, np.eye(4) if affine is None else affine), path)
    return path


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "A.NII.GZ"])
def test_read_nifti(tmp_path: Path, name: str) -> None:
    grid = oblique_grid()
    array = image_array(grid.shape)
    volume = read_volume(write_nifti(tmp_path / name, array, grid.affine))
    assert volume.array.dtype == np.int16
    assert volume.array.flags.f_contiguous  # as the file has it: to bring it into another order takes as long
    assert volume.array.flags.writeable
    np.testing.assert_array_equal(volume.array, array)
    np.testing.assert_allclose(volume.grid.affine, grid.affine, atol=1e-5)
    assert volume.modality == "mri"
    assert read_volume(tmp_path / name, "ct").modality == "ct"


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize(
    ("held", "read"),
    [
        ("int8", "int8"),
        ("uint8", "uint8"),
        (">i2", "int16"),
        ("uint16", "float32"),
        ("int32", "float32"),
        ("float64", "float32"),
    ],
)
def test_small_whole_numbers_stay_what_they_are(tmp_path: Path, suffix: str, held: str, read: str) -> None:
    array = np.arange(60).reshape(3, 4, 5).astype(held)
    header = nibabel.Nifti1Header(endianness=">" if held.startswith(">") else "<")
    header.set_data_dtype(array.dtype)
    nibabel.save(nibabel.Nifti1Image(array, np.eye(4), header), tmp_path / f"a{suffix}")
    found = read_volume(tmp_path / f"a{suffix}").array
    assert found.dtype == np.dtype(read)
    assert found.dtype.isnative
    np.testing.assert_array_equal(found, array)


def test_read_nifti_scales_and_takes_the_qform(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(image_array(), None)
    affine = np.array([[-1.5, 0, 0, 5], [0, 2, 0, 6], [0, 0, 3, 7], [0, 0, 0, 1]])
    image.set_sform(None, code=0)
    image.set_qform(affine, code=1)
    image.header.set_slope_inter(2.0, -1024.0)
    nibabel.save(image, tmp_path / "scaled.nii.gz")
    # nibabel resets the slope when it saves; put it where the format has it
    raw = bytearray(gzip.decompress((tmp_path / "scaled.nii.gz").read_bytes()))
    raw[112:120] = struct.pack("<ff", 2.0, -1024.0)
    (tmp_path / "scaled.nii.gz").write_bytes(gzip.compress(bytes(raw)))
    volume = read_volume(tmp_path / "scaled.nii.gz")
    np.testing.assert_array_equal(volume.array, image_array() * 2.0 - 1024)
    np.testing.assert_allclose(volume.grid.affine, affine, atol=1e-6)
    assert volume.modality == "ct"


def test_a_fourth_axis_of_length_one_is_dropped(tmp_path: Path) -> None:
    assert read_volume(write_nifti(tmp_path / "a.nii", image_array((6, 5, 4, 1)))).grid.shape == (6, 5, 4)
    flat = sitk.GetImageFromArray(image_array((1, 4, 5, 6)).astype(np.float32), isVector=False)
    sitk.WriteImage(flat, str(tmp_path / "a.mha"))
    assert read_volume(tmp_path / "a.mha").grid.shape == (6, 5, 4)


@pytest.mark.parametrize("name", ["a.nrrd", "a.mha", "a.mhd"])
def test_read_itk_agrees_with_nifti(tmp_path: Path, name: str) -> None:
    """SimpleITK writes the same image in both formats; world coordinates must be the same for both readers."""
    grid = oblique_grid()
    image = sitk.GetImageFromArray(image_array(grid.shape).transpose(2, 1, 0))
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ grid.affine
    image.SetSpacing(grid.spacing_mm)
    image.SetOrigin(lps[:3, 3].tolist())
    image.SetDirection((lps[:3, :3] / grid.spacing_mm).ravel().tolist())
    for file in (name, "b.nii.gz"):
        sitk.WriteImage(image, str(tmp_path / file))
    volume = read_volume(tmp_path / name)
    np.testing.assert_array_equal(volume.array, image_array(grid.shape))
    assert volume.grid.shape == grid.shape
    np.testing.assert_allclose(volume.grid.affine, grid.affine, atol=1e-9)
    np.testing.assert_allclose(read_volume(tmp_path / "b.nii.gz").grid.affine, grid.affine, atol=1e-4)


def write_dicom(
    folder: Path, *, modality: str = "CT", series: str = "1.2.3", missing: tuple[int, ...] = (), width: int = 8
) -> None:
    """Six axial slices, 2.5 mm apart, of a volume whose voxel (x, y, z) has value 100 z + x."""
    folder.mkdir(exist_ok=True)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for z in range(6):
        if z in missing:
            continue
        slice_ = sitk.GetImageFromArray(np.tile(np.arange(width, dtype=np.int16) + 100 * z, (7, 1))[None])
        slice_.SetSpacing((0.8, 0.9, 2.5))
        tags = {
            "0008|0016": "1.2.840.10008.5.1.4.1.1.2",
            "0008|0018": f"{series}.{z + 1}",
            "0008|0060": modality,
            "0020|000d": "1.2.3.4",
            "0020|000e": series,
            "0020|0013": str(z),
            "0020|0032": f"-10\\-20\\{30 + 2.5 * z}",
            "0020|0037": "1\\0\\0\\0\\1\\0",
        }
        for key, value in tags.items():
            slice_.SetMetaData(key, value)
        # names in reverse, so that order of names is not order of slices
        writer.SetFileName(str(folder / f"{series}_{9 - z}.dcm"))
        writer.Execute(slice_)


def test_read_dicom_folder(tmp_path: Path) -> None:
    write_dicom(tmp_path / "series")
    volume = read_volume(tmp_path / "series")
    assert volume.grid.shape == (8, 7, 6)
    assert volume.modality == "ct"  # what the files say, though no value is negative
    np.testing.assert_array_equal(volume.array[:, 0, 0], np.arange(8))
    np.testing.assert_array_equal(volume.array[0, 0], 100 * np.arange(6))
    expected = np.array([[-0.8, 0, 0, 10], [0, -0.9, 0, 20], [0, 0, 2.5, 30], [0, 0, 0, 1]])
    np.testing.assert_allclose(volume.grid.affine, expected, atol=1e-6)
    write_dicom(tmp_path / "mr", modality="MR")
    assert read_volume(tmp_path / "mr").modality == "mri"


def test_dicom_folder_that_is_no_single_complete_series(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds 0 DICOM series"):
        read_volume(tmp_path / "empty")
    write_dicom(tmp_path / "two", series="1.2.3")
    write_dicom(tmp_path / "two", series="1.2.4")
    with pytest.raises(ValueError, match="holds 2 DICOM series"):
        read_volume(tmp_path / "two")
    write_dicom(tmp_path / "gap", missing=(2,))
    with pytest.raises(ValueError, match=r"2\.50 to 5\.00 mm apart"):
        read_volume(tmp_path / "gap")
    write_dicom(tmp_path / "cut")
    file = sorted((tmp_path / "cut").iterdir())[2]
    file.write_bytes(file.read_bytes()[:-60])
    with pytest.raises(ValueError, match=r"2\.50 to 5\.00 mm apart"):  # the damaged file counts as missing
        read_volume(tmp_path / "cut")
    write_dicom(tmp_path / "mixed", missing=(5,))
    write_dicom(tmp_path / "mixed", missing=(0, 1, 2, 3, 4), width=9)
    with pytest.raises(ValueError, match="cannot be read as an image"):
        read_volume(tmp_path / "mixed")


def truncated(name: str) -> Callable[[Path], Path]:
    """Writes a good file of that name and cuts off its last third."""

    def make(folder: Path) -> Path:
        path = folder / name
        noise = np.random.default_rng(0).integers(0, 1000, (20, 20, 20)).astype(np.int16)
        if ".nii" in name:
            write_nifti(path, noise)
        else:
            sitk.WriteImage(sitk.GetImageFromArray(noise), str(path), useCompression=True)
        content = path.read_bytes()
        path.write_bytes(content[: len(content) * 2 // 3])
        return path

    return make


def garbage(name: str, content: bytes) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return make


def nifti(array: np.ndarray, affine: np.ndarray | None = None) -> Callable[[Path], Path]:
    return lambda folder: write_nifti(folder / "image.nii.gz", array, affine)


def colours(folder: Path) -> Path:
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((4, 5, 6, 3), np.uint8), isVector=True), str(folder / "a.nrrd"))
    return folder / "a.nrrd"


def flat(folder: Path) -> Path:
    sitk.WriteImage(sitk.GetImageFromArray(image_array((5, 6))), str(folder / "a.mha"))
    return folder / "a.mha"


def broken_header(offset: int, value: bytes) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        path = write_nifti(folder / "image.nii", image_array())
        raw = bytearray(path.read_bytes())
        raw[offset : offset + len(value)] = value
        path.write_bytes(raw)
        return path

    return make


NOT_A_NUMBER = image_array().astype(np.float32)
NOT_A_NUMBER[2, 2, 2] = np.nan
INFINITE = image_array().astype(np.float32)
INFINITE[2, 2, 2] = -np.inf
RGB = np.zeros((4, 4, 4), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (truncated("a.nii"), "cannot be read"),
        (truncated("a.nii.gz"), "cannot be read"),
        (truncated("a.nrrd"), "cannot be read"),
        (truncated("a.mha"), "cannot be read"),
        (garbage("a.nii.gz", b"not an image"), "cannot be read"),
        (garbage("a.nii.gz", gzip.compress(b"not an image")), "cannot be read"),
        (garbage("a.nii", b""), "cannot be read"),
        (garbage("a.nii.gz", b""), "cannot be read"),
        (garbage("a.nii", b"\0" * 400), "cannot be read"),
        (garbage("a.nrrd", b"NRRD0004\n"), "cannot be read"),
        (garbage("a.mha", b""), "cannot be read"),
        (garbage("a.mhd", b"ObjectType = Image\n"), "cannot be read"),
        (garbage("a.png", b"\x89PNG"), "must end in one of"),
        (broken_header(42, struct.pack("<h", -5)), "cannot be read"),
        (broken_header(40, struct.pack("<h", 99)), r"cannot be read"),
        (broken_header(42, struct.pack("<hhh", 32767, 32767, 32767)), "cannot be read"),
        (broken_header(70, struct.pack("<h", 9999)), "cannot be read"),
        (nifti(image_array((5, 6))), "is 2D"),
        (nifti(image_array((5, 6, 1))), "is 2D"),
        (flat, "is 2D"),
        (nifti(image_array((5, 6, 4, 2))), "has 4 axes"),
        (colours, "3 numbers a voxel"),
        (nifti(RGB), "one real number a voxel"),
        (nifti(image_array().astype(np.complex64)), "one real number a voxel"),
        (nifti(NOT_A_NUMBER), "NaN or infinite"),
        (nifti(INFINITE), "NaN or infinite"),
        (nifti(np.array([1e300, 0.0] * 30).reshape(3, 4, 5)), "NaN or infinite"),
        (nifti(np.full((3, 4, 5), 7, np.int16)), "one value only"),
        (nifti(np.zeros((0, 4, 5), np.int16)), "is empty"),
        (broken_header(280, b"\0" * 48), "singular"),
    ],
)
def test_bad_input_gives_one_sentence(tmp_path: Path, make: Callable[[Path], Path], message: str) -> None:
    path = make(tmp_path)
    with pytest.raises(ValueError, match=message) as caught:
        read_volume(path)
    text = str(caught.value)
    assert type(caught.value) is ValueError
    assert str(path) in text
    assert "\n" not in text


def test_missing_and_unknown_modality(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_volume(tmp_path / "absent.nii.gz")
    with pytest.raises(ValueError, match="must be auto, ct or mri"):
        read_volume(tmp_path, "pet")
