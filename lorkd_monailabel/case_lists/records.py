"""What converters found -> lines of a list of cases, and the list on the disk, whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lorkd_monailabel.case_lists.found import Found, modality_of
from lorkd_monailabel.case_lists.naming import Choices, structures_of
from lorkd_monailabel.departments import structure
from lorkd_monailabel.drafts import write_whole

Record = dict[str, Any]
_FOLDS = {"val": "validation"}


@dataclass(frozen=True)
class Settings:
    """What a user decided on a list.

    Attributes:
        choices: on names.
        modality: ``ct`` or ``mri`` for all; ``auto`` to guess it from each image's values; empty for the layout's.
        source: name of the data set; empty for the layout's.
        validation: share of the subjects that become validation, where the layout names no split.
        seed: of that choice.
        splits: split -> subjects, before all else.
    """

    choices: Choices = field(default_factory=Choices)
    modality: str = ""
    source: str = ""
    validation: float = 0.2
    seed: int = 0
    splits: Mapping[str, Sequence[str]] = field(default_factory=dict)


def split_of(subject: str, *, validation: float, seed: int) -> str:
    """Put a subject into ``train`` or ``validation`` by its name alone, so that more subjects move none of the old.

    Raises:
        ValueError: the share is not in 0..1.
    """
    if not 0 <= validation <= 1:
        raise ValueError(f"--validation {validation} must be a share in 0..1, such as 0.2")
    digest = hashlib.sha256(f"{seed} {subject}".encode()).digest()
    return "validation" if int.from_bytes(digest[:8], "big") < validation * 2**64 else "train"


def splits_in(path: Path, fold: int) -> dict[str, list[str]]:
    """Read which subjects are in which split: SAT-DS's object of lists, or a fold of nnU-Net's ``splits_final.json``.

    Raises:
        ValueError: the file can't be read or is neither, there is no such fold, or a subject is in two splits.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is no JSON file that can be read ({error}); check --splits") from error
    if isinstance(content, list):
        if not 0 <= fold < len(content):
            raise ValueError(f"fold {fold} is not one of the {len(content)} of {path}; choose another with --fold")
        content = content[fold]
    if not isinstance(content, dict) or not all(isinstance(each, list) for each in content.values()):
        raise ValueError(f"{path} must hold split -> list of subjects, or a list of such folds; check --splits")
    splits = {_FOLDS.get(name, str(name)): [str(subject) for subject in subjects] for name, subjects in content.items()}
    named = [subject for subjects in splits.values() for subject in set(subjects)]
    twice = sorted({subject for subject in named if named.count(subject) > 1})
    if twice:
        raise ValueError(f"subject {twice[0]!r} is in several splits of {path}; leave it in one of them")
    return splits


def records_of(found: Iterable[Found], settings: Settings) -> list[Record]:
    """Make the lines; cases of which no structure is wanted are left out.

    Raises:
        ValueError: names are not understood, a modality is neither CT nor MRI, or no case is left.
    """
    cases = list(found)
    names = structures_of((name for case in cases for name in case.labels), settings.choices)
    modalities = _modalities(cases, settings.modality)
    split_by_subject = {subject: split for split, subjects in settings.splits.items() for subject in subjects}
    records = []
    for case, modality in zip(cases, modalities, strict=True):
        values: dict[str, set[int]] = {}
        for theirs, own in case.labels.items():
            for ours in names[theirs]:
                values.setdefault(ours, set()).update(own)
        split = split_by_subject.get(case.subject) or case.split
        if settings.splits and not split:
            raise ValueError(f"subject {case.subject!r} is in no split of the file of --splits; add it there")
        if values:
            records.append(
                {
                    "image": str(case.image),
                    "label": str(case.label),
                    "modality": modality,
                    "source": settings.source or case.source,
                    "subject": case.subject,
                    "split": split or split_of(case.subject, validation=settings.validation, seed=settings.seed),
                    "structures": {
                        name: {"values": sorted(own), "department": structure(name).department}
                        for name, own in values.items()
                    },
                }
            )
    if not records:
        raise ValueError(f"none of {len(cases)} cases has a structure that is left; skip fewer names")
    return records


def convert(
    found: Sequence[Found],
    settings: Settings,
    output: Path,
    *,
    volumes: Path | None = None,
    overwrite: bool = False,
    progress: Callable[[Iterable[Found]], Iterable[Found]] = iter,
) -> list[Record]:
    """Write the list, and before it the volumes that the layout lacks; on an error nothing is left.

    Args:
        found: see the converters.
        settings: see there.
        output: of the list; paths of files below its folder become relative to it.
        volumes: folder for what has to be written.
        overwrite: replace a list, and files in that folder, that exist.
        progress: wraps the cases whose volumes are written.

    Raises:
        ValueError: see ``records_of``; or volumes have to be written and no folder is named.
        OSError: something exists already, or can't be written.
    """
    if output.exists() and not overwrite:
        raise FileExistsError(f"{output} exists already; name another file with --output, or add --overwrite")
    if not output.parent.is_dir():
        raise FileNotFoundError(f"folder {output.parent} of {output.name} does not exist; make it first")
    if not any(case.write for case in found):
        records = records_of(found, settings)
        _write_lines(records, output)
        return records
    # what can be wrong with names and modalities is said before the first volume is written
    structures_of((name for case in found for name in case.labels), settings.choices)
    if settings.modality != "auto":
        _modalities(found, settings.modality)
    if volumes is None:
        raise ValueError("this layout lacks volumes as files that a list can name; name a folder for them: --volumes")
    if volumes.exists() and not (volumes.is_dir() and (overwrite or not any(volumes.iterdir()))):
        raise FileExistsError(f"{volumes} exists already; name another folder with --volumes, or add --overwrite")
    volumes.parent.mkdir(parents=True, exist_ok=True)
    draft = volumes.with_name(f".{volumes.name}.{uuid.uuid4().hex}")
    draft.mkdir()
    try:
        written = [case.write(draft) if case.write else case for case in progress(found)]
        records = records_of(written, settings)
        volumes.mkdir(exist_ok=True)
        for file in sorted(draft.iterdir()):
            os.replace(file, volumes / file.name)
        records = [_moved(record, draft, volumes) for record in records]
        _write_lines(records, output)
    finally:
        shutil.rmtree(draft)
    return records


def _moved(record: Record, draft: Path, folder: Path) -> Record:
    paths = {key: Path(record[key]) for key in ("image", "label")}
    return {**record, **{key: str(folder / path.name) for key, path in paths.items() if path.parent == draft}}


def _modalities(cases: Sequence[Found], modality: str) -> list[str]:
    if modality in ("ct", "mri"):
        return [modality] * len(cases)
    if modality == "auto":
        from lorkd_monailabel.volumes import read_volume

        return [read_volume(case.image).modality for case in cases]
    read = {case.modality: modality_of(case.modality) for case in cases}
    unknown = sorted(repr(text) for text, known in read.items() if known is None)
    if unknown:
        raise ValueError(
            f"the modality {', '.join(unknown)} is neither CT nor MRI; say --modality ct or mri, or auto to guess it "
            "from the values of each image"
        )
    return [str(read[case.modality]) for case in cases]


def _write_lines(records: Sequence[Record], output: Path) -> None:
    folder = Path(os.path.abspath(output)).parent
    lines = [
        json.dumps({**record, **{key: _portable(Path(record[key]), folder) for key in ("image", "label")}})
        for record in records
    ]
    write_whole(output, "\n".join(lines) + "\n")


def _portable(path: Path, folder: Path) -> str:
    """The path from the list's folder where it lies below it, else the whole path."""
    whole = Path(os.path.abspath(path))
    return whole.relative_to(folder).as_posix() if whole.is_relative_to(folder) else str(whole)
