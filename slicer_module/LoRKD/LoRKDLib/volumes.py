"""Volumes of the scene as files to send, and files that came as volumes of the scene."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import qt
import slicer
import vtk

IMAGE = "LoRKD.Image"
"""Attribute of a volume node: its id on the server."""
SERVER = "LoRKD.Server"
"""Attribute of a volume node: the server that has it under that id."""
PIECE_BYTES = 2 << 20
_TYPES = {"float32": "float", "float64": "double"}
"""Names in NRRD of what numpy calls otherwise."""


def content_key(volume: Any) -> tuple[Any, ...]:
    """Give what changes whenever the volume's voxels or geometry do."""
    matrix = vtk.vtkMatrix4x4()
    volume.GetIJKToRASMatrix(matrix)
    geometry = tuple(matrix.GetElement(row, column) for row in range(3) for column in range(4))
    return volume.GetID(), volume.GetImageData().GetMTime(), geometry


def write_volume(volume: Any, path: Path) -> None:
    """Write a volume or label map as .nrrd, exactly and as fast as the disk; labels are packed.

    Raises:
        OSError: it can't be written.
    """
    storage = slicer.vtkMRMLVolumeArchetypeStorageNode()
    storage.SetFileName(str(path))
    storage.SetUseCompression(1 if volume.IsA("vtkMRMLLabelMapVolumeNode") else 0)
    if not storage.WriteData(volume):
        raise OSError(path.name)


def read_volume(path: Path, name: str) -> Any:
    """Add the volume in a file to the scene.

    Raises:
        OSError: it can't be read.
    """
    volume = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", name)
    storage = slicer.vtkMRMLVolumeArchetypeStorageNode()
    storage.SetFileName(str(path))
    if not storage.ReadData(volume) or volume.GetImageData() is None:
        slicer.mrmlScene.RemoveNode(volume)
        raise OSError(path.name)
    volume.CreateDefaultDisplayNodes()
    return volume


class Packing:
    """Writes a volume as .nrrd and finds its SHA-256, piece by piece, so that the panel stays alive.

    Args:
        volume: node of the scene.
        path: of the new file.
        done: given the hash.

    Raises:
        OSError: the file can't be written.
    """

    def __init__(self, volume: Any, path: Path, done: Callable[[str], None]) -> None:
        array = slicer.util.arrayFromVolume(volume)
        array = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("<"), copy=False))
        self._left = memoryview(array.reshape(-1).view(np.uint8))
        self._file, self._done, self._hash = path.open("wb"), done, hashlib.sha256()
        self._write(_header(volume, array).encode())
        self._timer = qt.QTimer()
        self._timer.connect("timeout()", self._next)
        self._timer.start(0)

    def abort(self) -> None:
        """End it; ``done`` is not called."""
        self._timer.stop()
        self._file.close()

    def _write(self, piece: Any) -> None:
        self._file.write(piece)
        self._hash.update(piece)

    def _next(self) -> None:
        piece, self._left = self._left[:PIECE_BYTES], self._left[PIECE_BYTES:]
        self._write(piece)
        if not self._left:
            self.abort()
            self._done(self._hash.hexdigest())


def _header(volume: Any, array: np.ndarray) -> str:
    """The text before the voxels; a direction is a column of the matrix, in LPS."""
    matrix = vtk.vtkMatrix4x4()
    volume.GetIJKToRASMatrix(matrix)
    signs = (-1, -1, 1)
    columns = [[signs[row] * matrix.GetElement(row, column) for row in range(3)] for column in range(4)]
    *directions, origin = [f"({','.join(repr(number) for number in column)})" for column in columns]
    lines = [
        "NRRD0004",
        f"type: {_TYPES.get(array.dtype.name, array.dtype.name)}",
        "dimension: 3",
        "space: left-posterior-superior",
        f"sizes: {' '.join(str(size) for size in reversed(array.shape))}",
        f"space directions: {' '.join(directions)}",
        "kinds: domain domain domain",
        "endian: little",
        "encoding: raw",
        f"space origin: {origin}",
    ]
    return "\n".join(lines) + "\n\n"
