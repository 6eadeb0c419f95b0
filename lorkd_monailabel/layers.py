"""Layers: masks that overlap, each of them kept whole, in as few label maps as that takes one after the other.

3D Slicer's segmentation files (.seg.nrrd) hold them as one array with the layer as its first, fastest axis.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lorkd_monailabel.drafts import draft_of, packed
from lorkd_monailabel.label_maps import (
    RAS_TO_LPS,
    THRESHOLD,
    Found,
    LabelMap,
    Segment,
    check_segment,
    slicer_fields,
    write_label_map,
)
from lorkd_monailabel.volumes import Box, Grid

_TYPES = {np.dtype(np.uint8): "unsigned char", np.dtype(np.uint16): "unsigned short"}


@dataclass(frozen=True, eq=False)
class Layers:
    """Label maps that together hold every voxel that each segment claims.

    Attributes:
        arrays: at least one, (X, Y, Z), all uint8 or all uint16, of segment values and 0.
        grid: of all of them.
        segments: in the order they came; their values differ also where their layers do.
        layers: the index of each segment's array.
    """

    arrays: tuple[np.ndarray, ...]
    grid: Grid
    segments: tuple[Segment, ...]
    layers: tuple[int, ...]

    def masks(self) -> Iterator[tuple[Segment, np.ndarray]]:
        """Gives each segment and its mask (X, Y, Z) of truth values."""
        for segment, layer in zip(self.segments, self.layers, strict=True):
            yield segment, self.arrays[layer] == segment.value

    def astype(self, dtype: type[np.unsignedinteger]) -> Layers:
        """Gives the same in another type."""
        return Layers(tuple(array.astype(dtype) for array in self.arrays), self.grid, self.segments, self.layers)


class Layering:
    """One probability volume after the other, each put into the first layer where it meets no other.

    Args:
        grid: of the layers.
    """

    def __init__(self, grid: Grid) -> None:
        self._grid = grid
        self._arrays: list[np.ndarray] = []
        self._segments: list[Segment] = []
        self._layers: list[int] = []
        self._found: dict[int, Found] = {}

    def add(self, segment: Segment, probability: np.ndarray, part: Box | None = None) -> None:
        """Adds a target; arguments and errors are those of ``Merging.add``."""
        check_segment(segment, probability, self._grid, part=part, earlier=self._segments)
        claimed = probability > THRESHOLD
        own = _bounding_box(claimed)
        self._segments.append(segment)
        if own is None:
            self._layers.append(0)
            self._found[segment.value] = Found(0, None)
            return
        box, claimed = _shifted(own, part), claimed[own]
        free = (layer for layer, array in enumerate(self._arrays) if not array[box][claimed].any())
        layer = next(free, len(self._arrays))
        if layer == len(self._arrays):
            self._arrays.append(np.zeros(self._grid.shape, np.uint8, order="F"))
        if segment.value > np.iinfo(self._arrays[layer].dtype).max:
            self._arrays[layer] = self._arrays[layer].astype(np.uint16)
        self._arrays[layer][box][claimed] = segment.value
        self._layers.append(layer)
        self._found[segment.value] = Found(
            int(np.count_nonzero(claimed)), float(probability[own][claimed].mean(dtype=np.float64))
        )

    def layers(self) -> Layers:
        """Gives what was added so far."""
        arrays = self._arrays or [np.zeros(self._grid.shape, np.uint8, order="F")]
        dtype = np.result_type(*arrays)
        same = tuple(array.astype(dtype, copy=False) for array in arrays)
        return Layers(same, self._grid, tuple(self._segments), tuple(self._layers))

    def found(self) -> dict[int, Found]:
        """Gives for each value the voxels that its segment claims, whoever else claims them too."""
        return dict(self._found)


def _bounding_box(mask: np.ndarray) -> Box | None:
    """Gives the smallest box that holds all of an array (X, Y, Z) that is not 0; None where all is."""
    planes = np.flatnonzero(mask.max(axis=(1, 2), initial=0))
    if planes.size == 0:
        return None
    shadow = mask[planes[0] : planes[-1] + 1].max(axis=0)
    x, y, z = (
        slice(int(where[0]), int(where[-1]) + 1)
        for where in (planes, np.flatnonzero(shadow.max(axis=1)), np.flatnonzero(shadow.max(axis=0)))
    )
    return x, y, z


def _shifted(box: Box, part: Box | None) -> Box:
    """Gives a box within a part of a grid as a box of the grid."""
    if part is None:
        return box
    x, y, z = (slice(own.start + of.start, own.stop + of.start) for own, of in zip(box, part, strict=True))
    return x, y, z


def write_layers(layers: Layers, path: str | Path) -> None:
    """Writes a .seg.nrrd, the whole file or none of it; where one layer is enough, as ``write_label_map`` does.

    Raises:
        ValueError: the extension is another.
        OSError: the file cannot be written; what was at the path before is still there.
    """
    path = Path(path)
    if not path.name.lower().endswith(".seg.nrrd"):
        raise ValueError(f"{path} must end in .seg.nrrd, for other files have no layers; choose that, or merge them")
    if len(layers.arrays) == 1:
        write_label_map(LabelMap(layers.arrays[0], layers.grid, layers.segments, ()), path)
        return
    if not path.parent.is_dir():
        raise FileNotFoundError(f"folder {path.parent} of {path.name} does not exist; make it first")
    with draft_of(path) as draft, draft.open("wb") as file:
        file.write(_header(layers).encode())
        with packed(file) as stream:
            for z in range(layers.grid.shape[2]):  # slice by slice: no copy of the whole
                stream.write(np.stack([array[:, :, z] for array in layers.arrays]).tobytes(order="F"))


def _header(layers: Layers) -> str:
    """The text before the voxels: one space direction an axis, which is a column of the affine, in LPS."""
    affine = RAS_TO_LPS @ layers.grid.affine
    x, y, z = layers.grid.shape
    fields = {
        "type": _TYPES[layers.arrays[0].dtype],
        "dimension": "4",
        "space": "left-posterior-superior",
        "sizes": f"{len(layers.arrays)} {x} {y} {z}",
        "space directions": " ".join(["none", *map(_vector, affine[:3, :3].T)]),
        "kinds": "list domain domain domain",
        "endian": "little",
        "encoding": "gzip",
        "space origin": _vector(affine[:3, 3]),
    }
    lines = ["NRRD0004", *(f"{key}: {value}" for key, value in fields.items())]
    slicer = slicer_fields(layers.segments, layers.grid, layers.layers)
    return "\n".join([*lines, *(f"{key}:={value}" for key, value in slicer.items())]) + "\n\n"


def _vector(numbers: Sequence[float] | np.ndarray) -> str:
    return f"({','.join(repr(float(number)) for number in numbers)})"
