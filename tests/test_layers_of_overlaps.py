"""Tests of lorkd_monailabel.layers: files read back by arithmetic of our own and by SimpleITK."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from lorkd_monailabel.departments import Structure
from lorkd_monailabel.label_maps import Found, Segment
from lorkd_monailabel.layers import Layering, Layers, write_layers
from lorkd_monailabel.volumes import Grid, read_labels


def named(name: str) -> Structure:
    return Structure(name, "abdomen", None, "10200004", "Liver", (221, 130, 101), ())


def oblique_grid(shape: tuple[int, int, int] = (7, 6, 5)) -> Grid:
    """Rotated about a slanted axis, anisotropic (4, 0.9, 1.3 mm), permuted and flipped."""
    directions = np.array([[2, -1, 2], [2, 2, -1], [-1, 2, 2]]) / 3  # orthonormal
    affine = np.eye(4)
    affine[:3, :3] = directions[:, [2, 0, 1]] * np.array([-4.0, -0.9, 1.3])
    affine[:3, 3] = (31.5, -77.25, 140.125)
    return Grid(shape, affine)


def masks(grid: Grid, number: int, seed: int = 0) -> list[np.ndarray]:
    """Random boxes of truth values, many of which meet."""
    generator = np.random.default_rng(seed)
    made = []
    for _ in range(number):
        mask = np.zeros(grid.shape, bool)
        starts = [int(generator.integers(0, length - 2)) for length in grid.shape]
        mask[tuple(slice(start, start + 3) for start in starts)] = True
        made.append(mask)
    return made


def layered(grid: Grid, given: list[np.ndarray], values: list[int] | None = None) -> Layers:
    layering = Layering(grid)
    for number, mask in enumerate(given):
        value = values[number] if values else number + 1
        layering.add(Segment(value, named(f"structure {value}")), mask * np.float32(0.8))
    return layering.layers()


def test_layers_by_hand():
    grid = Grid((6, 1, 1), np.eye(4))
    rows = [[1, 1, 0, 0, 0, 0], [0, 1, 1, 0, 0, 0], [0, 0, 1, 1, 0, 0], [0, 1, 0, 0, 0, 0], [0, 0, 0, 0, 0, 1]]
    layers = layered(grid, [np.array(row, bool).reshape(6, 1, 1) for row in rows])
    assert layers.layers == (0, 1, 0, 2, 0)
    assert [array.ravel().tolist() for array in layers.arrays] == [
        [1, 1, 3, 3, 0, 5],
        [0, 2, 2, 0, 0, 0],
        [0, 4, 0, 0, 0, 0],
    ]
    assert {array.dtype for array in layers.arrays} == {np.dtype(np.uint8)}


@pytest.mark.parametrize("seed", range(5))
def test_every_mask_is_whole(seed):
    grid = oblique_grid((13, 11, 9))
    given = masks(grid, 12, seed)
    layers = layered(grid, given)
    assert 1 < len(layers.arrays) < 12
    assert len(set(layers.layers)) == len(layers.arrays)
    for (segment, mask), expected in zip(layers.masks(), given, strict=True):
        np.testing.assert_array_equal(mask, expected, err_msg=segment.structure.name)


def test_found_is_what_is_claimed():
    layering = Layering(Grid((4, 1, 1), np.eye(4)))
    layering.add(Segment(1, named("a")), np.array([0.9, 0.7, 0.5, 0.0]).reshape(4, 1, 1))
    layering.add(Segment(2, named("b")), np.array([0.6, 0.7]).reshape(2, 1, 1), (slice(1, 3), slice(0, 1), slice(0, 1)))
    layering.add(Segment(3, named("c")), np.zeros((4, 1, 1)))
    assert layering.found() == {
        1: Found(2, pytest.approx(0.8)),
        2: Found(2, pytest.approx(0.65)),
        3: Found(0, None),
    }
    assert [array.ravel().tolist() for array in layering.layers().arrays] == [[1, 1, 0, 0], [0, 2, 2, 0]]


def test_values_above_255_and_no_targets():
    grid = Grid((3, 3, 3), np.eye(4))
    layers = layered(grid, [np.ones(grid.shape, bool)] * 3, [1, 300, 2])
    assert [(array.dtype, int(array.max())) for array in layers.arrays] == [
        (np.uint16, 1),
        (np.uint16, 300),
        (np.uint16, 2),
    ]
    empty = Layering(grid).layers()
    assert (len(empty.arrays), int(empty.arrays[0].max()), empty.segments) == (1, 0, ())
    assert layered(grid, [np.ones(grid.shape, bool)]).astype(np.uint16).arrays[0].dtype == np.uint16


def test_refuses_what_merging_refuses():
    layering = Layering(Grid((3, 3, 3), np.eye(4)))
    layering.add(Segment(1, named("a")), np.ones((3, 3, 3)))
    with pytest.raises(ValueError, match="value 1 of b is taken"):
        layering.add(Segment(1, named("b")), np.ones((3, 3, 3)))
    with pytest.raises(ValueError, match="resample it first"):
        layering.add(Segment(2, named("b")), np.ones((3, 3, 2)))


def parsed(path: Path) -> tuple[dict[str, str], np.ndarray, np.ndarray]:
    """Fields, array (layer, X, Y, Z) and affine to RAS of a NRRD file, by the format's own text."""
    head, body = path.read_bytes().split(b"\n\n", 1)
    lines = head.decode().splitlines()
    assert lines[0] == "NRRD0004"
    fields = dict(line.split(":=" if ":=" in line else ": ", 1) for line in lines[1:])
    assert (fields["space"], fields["encoding"]) == ("left-posterior-superior", "gzip")
    assert fields["kinds"] == "list domain domain domain"
    dtype = {"unsigned char": "u1", "unsigned short": "<u2"}[fields["type"]]
    sizes = [int(size) for size in fields["sizes"].split()]
    array = np.frombuffer(gzip.decompress(body), dtype).reshape(sizes, order="F")  # the first axis is the fastest
    none, *directions = fields["space directions"].split(" ")
    assert none == "none"
    columns = [[float(x) for x in direction.strip("()").split(",")] for direction in directions]
    origin = [float(x) for x in fields["space origin"].strip("()").split(",")]
    affine = np.eye(4)
    affine[:3] = np.diag([-1, -1, 1]) @ np.column_stack([*columns, origin])
    return fields, array, affine


@pytest.mark.parametrize("values", [[1, 2, 3, 4], [1, 300, 2, 65535]])
def test_oblique_file_read_by_its_text(tmp_path, values):
    grid = oblique_grid()
    given = masks(grid, 4)
    layers = layered(grid, given, values)
    write_layers(layers, tmp_path / "a.seg.nrrd")
    assert os.listdir(tmp_path) == ["a.seg.nrrd"]
    fields, array, affine = parsed(tmp_path / "a.seg.nrrd")
    assert array.shape == (len(layers.arrays), 7, 6, 5)
    np.testing.assert_array_equal(affine, grid.affine)
    for number, mask in enumerate(given):
        own = {key.removeprefix(f"Segment{number}_"): text for key, text in fields.items()}
        assert (own["LabelValue"], own["Name"]) == (str(values[number]), f"structure {values[number]}")
        assert (own["ID"], own["Extent"]) == (f"Segment_{values[number]}", "0 6 0 5 0 4")
        np.testing.assert_array_equal(array[int(own["Layer"])] == values[number], mask)
    assert fields["Segmentation_MasterRepresentation"] == "Binary labelmap"
    assert "Segment4_ID" not in fields


def test_oblique_file_read_by_simpleitk(tmp_path):
    """What 3D Slicer's reader stands on: the layers are components, every voxel at its place in the patient."""
    grid = oblique_grid()
    given = masks(grid, 4)
    layers = layered(grid, given)
    write_layers(layers, tmp_path / "a.seg.nrrd")
    image = sitk.ReadImage(str(tmp_path / "a.seg.nrrd"))
    assert (image.GetSize(), image.GetNumberOfComponentsPerPixel()) == (grid.shape, len(layers.arrays))
    voxels = sitk.GetArrayFromImage(image).transpose(3, 2, 1, 0)
    for number, mask in enumerate(given):
        layer = int(image.GetMetaData(f"Segment{number}_Layer"))
        np.testing.assert_array_equal(voxels[layer] == number + 1, mask)
    for index in ((0, 0, 0), (6, 0, 0), (0, 5, 0), (0, 0, 4), (3, 2, 1)):
        point = np.array(image.TransformIndexToPhysicalPoint(index)) * (-1, -1, 1)
        np.testing.assert_allclose(point, (grid.affine @ (*index, 1))[:3], atol=1e-10)


def test_one_layer_is_a_label_map(tmp_path):
    grid = oblique_grid()
    (mask,) = masks(grid, 1)
    write_layers(layered(grid, [mask]), tmp_path / "a.seg.nrrd")
    array, read = read_labels(tmp_path / "a.seg.nrrd")
    np.testing.assert_array_equal(array, mask)
    np.testing.assert_allclose(read.affine, grid.affine)


def test_whole_file_or_none(tmp_path):
    layers = layered(oblique_grid(), masks(oblique_grid(), 4))
    with pytest.raises(ValueError, match=r"must end in \.seg\.nrrd"):
        write_layers(layers, tmp_path / "a.nrrd")
    with pytest.raises(FileNotFoundError, match="make it first"):
        write_layers(layers, tmp_path / "absent" / "a.seg.nrrd")
    (tmp_path / "a.seg.nrrd").mkdir()
    with pytest.raises(OSError, match=r"a\.seg\.nrrd"):
        write_layers(layers, tmp_path / "a.seg.nrrd")
    assert os.listdir(tmp_path) == ["a.seg.nrrd"]
