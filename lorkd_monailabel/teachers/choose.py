"""Which teacher a path is: a foundation of ours, a MONAI Bundle, a TorchScript or an exported program."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorkd_monailabel.experts import as_float, plain_network
from lorkd_monailabel.store import load_base
from lorkd_monailabel.teachers import bundle, program
from lorkd_monailabel.teachers.channels import ChannelTeacher
from lorkd_monailabel.teachers.network import NetworkTeacher
from lorkd_monailabel.teachers.protocol import Teacher
from lorkd_monailabel.text_encoder import QueryTable


@dataclass(frozen=True)
class ChosenTeacher:
    """A teacher and what a recipe must know of it.

    Attributes:
        teacher: to ask.
        about: what to write down of it; no path.
        stride: what the lengths of its patches must be multiples of.
        spacing_mm: that it was trained on; None if it does not say.
    """

    teacher: Teacher
    about: dict[str, Any]
    stride: int = 1
    spacing_mm: tuple[float, float, float] | None = None


def teacher_of(path: Path, *, table: QueryTable, intensities: str = "fixed") -> ChosenTeacher:
    """Load the teacher that a path is.

    Args:
        path: ``.safetensors``: a foundation; a folder or ``.zip``: a MONAI Bundle; ``.ts``, ``.pt2``: a program.
        table: query table of the students, which a foundation must share.
        intensities: that the students see.

    Raises:
        ValueError: there is no such teacher, or it does not go with table or intensities.
    """
    if path.suffix == ".safetensors":
        return _foundation(path, table, intensities)
    teacher: ChannelTeacher
    if path.is_dir() or path.suffix == ".zip":
        kind, teacher = "bundle", bundle.BundleTeacher(path, intensities=intensities)
        weights = next(file for file in (path / bundle.SCRIPT, path / bundle.WEIGHTS, path) if file.is_file())
    elif path.suffix in program.ENDINGS:
        kind, teacher, weights = "program", program.ProgramTeacher(path, intensities=intensities), path
    else:
        raise ValueError(
            f"{path} is no teacher that can be loaded: give a foundation (.safetensors), a MONAI Bundle (folder or "
            ".zip), a TorchScript (.ts) or an exported program (.pt2); released SAT and LoRKD weights come in by "
            "lorkd foundation import"
        )
    about = {"teacher": {"kind": kind, "name": path.name, "sha256": _sha256(weights)}}
    return ChosenTeacher(teacher, about, spacing_mm=teacher.channels.spacing_mm)


def _foundation(path: Path, table: QueryTable, intensities: str) -> ChosenTeacher:
    foundation = load_base(path, "foundation")
    if foundation.query_space != table.space:
        raise ValueError(
            f"{path} was trained with another query table; train it anew with this one, or set queries to its own"
        )
    if foundation.intensities != intensities:
        raise ValueError(
            f"{path} was trained on {foundation.intensities!r} intensities, the students see {intensities!r}; set "
            f"data.intensities to {foundation.intensities}"
        )
    network = plain_network(foundation.network, as_float(foundation.weights))
    about: dict[str, Any] = {"foundation": foundation.sha256}
    if foundation.about.get("licence"):  # what is learned from it is bound by it
        about["licence"] = str(foundation.about["licence"])
    return ChosenTeacher(NetworkTeacher(network, table), about, stride=network.stride)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
