"""Volumes of the scene as files to send, and files that came as volumes of the scene."""

import hashlib
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import slicer
import vtk

from LoRKDLib.tasks import pause

IMAGE = "LoRKD.Image {address}"
"""Attribute of a volume node: its id among the studies of the server there."""
PIECE_BYTES = 2 << 20
_TYPES = {"float32": "float", "float64": "double"}  # names in NRRD of what numpy calls otherwise


async def write_volume(volume: Any, path: Path, labels: np.ndarray | None = None) -> str:
    """Write a volume as .nrrd, exactly, and give the file's SHA-256; piece by piece, so that the panel stays alive.

    ``labels`` (Z, Y, X) are written in place of the volume's own voxels, and packed.
    """
    array = slicer.util.arrayFromVolume(volume) if labels is None else labels
    array = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("<"), copy=False))
    found = hashlib.sha256()
    with path.open("wb") as file:
        for piece in _pieces(array, volume, packed=labels is not None):
            file.write(piece)
            found.update(piece)
            await pause(0)
    return found.hexdigest()


def _pieces(array: np.ndarray, volume: Any, *, packed: bool) -> Iterator[Any]:
    matrix = vtk.vtkMatrix4x4()
    volume.GetIJKToRASMatrix(matrix)
    ijk_to_lps = np.diag([-1.0, -1.0, 1.0]) @ slicer.util.arrayFromVTKMatrix(matrix)[:3]
    *directions, origin = [f"({','.join(map(repr, column))})" for column in ijk_to_lps.T.tolist()]
    header = f"""NRRD0004
type: {_TYPES.get(array.dtype.name, array.dtype.name)}
dimension: 3
space: left-posterior-superior
sizes: {" ".join(map(str, reversed(array.shape)))}
space directions: {" ".join(directions)}
kinds: domain domain domain
endian: little
encoding: {"gzip" if packed else "raw"}
space origin: {origin}

"""
    yield header.encode()
    voxels, packer = memoryview(array.reshape(-1).view(np.uint8)), zlib.compressobj(level=1, wbits=31)
    for start in range(0, len(voxels), PIECE_BYTES):
        piece = voxels[start : start + PIECE_BYTES]
        yield packer.compress(piece) if packed else piece
    if packed:
        yield packer.flush()


def read_volume(path: Path, name: str) -> Any:
    """Add the volume in a file to the scene."""
    volume = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", name)
    storage = slicer.vtkMRMLVolumeArchetypeStorageNode()
    storage.SetFileName(str(path))
    if not storage.ReadData(volume) or volume.GetImageData() is None:
        slicer.mrmlScene.RemoveNode(volume)
        raise OSError(path.name)
    volume.CreateDefaultDisplayNodes()
    return volume
