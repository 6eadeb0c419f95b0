"""Cases: labelled volumes listed as JSON lines, and their prepared form on disk.

A line is one case: ``image`` and ``label`` (paths, relative to the list's folder or absolute), ``modality`` (``ct`` or
``mri``), ``source``, ``subject``, ``split`` and ``structures``: name -> ``values`` in the label volume and
``department``. A structure that is not listed was not annotated; a listed one without a voxel is absent.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from lorkd_monailabel.departments import department as find_department
from lorkd_monailabel.departments import structures
from lorkd_monailabel.volumes import canonical_grid, normalise, read_labels, read_volume, resample

PREPARED_FORMAT = 1
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
    """

    image: Path
    label: Path
    modality: str
    source: str
    subject: str
    split: str
    structures: dict[str, tuple[int, ...]]
    departments: dict[str, str]

    def of(self, department: str) -> tuple[str, ...]:
        """Name the structures of a department that are annotated here."""
        return tuple(name for name in self.structures if self.departments[name] == department)


@dataclass(frozen=True)
class PreparedCase:
    """A case as a department's expert sees it; arrays are memory-mapped.

    Attributes:
        case: where it comes from.
        department: id.
        image: normalised intensities, ``(X, Y, Z)`` float16, canonical orientation.
        labels: values, ``(X, Y, Z)`` int16.
        centres: name -> voxels of the structure, ``(n, 3)``; n is 0 where it is absent.
    """

    case: Case
    department: str
    image: np.ndarray
    labels: np.ndarray
    centres: dict[str, np.ndarray]


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
    )


def departments_of(cases: Iterable[Case]) -> tuple[str, ...]:
    """Name the departments that have a structure in any of the cases, sorted."""
    return tuple(sorted({department for case in cases for department in case.departments.values()}))


def prepare(case: Case, *, department: str, spacing_mm: float, margin_mm: float, cache: Path) -> PreparedCase:
    """Bring a case to canonical orientation and spacing, cut it around the department's structures, keep it on disk.

    Args:
        case: to prepare.
        department: whose structures the cut surrounds.
        spacing_mm: of the canonical grid.
        margin_mm: kept around the structures on every side.
        cache: folder of prepared cases; an entry is complete or not there.

    Raises:
        ValueError: a volume can't be read, or image and label are on different grids.
    """
    names = case.of(department)
    folder = cache / _key(case, (department, names, spacing_mm, margin_mm))
    if not folder.is_dir():
        _prepare_into(folder, case, names=names, spacing_mm=spacing_mm, margin_mm=margin_mm)
    with np.load(folder / "centres.npz") as file:
        centres = {name: file[str(index)] for index, name in enumerate(names)}
    return PreparedCase(
        case=case,
        department=department,
        image=np.load(folder / "image.npy", mmap_mode="r"),
        labels=np.load(folder / "labels.npy", mmap_mode="r"),
        centres=centres,
    )


def _key(case: Case, settings: tuple) -> str:
    stamps = [(str(path.resolve()), path.stat().st_mtime_ns) for path in (case.image, case.label) if path.exists()]
    text = repr((PREPARED_FORMAT, stamps, case.modality, sorted(case.structures.items()), settings))
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def _prepare_into(folder: Path, case: Case, *, names: tuple[str, ...], spacing_mm: float, margin_mm: float) -> None:
    volume = read_volume(case.image, case.modality)
    values, label_grid = read_labels(case.label)
    if label_grid.shape != volume.grid.shape:
        raise ValueError(f"{case.label} has shape {label_grid.shape}, its image {volume.grid.shape}; they must agree")
    if not np.allclose(label_grid.affine, volume.grid.affine, atol=TOLERANCE_MM):
        raise ValueError(f"{case.label} lies elsewhere in space than {case.image}; export it on the image's grid")
    grid = canonical_grid(volume.grid, spacing_mm)
    resampled = resample(torch.from_numpy(normalise(volume.array, case.modality))[None], volume.grid, grid, "linear")
    image = resampled[0].numpy()
    labels = resample(torch.from_numpy(values)[None], volume.grid, grid, "nearest")[0].numpy()
    found = np.argwhere(np.isin(labels, [value for name in names for value in case.structures[name]]))
    if len(found):
        margin = int(np.ceil(margin_mm / spacing_mm))
        low = np.maximum(found.min(axis=0) - margin, 0)
        high = found.max(axis=0) + margin + 1
        cut = tuple(slice(start, stop) for start, stop in zip(low, high, strict=True))
        image, labels = image[cut], labels[cut]
    rng = np.random.default_rng(0)
    centres = {}
    for index, name in enumerate(names):
        voxels = np.argwhere(np.isin(labels, case.structures[name])).astype(np.int16)
        centres[str(index)] = voxels if len(voxels) <= CENTRES else rng.choice(voxels, CENTRES, replace=False)
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(dir=folder.parent))
    np.save(draft / "image.npy", image.astype(np.float16))
    np.save(draft / "labels.npy", labels.astype(np.int16))
    np.savez(draft / "centres.npz", **centres)
    try:
        os.rename(draft, folder)
    except OSError:  # another process prepared the same case meanwhile
        shutil.rmtree(draft)
