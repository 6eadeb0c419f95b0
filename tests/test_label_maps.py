"""Tests of lorkd_monailabel.label_maps."""

from __future__ import annotations

import itertools
import os
import resource
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from lorkd_monailabel.departments import Structure
from lorkd_monailabel.label_maps import Found, LabelMap, Merging, Overlap, Segment, write_label_map
from lorkd_monailabel.volumes import Grid, read_volume

LIVER = Structure("liver", "abdomen", None, "10200004", "Liver", (221, 130, 101), ())
LEFT_KIDNEY = Structure("left kidney", "abdomen", "left", "64033007", "Kidney", (212, 126, 151), ("kidney_left",))
SPLEEN = Structure("spleen", "abdomen", None, "78961009", "Spleen", (157, 108, 162), ())


def straight_grid(shape: tuple[int, int, int] = (4, 5, 6)) -> Grid:
    return Grid(shape, np.diag([2.0, 1.0, 0.5, 1.0]))


def oblique_grid() -> Grid:
    """Rotated, anisotropic (4, 0.9, 1.3 mm), permuted and flipped; every entry is a 32-bit float, as NIfTI keeps it."""
    directions = np.array([[2, -1, 2], [2, 2, -1], [-1, 2, 2]]) / 3  # orthonormal
    affine = np.eye(4)
    affine[:3, :3] = directions[:, [2, 0, 1]] * np.array([-4.0, -0.9, 1.3])
    affine[:3, 3] = (31.5, -77.25, 140.125)
    return Grid((11, 34, 27), affine.astype(np.float32))


def example(grid: Grid, values: tuple[int, ...] = (1, 2, 3), dtype: type = np.uint8) -> LabelMap:
    array = np.random.default_rng(0).choice(np.array((0, *values), dtype=dtype), grid.shape)
    structures = (LIVER, LEFT_KIDNEY, SPLEEN)
    segments = tuple(Segment(value, structure) for value, structure in zip(values, structures, strict=True))
    return LabelMap(array, grid, segments, ())


def merged(probabilities: Iterable[tuple[Segment, np.ndarray]], grid: Grid) -> LabelMap:
    merging = Merging(grid)
    for segment, probability in probabilities:
        merging.add(segment, probability)
    return merging.label_map()


def box(shape: tuple[int, int, int], x: slice, probability: float) -> np.ndarray:
    array = np.zeros(shape, np.float32)
    array[x] = probability
    return array


def test_merge_by_hand() -> None:
    grid = straight_grid((6, 1, 1))
    liver = np.array([0.9, 0.6, 0.7, 0.5, 0.0, 0.0], np.float32).reshape(6, 1, 1)
    kidney = np.array([0.0, 0.8, 0.7, 0.6, 0.9, 0.4], np.float32).reshape(6, 1, 1)
    label_map = merged([(Segment(1, LIVER), liver), (Segment(7, LEFT_KIDNEY), kidney)], grid)
    # 0.5 claims nothing; the higher wins; the tie at 0.7 goes to the earlier
    assert label_map.array.ravel().tolist() == [1, 7, 1, 7, 7, 0]
    assert label_map.array.dtype == np.uint8
    assert label_map.overlaps == (Overlap("liver", "left kidney", 2),)
    assert label_map.segments == (Segment(1, LIVER), Segment(7, LEFT_KIDNEY))
    assert label_map.grid is grid


def test_what_was_found_by_hand() -> None:
    """The voxels that a structure won and their mean probability; those of the loser are not the loser's."""
    merging = Merging(straight_grid((6, 1, 1)))
    liver = np.array([0.9, 0.6, 0.7, 0.5, 0.0, 0.0], np.float32).reshape(6, 1, 1)
    kidney = np.array([0.0, 0.8, 0.7, 0.6, 0.9, 0.4], np.float32).reshape(6, 1, 1)
    merging.add(Segment(1, LIVER), liver)
    merging.add(Segment(7, LEFT_KIDNEY), kidney)
    merging.add(Segment(3, SPLEEN), liver)
    found = merging.found()
    assert found[1] == Found(2, pytest.approx((0.9 + 0.7) / 2, abs=1e-6))
    assert found[7] == Found(3, pytest.approx((0.8 + 0.6 + 0.9) / 3, abs=1e-6))
    assert found[3] == Found(0, None)


def test_a_part_of_the_grid_is_as_good_as_the_whole() -> None:
    grid, generator = straight_grid((9, 8, 7)), np.random.default_rng(0)
    whole, parts = Merging(grid), Merging(grid)
    for value in range(1, 6):
        part = tuple(slice(int(a), int(a) + 4) for a in generator.integers(0, 4, 3))
        array = np.zeros(grid.shape, np.float32)
        array[part] = generator.random((4, 4, 4))
        segment = Segment(value, Structure(f"structure {value}", "abdomen", None, "1", "x", (1, 2, 3), ()))
        whole.add(segment, array)
        parts.add(segment, array[part], part)
    np.testing.assert_array_equal(parts.label_map().array, whole.label_map().array)
    assert parts.label_map().overlaps == whole.label_map().overlaps
    assert parts.label_map().overlaps != ()
    assert parts.found() == whole.found()
    with pytest.raises(ValueError, match=r"has shape \(4, 4, 4\), but the grid has \(4, 4, 3\)"):
        parts.add(Segment(9, LIVER), np.zeros((4, 4, 4)), (slice(0, 4), slice(0, 4), slice(4, 7)))


def test_every_pair_is_counted_as_in_masks_at_once() -> None:
    """Against the plain way: all masks in memory, random boxes and noise, many targets."""
    generator = np.random.default_rng(3)
    grid = straight_grid((13, 11, 19))
    probabilities = []
    for value in range(1, 9):
        array = np.zeros(grid.shape, np.float32)
        starts = generator.integers(0, 8, 3)
        region = tuple(slice(a, a + size) for a, size in zip(starts, generator.integers(2, 11, 3), strict=True))
        array[region] = generator.random(array[region].shape).round(1)
        name = f"structure {value}"
        probabilities.append((Segment(value, Structure(name, "abdomen", None, "1", "x", (1, 2, 3), ())), array))
    label_map = merged(iter(probabilities), grid)

    stack = np.stack([array for _, array in probabilities])
    winner = np.where((stack > 0.5).any(axis=0), np.where(stack > 0.5, stack, -1).argmax(axis=0) + 1, 0)
    np.testing.assert_array_equal(label_map.array, winner)
    expected = {}
    for first, second in itertools.combinations(range(8), 2):
        if both := int(((stack[first] > 0.5) & (stack[second] > 0.5)).sum()):
            expected[f"structure {first + 1}", f"structure {second + 1}"] = both
    assert len(expected) > 5
    assert {(o.first, o.second): o.voxels for o in label_map.overlaps} == expected


def test_merge_needs_one_probability_volume_at_a_time() -> None:
    grid = straight_grid()

    def stream() -> Any:
        for value, structure in ((1, LIVER), (2, SPLEEN), (3, LEFT_KIDNEY)):
            array = np.full(grid.shape, 0.6, np.float32)
            yield Segment(value, structure), array
            array[:] = np.nan  # once it asks for the next, merge needs nothing of this one

    label_map = merged(stream(), grid)
    assert (label_map.array == 1).all()
    assert [overlap.voxels for overlap in label_map.overlaps] == [120, 120, 120]


def test_merge_widens_only_when_it_must() -> None:
    grid = straight_grid()
    first = (Segment(255, LIVER), box(grid.shape, slice(0, 2), 0.9))
    assert merged([first], grid).array.dtype == np.uint8
    label_map = merged([first, (Segment(256, SPLEEN), box(grid.shape, slice(1, 4), 0.8))], grid)
    assert label_map.array.dtype == np.uint16
    assert label_map.array[:, 0, 0].tolist() == [255, 255, 256, 256]


def test_merge_of_nothing_and_of_empty_masks() -> None:
    grid = straight_grid()
    assert not merged([], grid).array.any()
    label_map = merged([(Segment(1, LIVER), np.zeros(grid.shape))], grid)
    assert not label_map.array.any()
    assert label_map.segments == (Segment(1, LIVER),)
    assert label_map.overlaps == ()


@pytest.mark.parametrize(
    ("value", "shape", "message"),
    [
        (0, (4, 5, 6), "must be in 1"),
        (65536, (4, 5, 6), "must be in 1"),
        (1, (4, 5, 6), "is taken"),
        (2, (4, 5, 7), "resample it first"),
    ],
)
def test_merge_refuses(value: int, shape: tuple[int, int, int], message: str) -> None:
    grid = straight_grid()
    with pytest.raises(ValueError, match=message):
        merged([(Segment(1, LIVER), np.zeros(grid.shape)), (Segment(value, SPLEEN), np.zeros(shape))], grid)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.nrrd", "a.seg.nrrd", "a.mha", "A.NII.GZ", "A.NRRD"])
@pytest.mark.parametrize("grid", [straight_grid(), oblique_grid()], ids=["straight", "oblique"])
@pytest.mark.parametrize(("values", "dtype"), [((1, 2, 3), np.uint8), ((1, 300, 65535), np.uint16)])
def test_written_label_map_reads_back(
    tmp_path: Path, name: str, grid: Grid, values: tuple[int, ...], dtype: type
) -> None:
    label_map = example(grid, values, dtype)
    write_label_map(label_map, tmp_path / name)
    assert os.listdir(tmp_path) == [name]
    volume = read_volume(tmp_path / name)
    np.testing.assert_array_equal(volume.array, label_map.array)
    if ".nii" in name.lower():
        np.testing.assert_array_equal(volume.grid.affine, grid.affine)
    else:  # SimpleITK splits the affine into directions and spacing and so rounds the last bit
        np.testing.assert_allclose(volume.grid.affine, grid.affine, rtol=1e-14, atol=1e-14)


def test_the_same_label_map_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.nii.gz", "b.nii.gz"):
        write_label_map(example(oblique_grid()), tmp_path / name)
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


def test_nifti_header(tmp_path: Path) -> None:
    grid = oblique_grid()
    write_label_map(example(grid), tmp_path / "a.nii.gz")
    image = nibabel.load(tmp_path / "a.nii.gz")
    assert isinstance(image, nibabel.Nifti1Image)
    assert image.get_data_dtype() == np.uint8
    assert int(image.header["sform_code"]) == 1
    assert int(image.header["qform_code"]) == 1
    np.testing.assert_array_equal(image.get_sform(), grid.affine)
    np.testing.assert_allclose(image.get_qform(), grid.affine, atol=1e-5)
    assert image.header.get_xyzt_units()[0] == "mm"
    # and SimpleITK, which is what 3D Slicer's reader stands on, sees it at the same place
    point = sitk.ReadImage(str(tmp_path / "a.nii.gz")).TransformIndexToPhysicalPoint((3, 20, 5))
    np.testing.assert_allclose(np.array(point) * (-1, -1, 1), (grid.affine @ (3, 20, 5, 1))[:3], atol=1e-4)


def test_nrrd_header_is_that_of_a_slicer_segmentation(tmp_path: Path) -> None:
    grid = oblique_grid()
    write_label_map(example(grid, (1, 4, 9)), tmp_path / "a.seg.nrrd")
    image = sitk.ReadImage(str(tmp_path / "a.seg.nrrd"))
    assert image.GetPixelID() == sitk.sitkUInt8
    fields = {key: image.GetMetaData(key) for key in image.GetMetaDataKeys() if key.startswith("Seg")}
    kidney = {key.removeprefix("Segment1_"): text for key, text in fields.items() if key.startswith("Segment1_")}
    assert kidney == {
        "ID": "Segment_4",
        "Name": "left kidney",
        "NameAutoGenerated": "0",
        "Color": "0.831373 0.494118 0.592157",
        "ColorAutoGenerated": "0",
        "LabelValue": "4",
        "Layer": "0",
        "Extent": "0 10 0 33 0 26",
        "Tags": "TerminologyEntry:Segmentation category and type - 3D Slicer General Anatomy list"
        "~SCT^123037004^Anatomical Structure~SCT^64033007^Kidney~SCT^7771000^Left"
        "~Anatomic codes - DICOM master list~^^~^^|",
    }
    assert "~SCT^10200004^Liver~^^~Anatomic codes" in fields["Segment0_Tags"]
    assert fields["Segment2_LabelValue"] == "9"
    assert "Segment3_ID" not in fields
    assert fields["Segmentation_ReferenceImageExtentOffset"] == "0 0 0"
    assert fields["Segmentation_MasterRepresentation"] == "Binary labelmap"


def test_nrrd_directions_are_the_columns_of_the_affine(tmp_path: Path) -> None:
    """Read from the text of the header, as NRRD wants one vector an axis, in LPS here."""
    grid = oblique_grid()
    write_label_map(example(grid), tmp_path / "a.nrrd")
    header = (tmp_path / "a.nrrd").read_bytes().split(b"\n\n")[0].decode()
    fields = dict(line.split(": ", 1) for line in header.splitlines() if ": " in line)
    assert fields["space"] == "left-posterior-superior"
    vectors = [[float(x) for x in part.strip("()").split(",")] for part in fields["space directions"].split(" ")]
    np.testing.assert_allclose(np.array(vectors).T, np.diag([-1, -1, 1]) @ grid.affine[:3, :3], rtol=1e-14)


@pytest.mark.parametrize("name", ["a.png", "a", "a.nii.zip", "nrrd"])
def test_unknown_extension(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=r"must end in \.nii, \.nii\.gz, \.nrrd or \.mha"):
        write_label_map(example(straight_grid()), tmp_path / name)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["a.nii.gz", "a.nrrd", "a.mha"])
def test_failure_leaves_nothing_behind(tmp_path: Path, name: str) -> None:
    label_map = example(straight_grid())
    with pytest.raises(FileNotFoundError, match="make it first"):
        write_label_map(label_map, tmp_path / "absent" / name)
    # the file is written in full, but a folder is in its place
    (tmp_path / name).mkdir()
    with pytest.raises(OSError, match=name):
        write_label_map(label_map, tmp_path / name)
    assert os.listdir(tmp_path) == [name]


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.nrrd", "a.mha"])
def test_a_full_disk_keeps_the_old_file(tmp_path: Path, name: str) -> None:
    write_label_map(example(straight_grid()), tmp_path / name)
    before = (tmp_path / name).read_bytes()
    large = example(Grid((40, 40, 40), np.eye(4)))  # random, so gzip leaves more than the limit of it
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, hard))
    try:
        with pytest.raises(OSError, match=r"too large|cannot be written"):
            write_label_map(large, tmp_path / name)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert os.listdir(tmp_path) == [name]
    assert (tmp_path / name).read_bytes() == before


@pytest.mark.parametrize("name", ["a.nii.gz", "a.nrrd"])
def test_what_is_not_on_disk_takes_no_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    (tmp_path / name).write_bytes(b"before")

    def fail(number: int) -> None:
        raise OSError("the disk is gone")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="the disk is gone"):
        write_label_map(example(straight_grid()), tmp_path / name)
    assert os.listdir(tmp_path) == [name]
    assert (tmp_path / name).read_bytes() == b"before"
