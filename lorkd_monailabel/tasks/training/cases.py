"""The labelled images of a datastore -> cases to learn from and cases to validate on, parted for ever.

What a case was used for is written down under a reference that nobody can trace to the image: a case that an expert of
the store once learned from never judges one, in whatever run, and the other way round.
"""

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from monailabel.interfaces.datastore import Datastore

from lorkd_monailabel.case_lists.datastore import told_values
from lorkd_monailabel.case_lists.found import modality_of
from lorkd_monailabel.case_lists.naming import Choices, structures_of
from lorkd_monailabel.departments import structure
from lorkd_monailabel.json_files import read_json, write_json
from lorkd_monailabel.learning.cases import Case
from lorkd_monailabel.tasks.training.options import TrainingOptions
from lorkd_monailabel.volumes import read_labels, read_volume

SPLITS = "splits.json"
TRAIN, VALIDATION = "train", "validation"
_SUBJECT = ("subject", "PatientID", "StudyInstanceUID")
"""What an image's information may call the one who was scanned; else the image stands for itself."""

_LOG = logging.getLogger(__name__)

Reference = Callable[[str], str]
"""Id of an image or a subject -> what stands for it wherever something is written down."""


@dataclass(frozen=True)
class Labelled:
    """The labelled images of a datastore.

    Attributes:
        cases: with a reference as their subject, not yet parted.
        left_out: reference of the image -> why it is none of them.
        unknown: names of segments that are no structures of the vocabulary.
    """

    cases: tuple[Case, ...]
    left_out: dict[str, str]
    unknown: tuple[str, ...]


@dataclass(frozen=True)
class Annotated:
    """What an image's label shows.

    Attributes:
        label: file.
        subject: reference of the one who was scanned.
        structures: name -> its values in the label.
        unknown: names of segments that are no structures of the vocabulary.
    """

    label: Path
    subject: str
    structures: dict[str, tuple[int, ...]]
    unknown: tuple[str, ...]

    def of(self, department: str) -> list[str]:
        """Name the structures of a department."""
        return [name for name in self.structures if structure(name).department == department]


def labelled(
    datastore: Datastore,
    options: TrainingOptions,
    reference: Reference,
    *,
    department: str = "",
    stop: Callable[[], bool] = lambda: False,
) -> Labelled:
    """Read which structures are annotated on which image; an image that can't be used is left out, with the reason.

    Args:
        datastore: of the server.
        options: tags, and names of values that the datastore doesn't know.
        reference: see there.
        department: keep images with a structure of this one; empty keeps all.
        stop: asked before every image; the rest is left away.
    """
    cases: list[Case] = []
    left_out: dict[str, str] = {}
    unknown: dict[str, None] = {}
    for image in sorted(datastore.list_images()):
        if stop():
            break
        try:
            shown = annotated(datastore, image, options, reference)
            if shown is None:
                continue
            unknown |= dict.fromkeys(shown.unknown)
            if shown.of(department) if department else shown.structures:
                cases.append(_case(datastore, image, shown))
        except (ValueError, OSError) as error:
            _LOG.warning("image %s is left out: %s", reference(image), error)
            left_out[reference(image)] = str(error)
    return Labelled(tuple(cases), left_out, tuple(unknown))


def annotated(datastore: Datastore, image: str, options: TrainingOptions, reference: Reference) -> Annotated | None:
    """Read what an image's label shows; None where it has none of the tags.

    Raises:
        ValueError: it is open what the label's values mean.
        OSError: it can't be read.
    """
    tags = datastore.get_labels_by_image_id(image)
    tag = next((each for each in options.tag_list if each in tags), None)
    if tag is None:
        return None
    label = Path(datastore.get_label_uri(image, tag))
    about = label.stat()
    present = _values(label, about.st_mtime_ns, about.st_size)
    info = datastore.get_label_info(image, tag)
    told = told_values(info, set(present), f"image {reference(image)}") or options.values
    if not told:
        raise ValueError('nothing says what the values of its label mean; send labels="NAME=VALUE, …" with the request')
    drawn = {name: own for name, own in told.items() if present.intersection(own)}
    names = structures_of(drawn, Choices(skip_unknown=True))
    values: dict[str, tuple[int, ...]] = {}
    for theirs, own in drawn.items():
        for ours in names[theirs]:
            values[ours] = tuple(sorted({*values.get(ours, ()), *own}))
    subject = reference(_subject(datastore.get_image_info(image), image))
    return Annotated(label, subject, values, tuple(name for name in drawn if not names[name]))


def parted(
    found: Labelled, path: Path, *, share: float, key: str, department: str = "cases"
) -> tuple[list[Case], list[Case]]:
    """Part cases into those to train on and those to validate on, and write it down.

    Args:
        found: see ``labelled``.
        path: of the file that knows all that were parted before; none of them moves.
        share: of the new subjects that become validation.
        key: tells references that were made with one key from those of another, see ``key_of``.
        department: whose cases these are, for the message.

    Raises:
        ValueError: there is nothing to train on, or nothing to validate on; or the file is damaged or of another key.
    """
    subjects = {case.subject for case in found.cases}
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.name}.lock")):
        known = _known(path, key)
        splits = assigned(known, subjects, share=share)
        enough = {TRAIN, VALIDATION} <= {splits[subject] for subject in subjects}
        if enough and splits != known:
            write_json(path, {"key": key, "splits": splits})
    if not enough:
        raise ValueError(_lack({subject: splits[subject] for subject in subjects}, department) + _remarks(found))
    cases = [replace(case, split=splits[case.subject]) for case in found.cases]
    return [case for case in cases if case.split == TRAIN], [case for case in cases if case.split == VALIDATION]


def shortage(subjects: Collection[str], path: Path, *, share: float, key: str, department: str) -> str:
    """Say what ``parted`` would lack, in one sentence; nothing where it lacks nothing.

    Args:
        subjects: references of those who were scanned.
        path: see ``parted``.
        share: see ``parted``.
        key: see ``parted``.
        department: see ``parted``.

    Raises:
        ValueError: the file is damaged or of another key.
    """
    splits = assigned(_known(path, key), subjects, share=share)
    own = {subject: splits[subject] for subject in subjects}
    return "" if {TRAIN, VALIDATION} <= set(own.values()) else _lack(own, department)


def key_of(reference: Reference) -> str:
    """Give what is the same for all references that were made with one key."""
    return reference("which key is it")


def assigned(known: Mapping[str, str], subjects: Collection[str], *, share: float) -> dict[str, str]:
    """Give every subject its split: those that have one keep it, the others get it by their reference.

    Where the subjects would all be of one split, one that is new goes to the other.

    Args:
        known: reference of a subject -> split.
        subjects: references, which are hashes in hexadecimal numbers.
        share: of the new ones that become validation.
    """
    places = {subject: int(subject, 16) / 16 ** len(subject) for subject in subjects if subject not in known}
    splits = {**known, **{name: VALIDATION if place < share else TRAIN for name, place in places.items()}}
    present = {splits[subject] for subject in subjects}
    if len(subjects) > 1 and places and len(present) == 1:
        lacking = TRAIN if VALIDATION in present else VALIDATION
        splits[(max if lacking == TRAIN else min)(places, key=places.__getitem__)] = lacking
    return splits


def _known(path: Path, key: str) -> dict[str, str]:
    content = read_json(path)
    if content and content.get("key") != key:
        raise ValueError(
            f"{path.name} was written with another key than the store's audit.key, so that nobody knows which cases "
            "were trained on; restore both from one backup"
        )
    splits = content.get("splits", {})
    if not isinstance(splits, dict) or not all(value in (TRAIN, VALIDATION) for value in splits.values()):
        raise ValueError(f"{path.name} is damaged; restore it and audit.key from a backup")
    return splits


@lru_cache(maxsize=10_000)
def _values(label: Path, modified_ns: int, size: int) -> frozenset[int]:
    """Give the values that a label volume has besides 0."""
    return frozenset(int(value) for value in np.unique(read_labels(label)[0]) if value)


def _case(datastore: Datastore, image: str, shown: Annotated) -> Case:
    path = Path(datastore.get_image_uri(image))
    return Case(
        image=path,
        label=shown.label,
        modality=_modality(datastore.get_image_info(image), path),
        source="studies",
        subject=shown.subject,
        split="",
        structures=shown.structures,
        departments={name: structure(name).department for name in shown.structures},
    )


def _subject(about: Mapping[str, Any], image: str) -> str:
    return next((str(about[key]) for key in _SUBJECT if about.get(key)), image)


def _modality(about: Mapping[str, Any], path: Path) -> str:
    return modality_of(str(about.get("Modality") or about.get("modality") or "")) or read_volume(path).modality


def _lack(splits: Mapping[str, str], department: str) -> str:
    """Say what is missing."""
    if not splits:
        return f"no image has a label with a structure of {department}; label two at least and submit them"
    if len(splits) == 1:
        return f"one case of {department} is labelled, but one to train on and one to validate on are needed; label one"
    used = next(iter(splits.values()))
    other = {TRAIN: "validated on", VALIDATION: "trained on"}[used]
    return (
        f"all {len(splits)} cases of {department} were used for {used} before and can't be {other} now; "
        "label a further one"
    )


def _remarks(found: Labelled) -> str:
    """Say what of the labels can't be used."""
    text = f" (segments that stand for no structure: {_listed(found.unknown)})" if found.unknown else ""
    if found.left_out:
        text += f" ({len(found.left_out)} were left out, the first because: {next(iter(found.left_out.values()))})"
    return text


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:5])) + (", …" if len(names) > 5 else "")
