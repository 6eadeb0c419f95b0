"""Cases: labelled volumes listed as JSON lines, and their prepared form on disk.

A line is one case: ``image`` and ``label`` (paths, relative to the list's folder or absolute), ``modality`` (``ct`` or
``mri``), ``source``, ``subject``, ``split`` and ``structures``: name -> ``values`` in the label volume and
``department``. A structure that is not listed was not annotated; a listed one without a voxel is absent. ``teacher``,
where a line has it, says where the masks of a teacher are, see ``lorkd_monailabel.teachers.masks``.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from lorkd_monailabel.departments import department as find_department
from lorkd_monailabel.departments import structures
from lorkd_monailabel.teachers.masks import StoredMasks, TeacherMasks, read_masks, teacher_masks
from lorkd_monailabel.volumes import Grid, canonical_image, read_labels, read_volume, resample, three

PREPARED_FORMAT = 2
CENTRES = 2000
TOLERANCE_MM = 0.01


@dataclass(frozen=True)
class Case:
    """A labelled volume.

    Attributes:
        image: path.
        label: path of a volume on the same grid.
        modality: ``ct`` or ``mri``.
        source: name of the data set.
        subject: who was scanned; splits never part a subject.
        split: for example ``train``.
        structures: name -> values in the label volume.
        departments: name -> department id.
        teacher: masks that a teacher made before; None for none.
    """

    image: Path
    label: Path
    modality: str
    source: str
    subject: str
    split: str
    structures: dict[str, tuple[int, ...]]
    departments: dict[str, str]
    teacher: TeacherMasks | None = None

    def of(self, department: str) -> tuple[str, ...]:
        """Name the structures of a department that are annotated here."""
        return tuple(name for name in self.structures if self.departments[name] == department)

    def taught(self) -> dict[str, Path]:
        """Name the structures of which there is a teacher's mask, annotated or not, and the file of each.

        Raises:
            ValueError: naming the case; see ``TeacherMasks.files``.
        """
        if self.teacher is None:
            return {}
        try:
            return self.teacher.files(self.structures)
        except (ValueError, OSError) as error:
            raise ValueError(f"case {self.subject!r} of {self.source}: {error}") from error

    def taught_alone(self, department: str = "") -> tuple[str, ...]:
        """Name the structures of a department (of all, if none is named) of which there is nothing but such a mask."""
        names = [name for name in self.taught() if name not in self.structures]
        return tuple(name for name in names if not department or structures()[name].department == department)


@dataclass(frozen=True)
class PreparedCase:
    """A case as a department's expert sees it; arrays are memory-mapped.

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
    image: np.ndarray
    labels: np.ndarray
    centres: dict[str, np.ndarray]
    teacher: StoredMasks | None = None


def read_cases(path: str | Path, *, splits: Collection[str] = (), sources: Collection[str] = ()) -> list[Case]:
    """Read a list of cases.

    Args:
        path: JSON lines.
        splits: keep these only; empty keeps all.
        sources: keep these only; empty keeps all.

    Raises:
        ValueError: the list is missing, a line is not a case, or no case is left.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"list of cases {path} can't be read ({error}); give the path of a JSON lines file") from error
    cases = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            case = case_of(json.loads(line), folder=path.parent)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"{path} line {number} is not a case ({error!r}); see the format in the README") from error
        if (not splits or case.split in splits) and (not sources or case.source in sources):
            cases.append(case)
    if not cases:
        raise ValueError(f"{path} has no case of splits {list(splits)} and sources {list(sources)}; widen the choice")
    return cases


def case_of(record: dict, *, folder: Path = Path()) -> Case:
    """Make a case of one decoded line; relative paths start at ``folder``.

    Raises:
        KeyError, TypeError, AttributeError: the line lacks something.
        ValueError: an unknown department, or a structure that the vocabulary has in another one.
    """
    departments = {name: find_department(entry["department"]).id for name, entry in record["structures"].items()}
    for name, department in departments.items():
        known = structures().get(name)
        if known is not None and known.department != department:
            raise ValueError(
                f"{name} is a structure of {known.department}, the case puts it into {department}, where no prompt "
                "would look for it; write the vocabulary's department"
            )
    return Case(
        image=folder / record["image"],
        label=folder / record["label"],
        modality=record["modality"],
        source=record["source"],
        subject=str(record["subject"]),
        split=record["split"],
        structures={name: tuple(entry["values"]) for name, entry in record["structures"].items()},
        departments=departments,
        teacher=teacher_masks(record["teacher"], folder=folder, known=departments) if "teacher" in record else None,
    )


def departments_of(cases: Iterable[Case]) -> tuple[str, ...]:
    """Name the departments that have a structure in any of the cases, sorted.

    Raises:
        ValueError: a teacher's masks are not there.
    """
    found = set()
    for case in cases:
        found |= {*case.departments.values(), *(structures()[name].department for name in case.taught_alone())}
    return tuple(sorted(found))


def prepare(
    case: Case,
    *,
    department: str,
    spacing_mm: float | tuple[float, float, float],
    margin_mm: float | tuple[float, float, float],
    cache: Path,
    intensities: str = "fixed",
) -> PreparedCase:
    """Bring a case to canonical orientation and spacing, cut it around the department's structures, keep it on disk.

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
    folder = cache / _key(case, department, settings)
    if not folder.is_dir():
        _prepare_into(folder, case, settings)
    with np.load(folder / "centres.npz") as file:
        centres = {name: file[str(index)] for index, name in enumerate((*annotated, *alone))}
    return PreparedCase(
        case=case,
        department=department,
        image=np.load(folder / "image.npy", mmap_mode="r"),
        labels=np.load(folder / "labels.npy", mmap_mode="r"),
        centres=centres,
        teacher=StoredMasks(tuple(files), np.load(folder / "teacher.npy", mmap_mode="r")) if files else None,
    )


class _Settings(NamedTuple):
    annotated: tuple[str, ...]
    alone: tuple[str, ...]
    files: dict[str, Path]
    spacing_mm: tuple[float, float, float]
    margin_mm: tuple[float, float, float]
    intensities: str


def _key(case: Case, department: str, settings: _Settings) -> str:
    read = (case.image, case.label, *dict.fromkeys(settings.files.values()))
    stamps = [(str(path.resolve()), path.stat().st_mtime_ns) for path in read if path.exists()]
    values = case.teacher.values if case.teacher else None
    told = (department, settings.annotated, settings.alone, tuple(settings.files), values, *settings[3:])
    text = repr((PREPARED_FORMAT, stamps, case.modality, sorted(case.structures.items()), told))
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def _prepare_into(folder: Path, case: Case, settings: _Settings) -> None:
    volume = read_volume(case.image, case.modality)
    values, label_grid = read_labels(case.label)
    if label_grid.shape != volume.grid.shape:
        raise ValueError(f"{case.label} has shape {label_grid.shape}, its image {volume.grid.shape}; they must agree")
    if not np.allclose(label_grid.affine, volume.grid.affine, atol=TOLERANCE_MM):
        raise ValueError(f"{case.label} lies elsewhere in space than {case.image}; export it on the image's grid")
    resampled, grid = canonical_image(volume, settings.spacing_mm, settings.intensities)
    image = resampled[0].numpy()
    labels = resample(torch.from_numpy(values)[None], volume.grid, grid, "nearest")[0].numpy()
    masks = _teacher(case, settings.files, source=volume.grid, target=grid)
    somewhere = np.isin(labels, [value for name in settings.annotated for value in case.structures[name]])
    for name in settings.alone:
        somewhere |= masks[name] > 0.5
    found = np.argwhere(somewhere)
    if len(found):
        margin = np.ceil(np.divide(settings.margin_mm, settings.spacing_mm)).astype(int)
        low = np.maximum(found.min(axis=0) - margin, 0)
        high = found.max(axis=0) + margin + 1
        cut = tuple(slice(start, stop) for start, stop in zip(low, high, strict=True))
        image, labels, masks = image[cut], labels[cut], {name: mask[cut] for name, mask in masks.items()}
    rng = np.random.default_rng(0)
    centres = {}
    for index, name in enumerate((*settings.annotated, *settings.alone)):
        own = np.isin(labels, case.structures[name]) if name in case.structures else masks[name] > 0.5
        voxels = np.argwhere(own).astype(np.int16)
        centres[str(index)] = voxels if len(voxels) <= CENTRES else rng.choice(voxels, CENTRES, replace=False)
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(dir=folder.parent))
    np.save(draft / "image.npy", image.astype(np.float16))
    np.save(draft / "labels.npy", labels.astype(np.int16))
    np.savez(draft / "centres.npz", **centres)
    if masks:
        np.save(draft / "teacher.npy", StoredMasks.of(masks).array)
    try:
        os.rename(draft, folder)
    except OSError:  # another process prepared the same case meanwhile
        shutil.rmtree(draft)


def _teacher(case: Case, files: Mapping[str, Path], *, source: Grid, target: Grid) -> dict[str, np.ndarray]:
    if case.teacher is None:
        return {}
    try:
        return read_masks(case.teacher, files, source=source, target=target)
    except (ValueError, OSError) as error:
        raise ValueError(f"case {case.subject!r} of {case.source}: {error}") from error
