"""Volumes as files to send: geometry and voxels are exact, the hash is that of the file."""

import hashlib

import numpy as np
import pytest
import SimpleITK

from tests.slicer.conftest import OBLIQUE


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16", "uint16", "int32", "uint32", "float32", "float64"])
def test_a_packed_volume_is_exact(qtbot, slicer, tmp_path, dtype):
    from LoRKDLib.volumes import PIECE_BYTES, Packing

    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "x")
    array = np.random.default_rng(1).integers(0, 100, (60, 200, 190)).astype(dtype)
    slicer.util.updateVolumeFromArray(node, array)
    node.SetIJKToRASMatrix(slicer.util.vtkMatrixFromArray(OBLIQUE))
    done = []
    _packing = Packing(node, tmp_path / "x.nrrd", done.append)
    qtbot.waitUntil(lambda: bool(done), timeout=20_000)

    assert array.nbytes > PIECE_BYTES
    assert done == [hashlib.sha256((tmp_path / "x.nrrd").read_bytes()).hexdigest()]
    image = SimpleITK.ReadImage(str(tmp_path / "x.nrrd"))
    read = SimpleITK.GetArrayFromImage(image)
    assert read.dtype == array.dtype
    np.testing.assert_array_equal(read, array)
    wanted = np.diag([-1, -1, 1, 1]) @ OBLIQUE
    directions = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    spacing = np.array([node.GetSpacing()[axis] for axis in range(3)])
    np.testing.assert_allclose(np.linalg.norm(wanted[:3, :3], axis=0), spacing, rtol=1e-12)
    np.testing.assert_allclose(image.GetOrigin(), wanted[:3, 3], rtol=1e-12)
    np.testing.assert_allclose(directions, wanted[:3, :3], atol=1e-12)


def test_slicer_reads_a_packed_volume_as_it_was(qtbot, slicer, make_volume, tmp_path):
    from LoRKDLib.volumes import Packing, content_key, read_volume

    node, done = make_volume(), []
    _packing = Packing(node, tmp_path / "x.nrrd", done.append)
    qtbot.waitUntil(lambda: bool(done), timeout=20_000)
    again = read_volume(tmp_path / "x.nrrd", "again")
    np.testing.assert_array_equal(slicer.util.arrayFromVolume(again), slicer.util.arrayFromVolume(node))
    np.testing.assert_allclose(content_key(again)[2], content_key(node)[2], atol=1e-9)


def test_what_is_no_volume_is_refused_and_leaves_no_node(slicer, tmp_path):
    from LoRKDLib.volumes import read_volume

    (tmp_path / "x.nrrd").write_text("nothing", encoding="utf-8")
    with pytest.raises(OSError, match=r"x\.nrrd"):
        read_volume(tmp_path / "x.nrrd", "x")
    assert slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLScalarVolumeNode") is None
