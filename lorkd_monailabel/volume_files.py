"""Volume files: NIfTI, NRRD, MetaImage and DICOM folders -> array, affine and what the file says of its modality.

Arrays are (X, Y, Z) in the file's own axis order, as ``volumes`` has them; affines map voxel index to RAS+ millimetres.
``volumes.read_volume`` checks what is read here.
"""

from __future__ import annotations

import logging
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

import nibabel
import numpy as np
from isal import igzip_lib
from nibabel.arrayproxy import ArrayProxy
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError

from lorkd_monailabel.drafts import draft_of, packed
from lorkd_monailabel.unpacking import voxels

# SimpleITK is imported where it is used, as it costs as much as all else but torch and few volumes need it
if TYPE_CHECKING:
    import SimpleITK

_LOG = logging.getLogger(__name__)
_REAL = "biuf"  # numpy kinds of one real number a voxel
_NIFTI = (".nii", ".nii.gz")
_ITK = (".nrrd", ".mha", ".mhd")
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_MODALITIES = {"CT": "ct", "MR": "mri"}  # DICOM's words and ours
_DESCRIPTION = "DICOM {}"  # what a NIfTI file made of a DICOM series says of its modality
UNREADABLE: tuple[type[Exception], ...] = (
    ImageFileError,
    HeaderDataError,
    WrapStructError,
    EOFError,
    OSError,
    zlib.error,
    cast("type[Exception]", igzip_lib.IsalError),  # its stub says that it is one
    # numpy's and nibabel's answers to absurd sizes in a damaged header
    ValueError,
    OverflowError,
    MemoryError,
)
"""What nibabel and the readers below it raise for damaged files."""


class VolumeFile(NamedTuple):
    """What a file holds: array (X, Y, Z) of real numbers, affine (4, 4) to RAS+ mm, "ct", "mri" or None if unsaid."""

    array: np.ndarray
    affine: np.ndarray
    modality: str | None


def read_volume_file(path: Path) -> VolumeFile:
    """Reads .nii, .nii.gz, .nrrd, .mha or .mhd, or a folder that holds one DICOM series.

    Raises:
        FileNotFoundError: there is nothing at the path.
        ValueError: it is no image, or not 3D, or a single slice, or empty, or has no single real number a voxel.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; check the path")
    name = path.name.lower()
    if path.is_dir():
        file = _read_dicom(path)
    elif name.endswith(_NIFTI):
        file = _read_nifti(path)
    elif name.endswith(_ITK):
        file = _read_itk(path)
    else:
        known = ", ".join((*_NIFTI, *_ITK))
        raise ValueError(f"{path} must end in one of {known} or be a folder of one DICOM series; convert it first")
    return file._replace(array=_squeezed(file.array, path))


def _squeezed(array: np.ndarray, path: Path) -> np.ndarray:
    """Drops further axes of length 1; refuses what is not a 3D volume of numbers."""
    if array.dtype.kind not in _REAL:
        raise ValueError(f"{path} has {array.dtype} voxels, but one real number a voxel is needed; export one channel")
    shape = array.shape
    if 0 in shape:
        raise ValueError(f"{path} is empty (shape {shape}); export it again")
    if array.ndim > 3 and all(length == 1 for length in shape[3:]):
        array = array.reshape(shape[:3])
    if array.ndim > 3:
        raise ValueError(f"{path} has {array.ndim} axes (shape {shape}), but 3 are needed; export one time or channel")
    if array.ndim < 3 or 1 in array.shape:
        raise ValueError(f"{path} is 2D (shape {shape}), but a 3D volume is needed; give the whole series")
    return array


def _read_nifti(path: Path) -> VolumeFile:
    try:
        # no memory map: a file that is cut short must fail here, not where its voxels are first used
        image = nibabel.load(path, mmap=False)
        if not isinstance(image, nibabel.Nifti1Image):
            raise ImageFileError("its content is not NIfTI")
        if not (int(image.header["sform_code"]) or int(image.header["qform_code"])):
            _LOG.warning("%s has neither sform nor qform, so left and right are a guess", path)
        if image.get_data_dtype().kind not in _REAL:
            return VolumeFile(np.empty(image.shape, dtype=image.get_data_dtype()), np.eye(4), None)
        with np.errstate(over="ignore"):
            array = voxels(cast("ArrayProxy", image.dataobj), path)
    except UNREADABLE as error:
        raise _unreadable(path, error) from error
    described = image.header["descrip"].item().decode("ascii", errors="replace")
    modality = next((own for name, own in _MODALITIES.items() if described == _DESCRIPTION.format(name)), None)
    return VolumeFile(array, np.asarray(image.affine, dtype=np.float64), modality)


def write_nifti(file: VolumeFile, path: Path) -> None:
    """Writes what ``read_volume_file`` gave as .nii.gz, with the modality; whole numbers as such, the rest as float32.

    Raises:
        OSError: the file cannot be written; nothing is left of it.
    """
    whole = np.array_equal(file.array, np.rint(file.array)) and np.abs(file.array).max() < 2**15
    image = nibabel.Nifti1Image(file.array.astype(np.int16 if whole else np.float32), file.affine)
    image.header.set_xyzt_units("mm")
    image.set_sform(file.affine, code=1)
    image.set_qform(file.affine, code=1)
    name = next((name for name, own in _MODALITIES.items() if own == file.modality), None)
    if name:
        image.header["descrip"] = _DESCRIPTION.format(name).encode("ascii")
    with draft_of(path) as draft, draft.open("wb") as opened:
        with packed(opened) as stream:
            image.to_stream(stream)


def _read_itk(path: Path) -> VolumeFile:
    import SimpleITK as sitk

    try:
        image = sitk.ReadImage(str(path))
    except RuntimeError as error:  # the only exception type SimpleITK has
        raise _unreadable(path, error) from error
    return _from_itk(image, path)


def _from_itk(image: SimpleITK.Image, path: Path, modality: str | None = None) -> VolumeFile:
    import SimpleITK as sitk

    if image.GetNumberOfComponentsPerPixel() != 1:
        count = image.GetNumberOfComponentsPerPixel()
        raise ValueError(f"{path} has {count} numbers a voxel, but one is needed; export one channel")
    dimension = image.GetDimension()
    affine = np.eye(4)
    if dimension >= 3:
        direction = np.reshape(image.GetDirection(), (dimension, dimension))[:3, :3]
        affine[:3, :3] = direction * np.asarray(image.GetSpacing()[:3])
        affine[:3, 3] = image.GetOrigin()[:3]
    array = sitk.GetArrayFromImage(image)
    return VolumeFile(array.transpose(range(array.ndim)[::-1]), _LPS_TO_RAS @ affine, modality)


def _read_dicom(folder: Path) -> VolumeFile:
    import SimpleITK as sitk

    reader = sitk.ImageSeriesReader()
    series = reader.GetGDCMSeriesIDs(str(folder))
    if len(series) != 1:
        raise ValueError(f"folder {folder} holds {len(series)} DICOM series, but must hold one; give that folder")
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder), series[0]))
    reader.MetaDataDictionaryArrayUpdateOn()
    reader.SetOutputPixelType(sitk.sitkFloat32)  # else the first slice's type, though each has its own rescale slope
    try:
        image = reader.Execute()
    except RuntimeError as error:
        raise _unreadable(folder, error) from error
    slices = range(len(reader.GetFileNames()))

    def numbers(tag: str) -> np.ndarray:
        texts = [reader.GetMetaData(i, tag) for i in slices if reader.HasMetaDataKey(i, tag)]
        return np.array([[float(x) for x in text.split("\\")] for text in texts])

    places, turns = numbers("0020|0032"), numbers("0020|0037")
    frames = image.GetSize()[2]
    if len(slices) == 1 and frames > 1:
        places, turns = _frames(Path(reader.GetFileNames()[0]))
    if min(len(places), len(turns)) < frames:
        raise ValueError(
            f"the slices of {folder} do not all say where they lie (ImagePositionPatient, ImageOrientationPatient), "
            "but must; export the series again"
        )
    if frames > 1:
        _check_slices(places, turns, image.GetSpacing(), folder)
    tag = reader.GetMetaData(0, "0008|0060").strip() if reader.HasMetaDataKey(0, "0008|0060") else ""
    return _from_itk(image, folder, _MODALITIES.get(tag))


def _frames(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Where the frames of one file lie, as ``_check_slices`` takes it; SimpleITK makes 1 mm of what it can't follow."""
    try:
        import pydicom
    except ImportError as error:
        raise ValueError(
            f"{path} holds many frames, which are read with pydicom; run: pip install 'lorkd-monailabel[server]'"
        ) from error
    file = pydicom.dcmread(path, stop_before_pixels=True)
    shared = file.get("SharedFunctionalGroupsSequence", [{}])[0]
    places: list[list[float]] = []
    turns: list[list[float]] = []
    for group in file.get("PerFrameFunctionalGroupsSequence", ()):
        for found, sequence, name in (
            (places, "PlanePositionSequence", "ImagePositionPatient"),
            (turns, "PlaneOrientationSequence", "ImageOrientationPatient"),
        ):
            item = (group.get(sequence) or shared.get(sequence) or [{}])[0]
            if value := item.get(name):
                found.append([float(x) for x in value])
    return np.array(places), np.array(turns)


def _check_slices(places: np.ndarray, turns: np.ndarray, spacing_mm: tuple[float, ...], folder: Path) -> None:
    """Refuses slices that make no volume of even steps; places (slices, 3) in mm, turns (slices, 6) cosines."""
    steps = np.diff(places, axis=0)
    lengths = np.linalg.norm(steps, axis=-1)
    if np.ptp(lengths) > 0.1 * np.median(lengths):
        raise ValueError(
            f"the slices of {folder} are {lengths.min():.2f} to {lengths.max():.2f} mm apart, but must be evenly "
            "spaced; look for missing slices and send the whole series"
        )
    if np.abs(turns - turns[0]).max() > 1e-3:
        raise ValueError(
            f"the slices of {folder} are turned against each other, but must be parallel; send one series of them"
        )
    whole = places[-1] - places[0]
    normal = np.cross(turns[0, :3], turns[0, 3:])
    aside = np.linalg.norm(whole - (whole @ normal) * normal)
    if aside > 0.5 * min(spacing_mm[:2]):
        degrees = np.degrees(np.arctan2(aside, abs(whole @ normal)))
        raise ValueError(
            f"the slices of {folder} are sheared by {degrees:.1f} degrees (gantry tilt), but must lie straight above "
            "each other; resample the series upright first, as 3D Slicer does when it loads it"
        )


def _unreadable(path: Path, error: BaseException) -> ValueError:
    # SimpleITK's message is several lines on its own source code and can name the wrong reason; it stays in the chain
    lines = ["SimpleITK refuses it"] if isinstance(error, RuntimeError) else str(error).strip().splitlines()
    reason = lines[0].strip().rstrip(".") if lines else type(error).__name__
    return ValueError(f"{path} cannot be read as an image ({reason}); check that it is complete and what it says it is")
