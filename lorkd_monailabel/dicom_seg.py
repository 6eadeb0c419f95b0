"""DICOM SEG: a label map or layers of a DICOM series -> one file for an archive, and from it a label map of the image.

Written by highdicom: SNOMED CT codes with the side, colours, algorithm, overlaps. Read frame by frame, so that files of
other programs, which cut empty slices away, come back whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lorkd_monailabel.departments import LATERALITY, Structure
from lorkd_monailabel.dicom_grids import LPS_TO_RAS, normal, onto, plane_affine, read_series
from lorkd_monailabel.drafts import draft_of
from lorkd_monailabel.label_maps import LabelMap, Segment
from lorkd_monailabel.layers import Layers
from lorkd_monailabel.volumes import Grid

# pydicom and highdicom come with the extra "server"
if TYPE_CHECKING:
    from highdicom.seg import SegmentDescription
    from pydicom import Dataset

# Label values that are not 1..N stand in a private element of each segment, for segments must be numbered so.
_OWNER, _GROUP, _VALUE = "LORKD", 0x0071, 0x01
# sRGB to CIE XYZ with the white D50 that DICOM's CIELab values have
_TO_XYZ = np.array(
    [[0.4360747, 0.3850649, 0.1430804], [0.2225045, 0.7168786, 0.0606169], [0.0139322, 0.0971045, 0.7141733]]
)


@dataclass(frozen=True)
class Algorithm:
    """What made a segmentation.

    Attributes:
        name: of the program or model.
        version: of the program.
        parameters: what else tells how, such as the revision of each department's expert.
    """

    name: str
    version: str
    parameters: Mapping[str, str]


@dataclass(frozen=True, eq=False)
class ReadSegments:
    """Array (X, Y, Z) uint16 of label values on the image's grid, the name of each value, and voxels claimed twice."""

    array: np.ndarray
    names: Mapping[int, str]
    overlaps: int


def write(
    segmentation: LabelMap | Layers, series: Sequence[Path], path: Path, *, algorithm: Algorithm | None = None
) -> None:
    """Writes one DICOM SEG, the whole file or none of it; segments may overlap or be empty, also all of them.

    Segments are numbered as their values where these are 1..N, else in the order of their values, which are kept.

    Args:
        segmentation: on the grid of the series, or another, whose nearest voxels are taken.
        series: files of the image that was segmented.
        path: of the file to write.
        algorithm: what made it; None for a person.

    Raises:
        ValueError: there is no segment, or the series is not what DICOM SEG can refer to.
    """
    from highdicom.seg import Segmentation
    from highdicom.uid import UID

    slices, target = read_series(series)
    layers = segmentation
    if isinstance(layers, LabelMap):
        layers = Layers((layers.array,), layers.grid, layers.segments, (0,) * len(layers.segments))
    if not layers.segments:
        raise ValueError("there is no segment to write; name at least one structure")
    order = sorted(range(len(layers.segments)), key=lambda each: layers.segments[each].value)
    segments, pixels = [layers.segments[each] for each in order], _pixels(layers, order, target)
    if not pixels.any():  # one empty frame a segment, and not one for each slice
        slices, pixels = slices[:1], pixels[:1]
    by_whom = algorithm or Algorithm("manual", "", {})
    file = Segmentation(
        source_images=slices,
        pixel_array=pixels,
        segmentation_type="BINARY",
        segment_descriptions=[_described(number, each, algorithm) for number, each in enumerate(segments, start=1)],
        series_instance_uid=UID(),
        series_number=300,
        sop_instance_uid=UID(),
        instance_number=1,
        manufacturer="LoRKD",
        manufacturer_model_name=by_whom.name[:64],
        software_versions=by_whom.version or "unknown",
        device_serial_number="0",
        content_label="SEGMENTATION",
        content_description=f"{len(segments)} structures",
        series_description=f"Segmentation, {by_whom.name}"[:64],
    )
    measures = file.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    measures.SpacingBetweenSlices = f"{target.spacing_mm[2]:.10g}"
    with draft_of(path) as draft, draft.open("wb") as opened:
        file.save_as(opened, write_like_original=False)


def _pixels(layers: Layers, order: Sequence[int], target: Grid) -> np.ndarray:
    """Frames as highdicom takes them: (planes, rows, columns) of numbers, or with several layers a mask a segment."""
    arrays = [onto(array, layers.grid, target).transpose(2, 1, 0) for array in layers.arrays]
    if len(arrays) > 1:
        masks = [arrays[layers.layers[each]] == layers.segments[each].value for each in order]
        return np.stack(masks, axis=-1).view(np.uint8)
    number_of = np.zeros(1 << 16, dtype=np.uint16)
    for number, each in enumerate(order, start=1):
        number_of[layers.segments[each].value] = number
    return number_of[arrays[0]]


def _described(number: int, segment: Segment, algorithm: Algorithm | None) -> SegmentDescription:
    from highdicom import AlgorithmIdentificationSequence
    from highdicom.color import CIELabColor
    from highdicom.seg import SegmentDescription
    from highdicom.sr import CodedConcept

    structure = segment.structure
    made = None
    if algorithm is not None:
        family = CodedConcept("123110", "DCM", "Artificial Intelligence")
        parameters = dict(algorithm.parameters) or None
        made = AlgorithmIdentificationSequence(algorithm.name, family, algorithm.version, "LoRKD", parameters)
    item = SegmentDescription(
        segment_number=number,
        segment_label=structure.name[:64],
        segmented_property_category=CodedConcept("123037004", "SCT", "Anatomical Structure"),
        segmented_property_type=CodedConcept(structure.snomed, "SCT", structure.snomed_meaning[:64]),
        algorithm_type="MANUAL" if made is None else "AUTOMATIC",
        algorithm_identification=made,
    )
    if structure.side:
        code, meaning = LATERALITY[structure.side]
        kind = item.SegmentedPropertyTypeCodeSequence[0]
        kind.SegmentedPropertyTypeModifierCodeSequence = [CodedConcept(code, "SCT", meaning)]
    item.RecommendedDisplayCIELabValue = list(CIELabColor(*_cielab(structure)).value)
    if segment.value != number:
        item.private_block(_GROUP, _OWNER, create=True).add_new(_VALUE, "US", segment.value)
    return item


def _cielab(structure: Structure) -> tuple[float, float, float]:
    encoded = np.asarray(structure.color) / 255
    linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    relative = _TO_XYZ @ linear / _TO_XYZ.sum(axis=1)
    x, y, z = np.where(relative > 216 / 24389, np.cbrt(relative), (24389 / 27 * relative + 16) / 116)
    return float(np.clip(116 * y - 16, 0, 100)), float(500 * (x - y)), float(np.clip(200 * (y - z), -128, 127))


def read(path: Path, grid: Grid) -> ReadSegments:
    """Reads a DICOM SEG, of any program, as a label map on the grid of its image; of overlaps the first segment wins.

    Raises:
        ValueError: it is no DICOM SEG of masks in parallel planes, or damaged.
    """
    import pydicom
    from pydicom.errors import InvalidDicomError

    try:
        file = pydicom.dcmread(path)
    except (InvalidDicomError, OSError) as error:
        raise ValueError(f"{path.name} is no DICOM file; send it again") from error
    if file.get("SegmentationType") not in ("BINARY", "FRACTIONAL") or "PerFrameFunctionalGroupsSequence" not in file:
        raise ValueError(f"{path.name} is no DICOM SEG of binary or fractional masks; export it as one")
    try:
        return _segments(file, grid, path.name)
    except (AttributeError, LookupError, TypeError, RuntimeError, MemoryError) as error:  # of tags that are not there
        raise ValueError(f"{path.name} is a damaged DICOM SEG ({error}); export it again") from error


def _segments(file: Dataset, grid: Grid, name: str) -> ReadSegments:
    values = {int(item.SegmentNumber): _value(item) for item in file.SegmentSequence}
    names = {values[int(item.SegmentNumber)]: str(item.SegmentLabel) for item in file.SegmentSequence}
    own, planes = _planes(file, grid, name)
    array = np.zeros(own.shape, dtype=np.uint16)
    overlaps = 0
    for plane, group, mask in zip(planes, file.PerFrameFunctionalGroupsSequence, _frames(file), strict=True):
        number = int(group.SegmentIdentificationSequence[0].ReferencedSegmentNumber)
        labels, claimed = array[:, :, plane], mask.T
        overlaps += int(np.count_nonzero(labels[claimed]))
        labels[claimed & (labels == 0)] = values[number]
    return ReadSegments(onto(array, own, grid), names, overlaps)


def _value(item: Dataset) -> int:
    try:
        value: Any = item.private_block(_GROUP, _OWNER)[_VALUE].value
    except KeyError:
        return int(item.SegmentNumber)
    return int.from_bytes(value, "little") if isinstance(value, bytes) else int(value)


def _planes(file: Dataset, grid: Grid, name: str) -> tuple[Grid, list[int]]:
    """The grid of a DICOM SEG from its first to its last frame, and the plane of each frame there."""
    shared = file.SharedFunctionalGroupsSequence[0]
    groups = file.PerFrameFunctionalGroupsSequence

    def macro(group: Dataset, keyword: str) -> Dataset:
        return (group if keyword in group else shared)[keyword].value[0]

    turns = np.array([macro(group, "PlaneOrientationSequence").ImageOrientationPatient for group in groups], float)
    if np.abs(turns - turns[0]).max() > 1e-3:
        raise ValueError(f"the planes of {name} are turned against each other; export it on the grid of its image")
    places = np.array([macro(group, "PlanePositionSequence").ImagePositionPatient for group in groups], float)
    measures = macro(groups[0], "PixelMeasuresSequence")
    direction = normal(turns[0])
    along = places @ direction
    # without the tag: the step of the image where its axis lies along the planes' normal
    of_image = np.abs((LPS_TO_RAS[:3, :3] @ direction) @ (grid.affine[:3, :3] / grid.spacing_mm))
    step = float(measures.get("SpacingBetweenSlices") or grid.spacing_mm[int(of_image.argmax())])
    first = int(along.argmin())
    planes = np.rint((along - along[first]) / step).astype(int)
    affine = plane_affine(turns[0], measures.PixelSpacing, step, places[first])
    return Grid((int(file.Columns), int(file.Rows), int(planes.max()) + 1), affine), planes.tolist()


def _frames(file: Dataset) -> Iterator[np.ndarray]:
    """The masks (rows, columns) of a DICOM SEG, one after the other: a bit a voxel, frame after frame, or a byte."""
    rows, columns = int(file.Rows), int(file.Columns)
    count, size = int(file.NumberOfFrames), rows * columns
    binary = file.SegmentationType == "BINARY"
    packed = not file.file_meta.TransferSyntaxUID.is_encapsulated
    stored = np.frombuffer(file.PixelData, dtype=np.uint8) if packed else file.pixel_array.reshape(-1)
    for start in range(0, count * size, size):
        if binary and packed:
            bits = np.unpackbits(stored[start // 8 : (start + size + 7) // 8], bitorder="little")
            frame = bits[start % 8 : start % 8 + size]
        else:
            frame = stored[start : start + size]
        least = 1 if binary else int(file.MaximumFractionalValue) / 2
        yield (frame >= least).reshape(rows, columns)
