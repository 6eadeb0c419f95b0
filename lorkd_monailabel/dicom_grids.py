"""Grids of DICOM: slices or frames with a place each -> a grid; labels from any grid onto another."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lorkd_monailabel.volumes import Grid, same_grid

if TYPE_CHECKING:  # it comes with the extra "server"
    from pydicom import Dataset

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_CHUNK_ELEMENTS = 1 << 20


def source_series(image: Path) -> list[Path]:
    """Gives the DICOM files that an image came from: those of the folder, or of the folder named as the volume file.

    Raises:
        ValueError: there is no such folder, so the image is no DICOM series.
    """
    name = image.name.removesuffix(".gz").removesuffix(".nii")
    folder = image if image.is_dir() else image.with_name(name)
    files = sorted(path for path in folder.iterdir() if path.is_file()) if folder.is_dir() else []
    if not files:
        raise ValueError(f"{image.name} is no DICOM series, which DICOM SEG refers to; ask for .nii.gz or .nrrd")
    return files


def read_series(files: Sequence[Path]) -> tuple[list[Dataset], Grid]:
    """Reads the headers of a series' slices, in their order in space, and the grid that they make.

    Raises:
        ValueError: files are no slices of one series, or it has a single slice or frames in one file.
    """
    import pydicom
    from pydicom.errors import InvalidDicomError

    try:
        slices: list[Dataset] = [pydicom.dcmread(file, stop_before_pixels=True) for file in files]
    except InvalidDicomError as error:
        raise ValueError("not all files of the series are DICOM; give the folder of one series") from error
    needed = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "FrameOfReferenceUID", "Rows")
    for name in needed:
        if any(name not in each for each in slices):
            raise ValueError(f"the series has slices without {name}, which DICOM SEG needs; ask for .nii.gz or .nrrd")
    shapes = {(int(each.Columns), int(each.Rows)) for each in slices}
    if len(slices) < 2 or len(shapes) > 1 or len({each.SeriesInstanceUID for each in slices}) > 1:
        raise ValueError("the files must be two slices or more of one series, all of one size; give one series")
    along = normal(slices[0].ImageOrientationPatient)
    slices.sort(key=lambda each: float(np.dot(along, np.asarray(each.ImagePositionPatient, dtype=float))))
    ends = np.array([slices[0].ImagePositionPatient, slices[-1].ImagePositionPatient], dtype=float)
    step = float(np.linalg.norm(ends[1] - ends[0])) / (len(slices) - 1)
    first = slices[0]
    affine = plane_affine(first.ImageOrientationPatient, first.PixelSpacing, step, ends[0])
    columns, rows = shapes.pop()
    return slices, Grid((columns, rows, len(slices)), affine)


def normal(orientation: Sequence[float]) -> np.ndarray:
    """Gives the direction in which planes follow each other, of the six cosines of their rows and columns."""
    cosines = np.asarray(orientation, dtype=float)
    return np.cross(cosines[:3], cosines[3:])


def plane_affine(orientation: Sequence[float], spacing: Sequence[float], step: float, origin: np.ndarray) -> np.ndarray:
    """Gives voxel index (column, row, plane) to RAS+ mm of planes.

    Args:
        orientation: six cosines, LPS+.
        spacing: between the centres of rows and of columns, in mm, in DICOM's order.
        step: between planes, in mm.
        origin: centre of the first voxel of the first plane, LPS+ mm.
    """
    cosines = np.asarray(orientation, dtype=float)
    affine = np.eye(4)
    affine[:3, 0] = cosines[:3] * float(spacing[1])
    affine[:3, 1] = cosines[3:] * float(spacing[0])
    affine[:3, 2] = normal(orientation) * step
    affine[:3, 3] = origin
    return LPS_TO_RAS @ affine


def onto(array: np.ndarray, source: Grid, target: Grid) -> np.ndarray:
    """Brings labels (X, Y, Z) to another grid, however it lies: the nearest voxel, 0 beyond the source's voxels."""
    if same_grid(source, target):
        return array
    matrix = np.linalg.solve(source.affine, target.affine)
    result = np.zeros(target.shape, dtype=array.dtype)
    limit = np.asarray(source.shape)[:, None]
    columns, rows, planes = target.shape
    slab = max(1, _CHUNK_ELEMENTS // (columns * rows))
    for start in range(0, planes, slab):
        stop = min(start + slab, planes)
        index = np.indices((columns, rows, stop - start)).reshape(3, -1)
        index[2] += start
        # nine digits, so that rounding errors cannot decide which way a voxel half between two others goes
        nearest = np.floor(np.round(matrix[:3, :3] @ index + matrix[:3, 3:], 9) + 0.5).astype(np.int64)
        inside = ((nearest >= 0) & (nearest < limit)).all(axis=0)
        x, y, z = nearest[:, inside]
        part = np.zeros(index.shape[1], dtype=array.dtype)
        part[inside] = array[x, y, z]
        result[..., start:stop] = part.reshape(columns, rows, stop - start)
    return result
