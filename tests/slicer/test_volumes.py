"""Volumes as files to send: geometry and voxels are exact, the hash is that of the file."""

import hashlib

import numpy as np
import pytest
import SimpleITK

from tests.slicer.conftest import OBLIQUE


def write(qtbot, node, path, labels=None):
    """Write a volume, and give what the task found."""
    from LoRKDLib.tasks import Task
    from LoRKDLib.volumes import write_volume

    found, over = [], []

    async def steps():
        found.append(await write_volume(node, path, labels))

    Task(steps(), over.append).go()
    qtbot.waitUntil(lambda: bool(over), timeout=20_000)
    assert over == [""]
    return found[0]


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16", "uint16", "int32", "uint32", "float32", "float64"])
def test_a_written_volume_is_exact(qtbot, slicer, tmp_path, dtype):
    from LoRKDLib.volumes import PIECE_BYTES

    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "x")
    array = np.random.default_rng(1).integers(0, 100, (60, 200, 190)).astype(dtype)
    slicer.util.updateVolumeFromArray(node, array)
    node.SetIJKToRASMatrix(slicer.util.vtkMatrixFromArray(OBLIQUE))
    sha256 = write(qtbot, node, tmp_path / "x.nrrd")

    assert array.nbytes > PIECE_BYTES
    assert sha256 == hashlib.sha256((tmp_path / "x.nrrd").read_bytes()).hexdigest()
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


def test_labels_are_packed_on_the_grid_of_their_volume(qtbot, make_volume, tmp_path):
    node, labels = make_volume(), np.zeros((22, 26, 30), np.uint16)
    labels[3:9, 4:12, 5:15] = 300
    write(qtbot, node, tmp_path / "x.nrrd", labels)
    image = SimpleITK.ReadImage(str(tmp_path / "x.nrrd"))
    np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(image), labels)
    np.testing.assert_allclose(image.GetOrigin(), (np.diag([-1, -1, 1, 1]) @ OBLIQUE)[:3, 3], rtol=1e-12)
    assert (tmp_path / "x.nrrd").stat().st_size < labels.nbytes / 10


def test_slicer_reads_a_written_volume_as_it_was(qtbot, slicer, make_volume, tmp_path):
    import vtk
    from LoRKDLib.volumes import read_volume

    node, matrices = make_volume(), (vtk.vtkMatrix4x4(), vtk.vtkMatrix4x4())
    write(qtbot, node, tmp_path / "x.nrrd")
    again = read_volume(tmp_path / "x.nrrd", "again")
    np.testing.assert_array_equal(slicer.util.arrayFromVolume(again), slicer.util.arrayFromVolume(node))
    again.GetIJKToRASMatrix(matrices[0])
    node.GetIJKToRASMatrix(matrices[1])
    np.testing.assert_allclose(*map(slicer.util.arrayFromVTKMatrix, matrices), atol=1e-9)


def test_what_is_no_volume_is_refused_and_leaves_no_node(slicer, tmp_path):
    from LoRKDLib.volumes import read_volume

    (tmp_path / "x.nrrd").write_text("nothing", encoding="utf-8")
    with pytest.raises(OSError, match=r"x\.nrrd"):
        read_volume(tmp_path / "x.nrrd", "x")
    assert slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLScalarVolumeNode") is None
