"""Label maps: masks of many targets -> one map with names, codes and colours; overlaps counted; files written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np

from lorkd_monailabel.cores import each, slabs
from lorkd_monailabel.departments import LATERALITY, Structure
from lorkd_monailabel.drafts import draft_of, packed
from lorkd_monailabel.volumes import Box, Grid

_NIFTI = (".nii.gz", ".nii")
_ITK = (".nrrd", ".mha")
RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
# What 3D Slicer calls the lists that the codes are looked up in.
_TYPE_LIST = "Segmentation category and type - 3D Slicer General Anatomy list"
_REGION_LIST = "Anatomic codes - DICOM master list"

THRESHOLD = 0.5
"""Probability above which a voxel belongs to a structure."""

_SLAB_VOXELS = 1 << 17  # what is done with planes of so many stays in a core's cache


@dataclass(frozen=True)
class Segment:
    """One structure and its value in the label map, 1 to 65535."""

    value: int
    structure: Structure


@dataclass(frozen=True)
class Overlap:
    """How many voxels two segments, named in the order they came, both claimed before one of them won."""

    first: str
    second: str
    voxels: int


@dataclass(frozen=True, eq=False)
class LabelMap:
    """Array (X, Y, Z) uint8 or uint16 of segment values, 0 where there is none, on the grid of the volume.

    It is written without a copy where X is innermost in memory, as in all files.
    """

    array: np.ndarray
    grid: Grid
    segments: tuple[Segment, ...]
    overlaps: tuple[Overlap, ...]


@dataclass(frozen=True)
class Found:
    """How many voxels a segment has, and their mean probability; None without a voxel."""

    voxels: int
    confidence: float | None


class Merging:
    """One probability volume after the other, merged into a label map: uint8 for values up to 255, else uint16.

    A target claims the voxels where its probability is above ``THRESHOLD``. Where several claim one, the highest
    probability wins, and the earlier one if they are equal. Each pair's voxels in common are counted, whoever won them.
    Only one probability volume is held at a time. No targets give an empty map.

    Args:
        grid: of the label map.
    """

    def __init__(self, grid: Grid) -> None:
        self._grid = grid
        self._labels: np.ndarray = np.zeros(grid.shape, np.uint8, order="F")
        self._best = np.empty(grid.shape, np.float32, order="F")  # where there is a label; the rest is not touched
        self._segments: list[Segment] = []
        self._claims: list[tuple[Segment, Box, np.ndarray]] = []
        self._overlaps: list[Overlap] = []

    def add(self, segment: Segment, probability: np.ndarray, part: Box | None = None) -> None:
        """Adds a target.

        Args:
            segment: its structure and value.
            probability: float array (X, Y, Z) on the grid, or on a part of it; X innermost in memory is quickest.
            part: the part, beyond which nothing is claimed.

        Raises:
            ValueError: the array does not fit the grid, or the value is not in 1..65535 or comes twice.
        """
        check_segment(segment, probability, self._grid, part=part, earlier=self._segments)
        self._segments.append(segment)
        if segment.value > 255 and self._labels.dtype == np.uint8:
            self._labels = self._labels.astype(np.uint16)
        box = part or (slice(0, self._grid.shape[0]), slice(0, self._grid.shape[1]), slice(0, self._grid.shape[2]))
        x, y, z = probability.shape
        bits = np.empty((-(-x // 8), y, z), np.uint8)  # all that is kept of a claim

        def claim(planes: slice) -> list[int]:
            """Merges some planes; the voxels that they have in common with each earlier claim."""
            candidate = probability[:, :, planes].astype(np.float32, copy=False)
            slab = box[0], box[1], slice(box[2].start + planes.start, box[2].start + planes.stop)
            labels, best = self._labels[slab], self._best[slab]
            claimed = candidate > THRESHOLD
            contested = claimed & (labels > 0)
            bits[:, :, planes] = np.packbits(claimed, axis=0)
            counts = [0] * len(self._claims)
            if contested.any():
                counts = [_voxels_in_common(contested, slab, other, other_box) for _, other_box, other in self._claims]
                claimed[contested] = candidate[contested] > best[contested]
            np.copyto(labels, labels.dtype.type(segment.value), where=claimed)
            np.copyto(best, candidate, where=claimed)
            return counts

        counted = each(claim, slabs(z, _SLAB_VOXELS // max(1, x * y)))
        common = [sum(counts) for counts in zip(*counted, strict=True)] or [0] * len(self._claims)
        self._overlaps += [
            Overlap(other.structure.name, segment.structure.name, voxels)
            for (other, _, _), voxels in zip(self._claims, common, strict=True)
            if voxels
        ]
        self._claims.append((segment, box, bits))

    def label_map(self) -> LabelMap:
        """Gives what was merged so far."""
        return LabelMap(self._labels, self._grid, tuple(self._segments), tuple(self._overlaps))

    def found(self) -> dict[int, Found]:
        """Gives for each value what its segment has in the label map: the voxels that it won."""
        return {segment.value: self._won(segment, box) for segment, box, _ in self._claims}

    def _won(self, segment: Segment, box: Box) -> Found:
        labels, best = self._labels[box].T, self._best[box].T

        def of(planes: slice) -> tuple[int, float]:
            own = best[planes][labels[planes] == segment.value]
            return own.size, float(own.sum(dtype=np.float64))

        won = each(of, slabs(len(labels), _SLAB_VOXELS // max(1, labels[:1].size)))
        voxels = sum(count for count, _ in won)
        return Found(voxels, sum(total for _, total in won) / voxels if voxels else None)


def check_segment(
    segment: Segment, probability: np.ndarray, grid: Grid, *, part: Box | None, earlier: Sequence[Segment]
) -> None:
    """Checks that an array fits the grid, or a part of it, and that a value is of use and not taken.

    Raises:
        ValueError: one of them does not.
    """
    name = segment.structure.name
    shape = grid.shape if part is None else tuple(along.stop - along.start for along in part)
    if probability.shape != shape:
        raise ValueError(f"{name} has shape {probability.shape}, but the grid has {shape}; resample it first")
    if not 1 <= segment.value <= 65535:
        raise ValueError(f"value {segment.value} of {name} must be in 1..65535; number the segments from 1")
    if segment.value in (other.value for other in earlier):
        raise ValueError(f"value {segment.value} of {name} is taken, but each segment needs its own; number them anew")


def _voxels_in_common(mask: np.ndarray, box: Box, bits: np.ndarray, bits_box: Box) -> int:
    """Counts the voxels of a mask of one box that are also set in the bits (packed along X) of another box."""
    starts = [max(one.start, other.start) for one, other in zip(box, bits_box, strict=True)]
    stops = [min(one.stop, other.stop) for one, other in zip(box, bits_box, strict=True)]
    if any(start >= stop for start, stop in zip(starts, stops, strict=True)):
        return 0
    common = list(zip(starts, stops, strict=True))
    x, y, z = (slice(a - one.start, b - one.start) for (a, b), one in zip(common, box, strict=True))
    u, v, w = (slice(a - one.start, b - one.start) for (a, b), one in zip(common, bits_box, strict=True))
    other = np.unpackbits(bits[:, v, w], axis=0, count=bits_box[0].stop - bits_box[0].start)[u]
    return int(np.count_nonzero(mask[x, y, z] & other.astype(bool)))


def write_label_map(label_map: LabelMap, path: str | Path) -> None:
    """Writes .nii, .nii.gz, .nrrd (also .seg.nrrd) or .mha, the whole file or none of it.

    NRRD carries names, colours and codes in the header fields of 3D Slicer's segmentation files. NIfTI has the affine
    as both sform and qform, code 1 (scanner); its format keeps 32-bit floats.

    Raises:
        ValueError: the extension is none of these.
        OSError: the file cannot be written; what was at the path before is still there.
    """
    path = Path(path)
    extension = next((known for known in _NIFTI + _ITK if path.name.lower().endswith(known)), None)
    if extension is None:
        raise ValueError(f"{path} must end in .nii, .nii.gz, .nrrd or .mha; choose one of these")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"folder {path.parent} of {path.name} does not exist; make it first")
    with draft_of(path, suffix=extension) as draft:
        if extension in _NIFTI:
            _write_nifti(label_map, draft)
        else:
            _write_itk(label_map, draft, path)


def _write_nifti(label_map: LabelMap, path: Path) -> None:
    image = nibabel.Nifti1Image(label_map.array, label_map.grid.affine)
    image.header.set_xyzt_units("mm")
    image.set_sform(label_map.grid.affine, code=1)
    image.set_qform(label_map.grid.affine, code=1)
    # into a file of our own: on a full disk nibabel leaves its open
    with path.open("wb") as file:
        if path.suffix == ".gz":
            with packed(file) as stream:
                image.to_stream(stream)
        else:
            image.to_stream(file)


def _write_itk(label_map: LabelMap, temporary: Path, path: Path) -> None:
    import SimpleITK as sitk  # here, as it costs as much as nibabel and numpy together

    image = sitk.GetImageFromArray(label_map.array.transpose(2, 1, 0))
    affine = RAS_TO_LPS @ label_map.grid.affine
    image.SetSpacing(label_map.grid.spacing_mm)
    image.SetDirection((affine[:3, :3] / label_map.grid.spacing_mm).ravel().tolist())
    image.SetOrigin(affine[:3, 3].tolist())
    if temporary.suffix == ".nrrd":
        for key, value in slicer_fields(label_map.segments, label_map.grid).items():
            image.SetMetaData(key, value)
    try:
        sitk.WriteImage(image, str(temporary), useCompression=True)
    except RuntimeError as error:  # the only exception type SimpleITK has
        raise OSError(f"{path} cannot be written; check space and permissions of its folder") from error


def slicer_fields(segments: Sequence[Segment], grid: Grid, layers: Sequence[int] = ()) -> dict[str, str]:
    """Gives what 3D Slicer keeps of segments in the header of a NRRD file.

    Args:
        segments: in their order.
        grid: of the file.
        layers: the layer of each segment; all are in the first if not given.
    """
    x, y, z = grid.shape
    fields = {
        "Segmentation_ContainedRepresentationNames": "Binary labelmap|",
        "Segmentation_MasterRepresentation": "Binary labelmap",
        "Segmentation_ReferenceImageExtentOffset": "0 0 0",
    }
    for index, segment in enumerate(segments):
        structure = segment.structure
        fields |= {
            f"Segment{index}_ID": f"Segment_{segment.value}",
            f"Segment{index}_Name": structure.name,
            f"Segment{index}_NameAutoGenerated": "0",
            f"Segment{index}_Color": " ".join(f"{channel / 255:.6f}" for channel in structure.color),
            f"Segment{index}_ColorAutoGenerated": "0",
            f"Segment{index}_LabelValue": str(segment.value),
            f"Segment{index}_Layer": str(layers[index] if layers else 0),
            # of the whole map: Slicer cuts all segments of a layer to the extent of the first one
            f"Segment{index}_Extent": f"0 {x - 1} 0 {y - 1} 0 {z - 1}",
            f"Segment{index}_Tags": f"TerminologyEntry:{_terminology(structure)}|",
        }
    return fields


def _terminology(structure: Structure) -> str:
    """3D Slicer's form of a code: list~category~type~modifier~list~region~modifier of region."""
    code, meaning = LATERALITY[structure.side] if structure.side else ("", "")
    modifier = f"SCT^{code}^{meaning}" if code else "^^"
    kind = f"SCT^{structure.snomed}^{structure.snomed_meaning}"
    return f"{_TYPE_LIST}~SCT^123037004^Anatomical Structure~{kind}~{modifier}~{_REGION_LIST}~^^~^^"
