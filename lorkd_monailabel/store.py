"""Where bases and experts live: an append-only folder of safetensors files.

``base/0001.safetensors`` and ``abdomen/0001.safetensors``, ``0002`` …: a file is written under a temporary name,
flushed and linked to the next free number, so that readers see it whole or not at all; the newest number wins, and
rolling back publishes an old revision anew. An expert names its base by SHA-256. Everything but tensors is JSON in the
file's header, readable without the tensors. Nothing in a file is ever executed.
"""

import json
import os
import re
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from lorkd_monailabel.departments import department as find_department
from lorkd_monailabel.departments import departments
from lorkd_monailabel.experts import Base, Expert

FORMAT = "lorkd/1"
BASE = "base"
_FILE = re.compile(r"(\d{4,})\.safetensors")
_BASE_FIELDS = ("network", "window", "query_space", "revision", "about")
_EXPERT_FIELDS = tuple(field.name for field in fields(Expert) if field.name not in ("factors", "norms"))


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_whole(value: object) -> bool:
    return type(value) is int


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and -1e30 < value < 1e30  # type: ignore[operator]


def _is_table(value: object) -> bool:
    return isinstance(value, dict)


def _is_table_of_numbers(value: object) -> bool:
    return isinstance(value, dict) and all(map(_is_number, value.values()))


def _is_list_of_texts(value: object) -> bool:
    return isinstance(value, list) and all(map(_is_text, value))


_BASE_RULES: dict[str, Callable[[object], bool]] = {
    "sha256": _is_text,
    "network": _is_table,
    "window": _is_whole,
    "query_space": _is_text,
    "revision": _is_whole,
    "about": _is_table,
}
_EXPERT_RULES: dict[str, Callable[[object], bool]] = {
    "department": _is_text,
    "base_sha256": _is_text,
    "scales": _is_table_of_numbers,
    "ranks": lambda value: isinstance(value, dict) and all(map(_is_whole, value.values())),
    "spacing_mm": _is_number,
    "structures": _is_list_of_texts,
    "revision": _is_whole,
    "parent": _is_whole,
    "metrics": _is_table_of_numbers,
    "about": _is_table,
}


class ExpertStore:
    """Experts of all departments and their bases, in one folder.

    Args:
        folder: of the store; made at the first publication.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def departments(self) -> tuple[str, ...]:
        """Name the departments that have an expert, in display order."""
        return tuple(department.id for department in departments() if self.revisions(department.id))

    def revisions(self, department: str) -> tuple[int, ...]:
        """List the revisions of a department (or of ``"base"``), oldest first; empty where there is none."""
        folder = self.folder / _folder_name(department)
        if not folder.is_dir():
            return ()
        found = (_FILE.fullmatch(entry.name) for entry in folder.iterdir())
        return tuple(sorted(int(match[1]) for match in found if match))

    def newest(self, department: str) -> int | None:
        """Give the newest revision, or None where there is none."""
        return max(self.revisions(department), default=None)

    def path(self, department: str, revision: int | None = None) -> Path:
        """Give the file of a revision, the newest if none is named.

        Raises:
            ValueError: there is no such revision.
        """
        known = self.revisions(department)
        if not known:
            have = ", ".join(self.departments()) or "none"
            raise ValueError(
                f"department {department!r} has no expert in {self.folder} (it has: {have}); train one first"
            )
        number = known[-1] if revision is None else revision
        if number not in known:
            raise ValueError(f"{department} has no revision {number}; it has {known[0]} to {known[-1]}")
        return self.folder / _folder_name(department) / f"{number:04d}.safetensors"

    def header(self, department: str, revision: int | None = None) -> dict[str, Any]:
        """Read what a revision says of itself, without its tensors.

        Raises:
            ValueError: there is no such revision, or its file is damaged.
        """
        path = self.path(department, revision)
        return _header(path, path.stat().st_mtime_ns, "base" if department == BASE else "expert")

    def load(self, department: str, revision: int | None = None) -> Expert:
        """Load an expert, the newest if no revision is named.

        Raises:
            ValueError: there is none, or its file is damaged.
        """
        path = self.path(department, revision)
        header, tensors = read_file(path, "expert")
        expert = _expert_of(header, tensors, path)
        if expert.department != find_department(department).id:
            raise ValueError(
                f"{path} holds an expert of {expert.department}, not of {department}; move it to its folder"
            )
        return replace(expert, revision=int(path.stem))

    def base(self, sha256: str | None = None) -> Base:
        """Load the base of a hash, the newest if none is named.

        Raises:
            ValueError: the store lacks it, or its file is damaged.
        """
        revisions = self.revisions(BASE)
        for revision in reversed(revisions):
            if sha256 in (None, self.header(BASE, revision)["sha256"]):
                return replace(load_base(self.path(BASE, revision)), revision=revision)
        if sha256 is None:
            raise ValueError(f"{self.folder} holds no base; publish a decomposition first (python -m train.decompose)")
        have = ", ".join(self.header(BASE, revision)["sha256"][:12] for revision in revisions) or "none"
        raise ValueError(f"an expert was trained on base {sha256[:12]}, but {self.folder} has {have}; add that base")

    def publish(self, expert: Expert) -> int:
        """Add an expert as the newest revision of its department and return its number.

        Raises:
            ValueError: the store lacks the expert's base.
        """
        self.base(expert.base_sha256)
        header = {"kind": "expert", **{name: getattr(expert, name) for name in _EXPERT_FIELDS}}
        tensors = {f"norms.{name}": tensor for name, tensor in expert.norms.items()}
        for name, (lora_a, lora_b) in expert.factors.items():
            tensors |= {f"lora_a.{name}": lora_a, f"lora_b.{name}": lora_b}
        return self._append(expert.department, header, tensors)

    def publish_base(self, base: Base) -> int:
        """Add a base and return its number; one that the store already holds keeps its number."""
        sha256 = base.sha256
        for revision in self.revisions(BASE):
            if self.header(BASE, revision)["sha256"] == sha256:
                return revision
        return self._append(BASE, base_header(base, "base"), base.weights)

    def _append(self, name: str, header: dict[str, Any], tensors: Mapping[str, Tensor]) -> int:
        folder = self.folder / _folder_name(name)
        _check(json.loads(json.dumps(header)), folder)  # what could not be read again must not be the newest
        folder.mkdir(parents=True, exist_ok=True)
        while True:
            number = (self.newest(name) or 0) + 1
            try:
                write_file(folder / f"{number:04d}.safetensors", {**header, "revision": number}, tensors)
            except FileExistsError:  # another process published meanwhile
                continue
            return number


def base_header(base: Base, kind: str) -> dict[str, Any]:
    """Describe a base, or a foundation, for its file."""
    return {"kind": kind, "sha256": base.sha256, **{name: getattr(base, name) for name in _BASE_FIELDS}}


def load_base(path: Path, kind: str = "base") -> Base:
    """Read a base (or, by ``kind``, a foundation) and check its hash.

    Raises:
        ValueError: the file is missing, damaged, or of another kind.
    """
    header, tensors = read_file(path, kind)
    base = Base(weights=tensors, **{name: header[name] for name in _BASE_FIELDS})
    if base.sha256 != header["sha256"]:
        raise ValueError(f"{path} does not have the weights that its header names; restore it from a backup")
    return base


def write_file(path: Path, header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file whole or not at all; never over another.

    Raises:
        FileExistsError: the path is taken.
    """
    handle, draft = tempfile.mkstemp(dir=path.parent, prefix=".draft-")
    os.close(handle)
    try:
        metadata = {"format": FORMAT, "header": json.dumps(header, sort_keys=True)}
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, draft, metadata)
        with open(draft, "rb+") as file:
            os.fsync(file.fileno())
        os.chmod(draft, 0o644)
        os.link(draft, path)
    finally:
        os.unlink(draft)


def read_file(path: Path, kind: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read header and tensors of a file of ours.

    Raises:
        ValueError: it is missing, damaged, or of another kind.
    """
    header = _read_header(path, kind)
    try:
        return header, load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} is damaged ({error}); restore it from a backup or publish anew") from error


def _read_header(path: Path, kind: str) -> dict[str, Any]:
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
        header = json.loads(metadata.get("header", "null"))
    except (OSError, SafetensorError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error}); restore it from a backup or publish anew") from error
    if metadata.get("format") != FORMAT or not isinstance(header, dict):
        raise ValueError(f"{path} is not of format {FORMAT}; it was not written by this program")
    if header.get("kind") != kind:
        raise ValueError(f"{path} is of kind {str(header.get('kind'))[:40]}, not {kind}; give the right file")
    _check(header, path)
    return header


def _check(header: dict[str, Any], path: Path) -> None:
    for name, rule in (_EXPERT_RULES if header["kind"] == "expert" else _BASE_RULES).items():
        if not rule(header.get(name)):
            raise ValueError(f"{path} can't have {str(header.get(name))[:40]!r} as {name!r}; publish it anew")
    if header["kind"] == "expert" and header["scales"].keys() != header["ranks"].keys():
        raise ValueError(f"{path} can't have scales and ranks of different weights; publish it anew")


@lru_cache(maxsize=1024)
def _header(path: Path, modified_ns: int, kind: str) -> dict[str, Any]:
    return _read_header(path, kind)


def _expert_of(header: dict[str, Any], tensors: dict[str, Tensor], path: Path) -> Expert:
    try:
        factors = {name: (tensors[f"lora_a.{name}"], tensors[f"lora_b.{name}"]) for name in header["scales"]}
    except KeyError as error:
        raise ValueError(f"{path} lacks {error} of an expert; restore it from a backup or publish anew") from error
    norms = {name.removeprefix("norms."): tensor for name, tensor in tensors.items() if name.startswith("norms.")}
    own = {name: header[name] for name in _EXPERT_FIELDS}
    return Expert(factors=factors, norms=norms, **{**own, "structures": tuple(own["structures"])})


def _folder_name(department: str) -> str:
    return BASE if department == BASE else find_department(department).id
