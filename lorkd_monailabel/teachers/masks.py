"""Masks that a teacher made before: TotalSegmentator, VoxTell, an ensemble of nnU-Nets, whatever writes volumes.

A case names them in its line, as one label volume or as a folder with one file a structure::

    "teacher": {"path": "prediction.nii.gz", "values": {"liver": [5]}}
    "teacher": {"folder": "predictions/"}

Files of a folder carry the structure's name, exactly or as TotalSegmentator writes it (``kidney_left.nii.gz``); files
of other names are left alone. They hold 0 and 1 (hard), or probabilities between them (soft).
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from lorkd_monailabel.resampling import resample
from lorkd_monailabel.teachers.names import structure_named
from lorkd_monailabel.volume_files import read_volume_file
from lorkd_monailabel.volumes import Grid, read_labels, same_grid

ENDINGS = (".nii.gz", ".nii", ".nrrd", ".mha", ".mhd")
_FORM = 'give {"path": FILE, "values": {NAME: [NUMBER]}} or {"folder": FOLDER}'


@dataclass(frozen=True)
class TeacherMasks:
    """Where a case's masks are.

    Attributes:
        path: of a label volume, or of a folder.
        values: name -> values in the label volume; None where the path is a folder.
    """

    path: Path
    values: dict[str, tuple[int, ...]] | None

    def files(self, known: Collection[str]) -> dict[str, Path]:
        """Find the structures that the teacher speaks of, and the file of each.

        Args:
            known: names of the case, which need not be in the vocabulary.

        Raises:
            ValueError: there is no such file or folder, it holds no structure, or two files hold the same one.
        """
        if self.values is not None:
            if not self.path.is_file():
                raise ValueError(f"the teacher's masks {self.path} are not there; check the path")
            return dict.fromkeys(sorted(self.values), self.path)
        if not self.path.is_dir():
            raise ValueError(f"the teacher's folder {self.path} is not there; check the path")
        found: dict[str, Path] = {}
        for file in sorted(self.path.iterdir()):
            ending = next((each for each in ENDINGS if file.name.lower().endswith(each)), None)
            name = structure_named(file.name[: -len(ending)], known) if ending else None
            if name is not None:
                if name in found:
                    raise ValueError(f"{found[name]} and {file.name} are both the teacher's {name}; remove one")
                found[name] = file
        if not found:
            raise ValueError(f"the teacher's folder {self.path} has no file named as a structure; see the README")
        return dict(sorted(found.items()))  # the same draws follow, whichever form the masks have


def teacher_masks(record: Any, *, folder: Path, known: Collection[str]) -> TeacherMasks:
    """Make sense of the ``teacher`` of a case's line; relative paths start at ``folder``.

    Raises:
        ValueError: it has another form, or a name is no structure.
    """
    keys = set(record) if isinstance(record, Mapping) else set()
    if keys == {"folder"} and isinstance(record["folder"], str):
        return TeacherMasks(folder / record["folder"], None)
    if keys != {"path", "values"} or not isinstance(record["path"], str) or not isinstance(record["values"], Mapping):
        raise ValueError(f"teacher {str(record)[:80]} has another form; {_FORM}")
    values: dict[str, tuple[int, ...]] = {}
    for name, own in record["values"].items():
        structure = structure_named(name, known)
        if structure is None or structure in values:
            raise ValueError(f"{name!r} of the teacher is no structure of the case or the vocabulary; rename it")
        if not isinstance(own, list) or not own or any(type(value) is not int for value in own):
            raise ValueError(f"values {own!r} of the teacher's {name} must be a list of whole numbers; {_FORM}")
        values[structure] = tuple(own)
    return TeacherMasks(folder / record["path"], values)


def read_masks(masks: TeacherMasks, files: Mapping[str, Path], *, source: Grid, target: Grid) -> dict[str, np.ndarray]:
    """Read masks and bring them to a grid: hard ones by the nearest voxel, soft ones by linear interpolation.

    Args:
        masks: of the case.
        files: structure -> file, those that are wanted; see ``TeacherMasks.files``.
        source: grid of the case's image, on which the masks must be.
        target: grid to bring them to.

    Returns:
        Structure -> ``(X, Y, Z)``: bool where its mask is hard, float16 where it is soft.

    Raises:
        ValueError: a file can't be read, lies on another grid, or has values outside of 0..1.
    """
    if masks.values is not None:
        if not files:
            return {}
        labels, grid = read_labels(masks.path)
        _check_grid(masks.path, grid, source)
        moved = resample(torch.from_numpy(labels)[None], source, target, "nearest")[0].numpy()
        return {name: np.isin(moved, masks.values[name]) for name in files}
    return {name: _read_mask(file, source=source, target=target) for name, file in files.items()}


def _read_mask(path: Path, *, source: Grid, target: Grid) -> np.ndarray:
    file = read_volume_file(path)
    array = np.ascontiguousarray(file.array, dtype=np.float32)
    try:
        grid = Grid(cast("tuple[int, int, int]", array.shape), file.affine)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    _check_grid(path, grid, source)
    low, high = float(array.min()), float(array.max())
    if not (low >= 0 and high <= 1):  # NaN fails too
        raise ValueError(f"{path} holds values from {low:g} to {high:g}, a mask holds 0..1; divide them first")
    hard = bool(np.isin(array, (0, 1)).all())
    moved = resample(torch.from_numpy(array)[None], source, target, "nearest" if hard else "linear")[0].numpy()
    return moved.astype(bool) if hard else moved.astype(np.float16)


def _check_grid(path: Path, grid: Grid, source: Grid) -> None:
    if grid.shape != source.shape:
        raise ValueError(f"{path} has shape {grid.shape}, the image {source.shape}; export it on the image's grid")
    if not same_grid(grid, source):
        raise ValueError(f"{path} lies elsewhere in space than the image; export it on the image's grid")


@dataclass(frozen=True)
class StoredMasks:
    """Masks of several structures in one array, which may be mapped from disk.

    Attributes:
        names: of the structures, in order.
        array: soft: ``(N, X, Y, Z)`` float16; hard: ``(ceil(N / 8), X, Y, Z)`` uint8, one bit a mask.
    """

    names: tuple[str, ...]
    array: np.ndarray

    @classmethod
    def of(cls, masks: Mapping[str, np.ndarray]) -> "StoredMasks":
        """Put masks together; one soft mask makes all of them soft."""
        stacked = list(masks.values())
        if all(mask.dtype == np.bool_ for mask in stacked):
            return cls(tuple(masks), np.packbits(np.stack(stacked), axis=0))
        return cls(tuple(masks), np.stack(stacked).astype(np.float16))

    @property
    def hard(self) -> bool:
        """Whether all masks are zeros and ones."""
        return self.array.dtype == np.uint8

    def part(self, name: str, cut: tuple[slice, ...]) -> np.ndarray:
        """Read a part of a structure's mask, as float32."""
        row = self.names.index(name)
        if not self.hard:
            return self.array[row][cut].astype(np.float32)
        return ((self.array[row >> 3][cut] >> (7 - (row & 7))) & 1).astype(np.float32)
