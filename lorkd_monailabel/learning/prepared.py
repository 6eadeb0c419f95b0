"""Prepared cases: labelled volumes on a department's grid, cut to what it sees of them, kept on disk and checked.

An entry of the cache is a folder: ``image.npy``, ``labels.npy``, ``centres.npy``, ``teacher.npy`` where there is one,
and ``entry.json``, written last: what the entry was made of and the CRC-32 of each file. Opening an entry reads it once
from end to end, so that nothing damaged is learned from. After that a file is open only while a patch is cut out of it,
so that any number of cases can be at hand.
"""

import hashlib
import json
import logging
import os
import shutil
import time
import uuid
import zlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch

from lorkd_monailabel.learning.cases import Case
from lorkd_monailabel.resampling import resample
from lorkd_monailabel.teachers.masks import StoredMasks, read_masks
from lorkd_monailabel.volumes import Grid, canonical_image, read_labels, read_volume, same_grid, three

PREPARED_FORMAT = 3
ENTRY = "entry.json"
DRAFT = "draft-"
DRAFT_S = 3600.0
CENTRES = 2000
_BLOCK = 1 << 20
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class MappedArray:
    """An array in a file that is mapped anew for each reading, so that it holds no file open.

    Its parts are NumPy's arrays, and so is ``np.asarray`` of it.
    """

    path: Path
    dtype: np.dtype
    offset: int
    shape: tuple[int, ...]

    @classmethod
    def of(cls, path: Path) -> "MappedArray":
        """Find the array of a ``.npy`` file."""
        array = np.load(path, mmap_mode="r")
        return cls(path, array.dtype, array.offset, array.shape)

    def rows(self, start: int, stop: int) -> "MappedArray":
        """Give a part of the first axis as an array of its own."""
        row = self.dtype.itemsize * int(np.prod(self.shape[1:]))
        return replace(self, offset=self.offset + start * row, shape=(stop - start, *self.shape[1:]))

    def __len__(self) -> int:
        return self.shape[0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if 0 in self.shape:  # nothing can't be mapped
            return np.empty(self.shape, dtype or self.dtype)
        mapped = np.memmap(os.fspath(self.path), self.dtype, "r", self.offset, self.shape)
        return mapped if dtype is None else mapped.astype(dtype)

    def __getitem__(self, part: Any) -> Any:
        return self.__array__()[part]


@dataclass(frozen=True)
class PreparedCase:
    """A case as a department's expert sees it; one that was read from disk pickles as the paths of its files.

    Attributes:
        case: where it comes from.
        department: id.
        image: normalised intensities, ``(X, Y, Z)`` float16, canonical orientation.
        labels: values, ``(X, Y, Z)`` int16.
        centres: name -> voxels of the structure, ``(n, 3)``; n is 0 where it is absent. Those of structures that are
            not annotated are the teacher's.
        teacher: its masks; None for none.
    """

    case: Case
    department: str
    image: np.ndarray | MappedArray
    labels: np.ndarray | MappedArray
    centres: Mapping[str, np.ndarray | MappedArray]
    teacher: StoredMasks | None = None


def prepare(
    case: Case,
    *,
    department: str,
    spacing_mm: float | tuple[float, float, float],
    margin_mm: float | tuple[float, float, float],
    cache: Path,
    intensities: str = "fixed",
) -> PreparedCase:
    """Bring a case to canonical orientation and spacing, cut it, keep it on disk; or open what is kept.

    The cut surrounds the department's structures; where the volume has none of them, what is brighter than its mean:
    the body, without the air around it. An entry that is damaged or not of this case is made anew, which is logged.

    Args:
        case: to prepare.
        department: whose structures the cut surrounds.
        spacing_mm: of the canonical grid; one number, or one for each axis.
        margin_mm: kept around the structures on every side; one number, or one for each axis.
        cache: folder of prepared cases; an entry is complete or not there.
        intensities: see ``volumes.normalise``.

    Raises:
        ValueError: a volume can't be read, or image, label and the teacher's masks are on different grids.
    """
    annotated, alone = case.of(department), case.taught_alone(department)
    files = {name: file for name, file in case.taught().items() if name in case.structures or name in alone}
    settings = _Settings(annotated, alone, files, three(spacing_mm), three(margin_mm), intensities)
    made_of = _made_of(case, department, settings)
    folder = cache / hashlib.sha256(json.dumps(made_of).encode()).hexdigest()[:24]
    fault = _fault(folder, made_of)
    if fault:
        if folder.exists():
            _LOG.warning("prepared case %s %s; it is made anew", folder, fault)
        _keep(_arrays(case, settings), folder, made_of)
    counts = json.loads((folder / ENTRY).read_text(encoding="utf-8"))["centres"]
    ends = np.cumsum([0, *counts]).tolist()
    voxels = MappedArray.of(folder / "centres.npy")
    centres = [voxels.rows(*span) for span in pairwise(ends)]
    teacher = None
    if files:  # to all who read a part of it, a mapped array is an array
        teacher = StoredMasks(tuple(files), cast("np.ndarray", MappedArray.of(folder / "teacher.npy")))
    return PreparedCase(
        case=case,
        department=department,
        image=MappedArray.of(folder / "image.npy"),
        labels=MappedArray.of(folder / "labels.npy"),
        centres=dict(zip((*annotated, *alone), centres, strict=True)),
        teacher=teacher,
    )


def sweep_drafts(cache: Path) -> None:
    """Remove what preparations that were killed left in a cache."""
    for draft in cache.glob(f"{DRAFT}*"):
        with suppress(OSError):  # another process swept it away
            if time.time() - draft.stat().st_mtime > DRAFT_S:
                shutil.rmtree(draft)


class _Settings(NamedTuple):
    annotated: tuple[str, ...]
    alone: tuple[str, ...]
    files: dict[str, Path]
    spacing_mm: tuple[float, float, float]
    margin_mm: tuple[float, float, float]
    intensities: str


def _made_of(case: Case, department: str, settings: _Settings) -> dict[str, Any]:
    """Tell all that an entry depends on, as JSON gives it back."""
    read = (case.image, case.label, *dict.fromkeys(settings.files.values()))
    told = {
        "format": PREPARED_FORMAT,
        "read": [(str(path.resolve()), path.stat().st_mtime_ns) for path in read if path.exists()],
        "modality": case.modality,
        "department": department,
        "structures": sorted(case.structures.items()),
        "teacher": case.teacher.values if case.teacher else None,
        "settings": [*settings._replace(files=tuple(settings.files))],  # type: ignore[arg-type]
    }
    return cast("dict[str, Any]", json.loads(json.dumps(told)))


def _fault(folder: Path, made_of: dict[str, Any]) -> str:
    """Say what is wrong with an entry; nothing, where it can be used."""
    try:
        entry = json.loads((folder / ENTRY).read_text(encoding="utf-8"))
        if entry["made_of"] != made_of:
            return "is of another case or format"
        for name, checksum in entry["files"].items():
            if _checksum(folder / name) != checksum:
                return f"has a damaged {name}"
        if sum(entry["centres"]) != len(MappedArray.of(folder / "centres.npy")):
            return f"has a damaged {ENTRY}"
    except FileNotFoundError:
        return "is incomplete"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"has a damaged {ENTRY}"
    return ""


def _checksum(path: Path) -> int:
    checksum = 0
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            checksum = zlib.crc32(block, checksum)
    return checksum


def _arrays(case: Case, settings: _Settings) -> tuple[dict[str, np.ndarray], list[int]]:
    """Make the arrays of an entry, and the number of centres of each structure."""
    volume = read_volume(case.image, case.modality)
    values, label_grid = read_labels(case.label)
    if label_grid.shape != volume.grid.shape:
        raise ValueError(f"{case.label} has shape {label_grid.shape}, its image {volume.grid.shape}; they must agree")
    if not same_grid(label_grid, volume.grid):
        raise ValueError(f"{case.label} lies elsewhere in space than {case.image}; export it on the image's grid")
    if np.abs(values).max() > np.iinfo(np.int16).max:
        raise ValueError(f"{case.label} holds the value {np.abs(values).max()}, labels go to 32767; number them anew")
    resampled, grid = canonical_image(volume, settings.spacing_mm, settings.intensities)
    image = resampled[0].numpy()
    labels = resample(torch.from_numpy(values)[None], volume.grid, grid, "nearest")[0].numpy()
    masks = _teacher(case, settings.files, source=volume.grid, target=grid)
    seen = np.isin(labels, [value for name in settings.annotated for value in case.structures[name]])
    for name in settings.alone:
        seen |= masks[name] > 0.5
    if not seen.any():
        seen = image > image.mean()
    if seen.any():
        margin = np.ceil(np.divide(settings.margin_mm, settings.spacing_mm)).astype(int)
        along = [np.flatnonzero(seen.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
        cut = tuple(slice(max(at[0] - more, 0), at[-1] + more + 1) for at, more in zip(along, margin, strict=True))
        image, labels, masks = image[cut], labels[cut], {name: mask[cut] for name, mask in masks.items()}
    rng = np.random.default_rng(0)
    centres = []
    for name in (*settings.annotated, *settings.alone):
        own = np.isin(labels, case.structures[name]) if name in case.structures else masks[name] > 0.5
        voxels = np.argwhere(own).astype(np.int16)
        centres.append(voxels if len(voxels) <= CENTRES else rng.choice(voxels, CENTRES, replace=False))
    arrays = {
        "image.npy": image.astype(np.float16),
        "labels.npy": labels.astype(np.int16),
        "centres.npy": np.concatenate([np.empty((0, 3), np.int16), *centres]),
    }
    if masks:
        arrays["teacher.npy"] = StoredMasks.of(masks).array
    return arrays, [len(voxels) for voxels in centres]


def _teacher(case: Case, files: Mapping[str, Path], *, source: Grid, target: Grid) -> dict[str, np.ndarray]:
    if case.teacher is None:
        return {}
    try:
        return read_masks(case.teacher, files, source=source, target=target)
    except (ValueError, OSError) as error:
        raise ValueError(f"case {case.subject!r} of {case.source}: {error}") from error


def _keep(made: tuple[dict[str, np.ndarray], list[int]], folder: Path, made_of: dict[str, Any]) -> None:
    """Write an entry beside its place and move it there, in place of a damaged one."""
    arrays, counts = made
    draft = folder.with_name(f"{DRAFT}{uuid.uuid4().hex}")
    damaged = draft.with_name(f"{draft.name}-damaged")
    draft.mkdir(parents=True)
    try:
        for name, array in arrays.items():
            with open(draft / name, "wb") as file:
                np.save(file, np.ascontiguousarray(array))
                file.flush()
                os.fsync(file.fileno())
        files = {name: _checksum(draft / name) for name in arrays}
        with open(draft / ENTRY, "w", encoding="utf-8") as text:
            json.dump({"made_of": made_of, "files": files, "centres": counts}, text)
            text.flush()
            os.fsync(text.fileno())
        try:
            os.rename(draft, folder)
        except OSError:  # something is there: what another process made meanwhile, or what is damaged
            if _fault(folder, made_of):
                with suppress(OSError):  # another process was quicker
                    os.rename(folder, damaged)
                    os.rename(draft, folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        shutil.rmtree(damaged, ignore_errors=True)
