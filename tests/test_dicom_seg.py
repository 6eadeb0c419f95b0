"""DICOM SEG out and back, read by our reader, by highdicom and by hand, on an oblique series."""

from dataclasses import replace
from itertools import pairwise

import highdicom
import numpy as np
import pydicom
import pytest
from pydicom.uid import RLELossless

from lorkd_monailabel.departments import structure
from lorkd_monailabel.dicom_grids import onto, read_series, source_series
from lorkd_monailabel.dicom_seg import Algorithm, read, write
from lorkd_monailabel.label_maps import LabelMap, Segment
from lorkd_monailabel.layers import Layers
from lorkd_monailabel.volumes import Grid

SHAPE = (11, 9, 6)
LORKD = Algorithm("LoRKD", "1.2", {"abdomen": "expert 3"})


@pytest.fixture
def series(tmp_path, make_series):
    """Files of an oblique series, in an order that is not that of the slices."""
    make_series(tmp_path / "series")
    return sorted((tmp_path / "series").iterdir())


@pytest.fixture
def grid(series_affine):
    return Grid(SHAPE, series_affine())


def segments(*values: int) -> tuple[Segment, ...]:
    names = ("liver", "left kidney", "spleen", "pancreas")
    return tuple(Segment(value, structure(name)) for value, name in zip(values, names, strict=False))


def blocks(*values: int) -> np.ndarray:
    """A label map with a block for each value, none of which spans all slices; nothing in it is symmetric."""
    array = np.zeros(SHAPE, np.uint8)
    for index, value in enumerate(values):
        array[1 + 2 * index : 4 + 2 * index, 2 : 6 + index, 1 + index : 4] = value
    return array


def by_hand(path, grid) -> dict[int, np.ndarray]:
    """Masks by segment number: each voxel of each frame is put where its own tags say that it lies in space."""
    file = pydicom.dcmread(path)
    shared = file.SharedFunctionalGroupsSequence[0]
    row, column = np.reshape(shared.PlaneOrientationSequence[0].ImageOrientationPatient, (2, 3)).astype(float)
    down, along = map(float, shared.PixelMeasuresSequence[0].PixelSpacing)
    frames = file.pixel_array.reshape(-1, file.Rows, file.Columns)
    masks = {int(each.SegmentNumber): np.zeros(grid.shape, bool) for each in file.SegmentSequence}
    for frame, group in zip(frames, file.PerFrameFunctionalGroupsSequence, strict=True):
        corner = np.array(group.PlanePositionSequence[0].ImagePositionPatient, float)
        number = group.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        for r, c in np.argwhere(frame):
            lps = corner + row * along * c + column * down * r
            voxel = np.linalg.solve(grid.affine, [-lps[0], -lps[1], lps[2], 1])[:3]
            assert np.abs(voxel - np.rint(voxel)).max() < 1e-3
            masks[int(number)][tuple(np.rint(voxel).astype(int))] = True
    return masks


def by_highdicom(path, series) -> np.ndarray:
    """(slices, rows, columns, segments), in the order of the slices in space."""
    slices, _ = read_series(series)
    file = highdicom.seg.segread(path)
    uids = [each.SOPInstanceUID for each in slices]
    return file.get_pixels_by_source_instance(uids, assert_missing_frames_are_empty=True)


def test_label_map_comes_back_voxel_for_voxel(tmp_path, series, grid):
    label_map = LabelMap(blocks(1, 2, 3), grid, segments(1, 2, 3), ())
    write(label_map, series, tmp_path / "a.dcm", algorithm=LORKD)
    back = read(tmp_path / "a.dcm", grid)
    np.testing.assert_array_equal(back.array, label_map.array)
    assert (back.names, back.overlaps) == ({1: "liver", 2: "left kidney", 3: "spleen"}, 0)


def test_independent_readers_see_the_same_voxels(tmp_path, series, grid):
    label_map = LabelMap(blocks(1, 2, 3), grid, segments(1, 2, 3), ())
    write(label_map, series, tmp_path / "a.dcm", algorithm=LORKD)
    theirs, hand = by_highdicom(tmp_path / "a.dcm", series), by_hand(tmp_path / "a.dcm", grid)
    assert sorted(hand) == [1, 2, 3]
    for value in (1, 2, 3):
        np.testing.assert_array_equal(hand[value], label_map.array == value)
        np.testing.assert_array_equal(theirs[..., value - 1].transpose(2, 1, 0), label_map.array == value)


def test_overlaps_are_kept(tmp_path, series, grid):
    first, second = blocks(1), np.roll(blocks(2), 1, axis=0)
    layers = Layers((first, second), grid, segments(1, 2), (0, 1))
    assert (first.astype(bool) & second.astype(bool)).any()
    write(layers, series, tmp_path / "a.dcm", algorithm=LORKD)
    hand = by_hand(tmp_path / "a.dcm", grid)
    np.testing.assert_array_equal(hand[1], first == 1)
    np.testing.assert_array_equal(hand[2], second == 2)
    theirs = by_highdicom(tmp_path / "a.dcm", series)
    np.testing.assert_array_equal(theirs[..., 1].transpose(2, 1, 0), second == 2)
    back = read(tmp_path / "a.dcm", grid)
    assert back.overlaps == np.count_nonzero((first == 1) & (second == 2))
    np.testing.assert_array_equal(back.array, np.where(first, first, second))
    assert pydicom.dcmread(tmp_path / "a.dcm").SegmentsOverlap == "YES"


def test_codes_sides_colours_and_algorithm(tmp_path, series, grid):
    write(LabelMap(blocks(1, 2), grid, segments(1, 2), ()), series, tmp_path / "a.dcm", algorithm=LORKD)
    file = pydicom.dcmread(tmp_path / "a.dcm")
    liver, kidney = file.SegmentSequence
    kind = kidney.SegmentedPropertyTypeCodeSequence[0]
    assert (kind.CodeValue, kind.CodingSchemeDesignator) == (structure("left kidney").snomed, "SCT")
    side = kind.SegmentedPropertyTypeModifierCodeSequence[0]
    assert (side.CodeValue, side.CodeMeaning) == ("7771000", "Left")
    assert "SegmentedPropertyTypeModifierCodeSequence" not in liver.SegmentedPropertyTypeCodeSequence[0]
    assert kidney.SegmentedPropertyCategoryCodeSequence[0].CodeValue == "123037004"
    made = kidney.SegmentationAlgorithmIdentificationSequence[0]
    assert (kidney.SegmentAlgorithmType, made.AlgorithmName, made.AlgorithmVersion) == ("AUTOMATIC", "LoRKD", "1.2")
    assert "expert 3" in made.AlgorithmParameters
    assert file.PatientID == "MRN-4711"
    assert file.ReferencedSeriesSequence[0].SeriesInstanceUID == "1.2.826.0.1.3680043.10.1"


@pytest.mark.parametrize(
    ("rgb", "lab"),
    [
        # white and black by definition; red from Lindbloom's calculator, sRGB with D50
        ((255, 255, 255), (65535, 32896, 32896)),
        ((0, 0, 0), (0, 32896, 32896)),
        ((255, 0, 0), (54.29 / 100 * 65535, (80.81 + 128) / 255 * 65535, (69.89 + 128) / 255 * 65535)),
    ],
)
def test_colour_is_cielab(tmp_path, series, grid, rgb, lab):
    coloured = Segment(1, replace(structure("liver"), color=rgb))
    write(LabelMap(blocks(1), grid, (coloured,), ()), series, tmp_path / "a.dcm")
    value = pydicom.dcmread(tmp_path / "a.dcm").SegmentSequence[0].RecommendedDisplayCIELabValue
    np.testing.assert_allclose(value, lab, atol=8)


def test_values_with_gaps_are_kept_beside_the_numbers(tmp_path, series, grid):
    label_map = LabelMap(blocks(7, 3).astype(np.uint16), grid, segments(7, 3), ())
    write(label_map, series, tmp_path / "a.dcm")
    numbers = [(each.SegmentNumber, each.SegmentLabel) for each in pydicom.dcmread(tmp_path / "a.dcm").SegmentSequence]
    assert numbers == [(1, "left kidney"), (2, "liver")]
    back = read(tmp_path / "a.dcm", grid)
    np.testing.assert_array_equal(back.array, label_map.array)
    assert back.names == {3: "left kidney", 7: "liver"}


def test_empty_segments_and_files(tmp_path, series, grid):
    write(LabelMap(blocks(1), grid, segments(1, 2), ()), series, tmp_path / "a.dcm")
    assert read(tmp_path / "a.dcm", grid).names == {1: "liver", 2: "left kidney"}
    write(LabelMap(np.zeros(SHAPE, np.uint8), grid, segments(1, 2), ()), series, tmp_path / "b.dcm")
    back = read(tmp_path / "b.dcm", grid)
    assert (back.array.any(), set(back.names)) == (False, {1, 2})
    with pytest.raises(ValueError, match="there is no segment to write"):
        write(LabelMap(np.zeros(SHAPE, np.uint8), grid, (), ()), series, tmp_path / "c.dcm")
    assert [path.name for path in sorted(tmp_path.glob("*.dcm"))] == ["a.dcm", "b.dcm"]


def test_cropped_label_goes_to_its_place(tmp_path, series, grid):
    whole = blocks(1, 2)
    affine = grid.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ [1, 2, 1]
    cropped = LabelMap(whole[1:8, 2:, 1:5], Grid((7, 7, 4), affine), segments(1, 2), ())
    write(cropped, series, tmp_path / "a.dcm")
    np.testing.assert_array_equal(read(tmp_path / "a.dcm", grid).array, whole)


def test_onto_takes_the_nearest_voxel_of_a_turned_grid():
    source = Grid((2, 3, 4), np.diag([2.0, 2, 2, 1]))
    array = np.arange(1, 25, dtype=np.uint8).reshape(2, 3, 4)
    turned = np.array([[0, 0, 2, 0], [2, 0, 0, 0], [0, -2, 0, 8], [0, 0, 0, 1]], float)  # (i, j, k) -> (k, i, 4 - j)
    result = onto(array, source, Grid((3, 6, 2), turned))
    np.testing.assert_array_equal(result[:, 1:5], array.transpose(1, 2, 0)[:, ::-1])
    assert not result[:, 0].any()
    assert not result[:, 5].any()


def test_fractional_and_odd_sizes(tmp_path, grid, make_series):
    shape = (7, 5, 4)  # 35 voxels: frames begin within a byte
    make_series(tmp_path / "odd", uid="1.2.3.4", shape=shape)
    own = Grid(shape, grid.affine)
    random = np.random.default_rng(0).integers(0, 3, shape).astype(np.uint8)
    write(LabelMap(random, own, segments(1, 2), ()), sorted((tmp_path / "odd").iterdir()), tmp_path / "a.dcm")
    np.testing.assert_array_equal(read(tmp_path / "a.dcm", own).array, random)
    file = pydicom.dcmread(tmp_path / "a.dcm")
    bits = file.pixel_array
    file.SegmentationType, file.MaximumFractionalValue = "FRACTIONAL", 255
    file.BitsAllocated = file.BitsStored = 8
    file.HighBit = 7
    file.PixelData = (bits.astype(np.uint8) * 128 + (1 - bits.astype(np.uint8)) * 127).tobytes()
    file.save_as(tmp_path / "b.dcm")
    np.testing.assert_array_equal(read(tmp_path / "b.dcm", own).array, random)
    file.compress(RLELossless)
    file.save_as(tmp_path / "c.dcm")
    np.testing.assert_array_equal(read(tmp_path / "c.dcm", own).array, random)


def test_source_series_is_the_folder_of_that_name(tmp_path, series):
    (tmp_path / "series.nii.gz").touch()
    assert source_series(tmp_path / "series.nii.gz") == source_series(tmp_path / "series") == series
    with pytest.raises(ValueError, match=r"other\.nii\.gz is no DICOM series"):
        source_series(tmp_path / "other.nii.gz")


def test_slices_in_order(series, grid):
    slices, own = read_series(series)
    heights = [int(each.InstanceNumber) for each in slices]
    assert heights == sorted(heights)
    assert all(a.SOPInstanceUID != b.SOPInstanceUID for a, b in pairwise(slices))
    assert own.shape == grid.shape
    np.testing.assert_allclose(own.affine, grid.affine, atol=1e-5)


def test_what_is_no_segmentation(tmp_path, series, grid):
    (tmp_path / "text.dcm").write_text("no DICOM")
    with pytest.raises(ValueError, match=r"text\.dcm is no DICOM file"):
        read(tmp_path / "text.dcm", grid)
    with pytest.raises(ValueError, match="not all files of the series are DICOM"):
        read_series([*series, tmp_path / "text.dcm"])
    with pytest.raises(ValueError, match="two slices or more of one series"):
        read_series(series[:1])
    with pytest.raises(ValueError, match="is no DICOM SEG"):
        read(series[0], grid)


@pytest.mark.parametrize("lost", ["SegmentSequence", "SharedFunctionalGroupsSequence", "PixelData", "NumberOfFrames"])
def test_damaged_segmentation_is_refused_in_a_sentence(tmp_path, series, grid, lost):
    write(LabelMap(blocks(1), grid, segments(1), ()), series, tmp_path / "a.dcm")
    file = pydicom.dcmread(tmp_path / "a.dcm")
    del file[lost]
    file.save_as(tmp_path / "a.dcm")
    with pytest.raises(ValueError, match=r"a\.dcm is a damaged DICOM SEG .*; export it again"):
        read(tmp_path / "a.dcm", grid)


def test_frame_of_an_unknown_segment_is_refused(tmp_path, series, grid):
    write(LabelMap(blocks(1), grid, segments(1), ()), series, tmp_path / "a.dcm")
    file = pydicom.dcmread(tmp_path / "a.dcm")
    file.PerFrameFunctionalGroupsSequence[0].SegmentIdentificationSequence[0].ReferencedSegmentNumber = 9
    file.save_as(tmp_path / "a.dcm")
    with pytest.raises(ValueError, match=r"a\.dcm is a damaged DICOM SEG"):
        read(tmp_path / "a.dcm", grid)
