"""Where bases and experts live: an append-only folder of safetensors files.

``base/0001.safetensors`` and ``abdomen/0001.safetensors``, ``0002`` …: a file is written under a temporary name,
flushed and linked to the next free number, so that readers see it whole or not at all; the newest number wins, and
rolling back publishes an old revision anew. An expert names its base by SHA-256. Everything but tensors is JSON in the
file's header, readable without the tensors. Nothing in a file is ever executed.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from lorkd_monailabel import shipped
from lorkd_monailabel.departments import department as find_department
from lorkd_monailabel.departments import departments
from lorkd_monailabel.drafts import draft_of
from lorkd_monailabel.experts import Base, Expert
from lorkd_monailabel.headers import EXPERT_FIELDS, check, completed, expert_contents
from lorkd_monailabel.pins import pinned
from lorkd_monailabel.text_encoder import QueryTable

FORMAT = "lorkd/1"
BASE = "base"
QUERIES = "queries"
READABLE = 0o644
"""Rights of the store's files; safetensors writes them for their owner alone."""
_FILE = re.compile(r"(\d{4,})\.safetensors")
_BASE_FIELDS = ("network", "window", "query_space", "revision", "about", "intensities")


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

    def served(self, department: str) -> int | None:
        """Give the revision that requests get: the pinned one, else the newest; None where there is none.

        Raises:
            ValueError: the file of pins is damaged.
        """
        revision = pinned(self.folder, department)
        return revision if revision in self.revisions(department) else self.newest(department)

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
        expert = load_expert(path)
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
        if sha256 is None:
            newest = self.newest(BASE)
            if newest is None:
                raise ValueError(
                    f"{self.folder} holds no base; publish a decomposition first (python -m train.decompose)"
                )
            return replace(load_base(self.path(BASE, newest)), revision=newest)
        known, problems = self._bases()
        if sha256 in known:
            return replace(load_base(self.path(BASE, known[sha256])), revision=known[sha256])
        have = ", ".join(each[:12] for each in known) or "none"
        said = "; ".join((*problems, f"an expert was trained on base {sha256[:12]}, but {self.folder} has {have}"))
        raise ValueError(f"{said}; add that base")

    def publish(self, expert: Expert) -> int:
        """Add an expert as the newest revision of its department and return its number.

        Raises:
            ValueError: the store lacks the expert's base.
        """
        self.base(expert.base_sha256)
        return self._append(expert.department, *expert_contents(expert))

    def publish_base(self, base: Base) -> int:
        """Add a base and return its number; one that the store already holds keeps its number."""
        known, _ = self._bases()
        return known.get(base.sha256) or self._append(BASE, base_header(base, "base"), base.weights)

    def _bases(self) -> tuple[dict[str, int], list[str]]:
        """List the bases by their hashes, oldest first, and the problems of those that are damaged."""
        known, problems = {}, []
        for revision in self.revisions(BASE):
            try:
                known[str(self.header(BASE, revision)["sha256"])] = revision
            except ValueError as error:  # which must not keep the experts of the others from being served
                problems.append(str(error))
        return known, problems

    def publish_queries(self, table: QueryTable) -> Path:
        """Keep the query table that a base was trained with, and return its file.

        One of the same space gives way to a table that has all of its names, for rows may be added to a space.

        Raises:
            ValueError: the table lacks a name that the kept one has.
        """
        path = self._queries_path(table.space)
        if path.exists():
            lost = [name for name in QueryTable.load(path).names if name not in table]
            if lost:
                raise ValueError(f"{path} has a query of {lost[0]!r}, which the new table lacks; extend the one there")
        path.parent.mkdir(parents=True, exist_ok=True)
        with draft_of(path) as draft:
            table.save(draft)
            draft.chmod(READABLE)
        return path

    def queries(self, space: str) -> QueryTable:
        """Give the table of a query space: the package's own, or the one published here.

        Raises:
            ValueError: neither is of that space, or the file is damaged.
        """
        own = QueryTable.load(shipped.QUERIES)
        if own.space == space:
            return own
        path = self._queries_path(space)
        if path.is_file():
            table = QueryTable.load(path)
            if table.space == space:
                return table
        raise ValueError(
            f"query space {space[:12]!r} of a base is neither that of the package's own table nor that of one in "
            f"{path.parent}; publish the query table that the base was trained with"
        )

    def _queries_path(self, space: str) -> Path:
        name = space[:16] if space.isalnum() and space.isascii() else hashlib.sha256(space.encode()).hexdigest()[:16]
        return self.folder / QUERIES / f"{name}.safetensors"

    def _append(self, name: str, header: dict[str, Any], tensors: Mapping[str, Tensor]) -> int:
        folder = self.folder / _folder_name(name)
        check(json.loads(json.dumps(header)), folder)  # what could not be read again must not be the newest
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
    metadata = {"format": FORMAT, "header": json.dumps(header, sort_keys=True)}
    with draft_of(path, over=False) as draft:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, draft, metadata)
        draft.chmod(READABLE)


def read_file(path: Path, kind: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read header and tensors of a file of ours.

    Raises:
        ValueError: it is missing, damaged, or of another kind.
    """
    header = read_header(path, kind)
    try:
        return header, load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} is damaged ({error}); restore it from a backup or publish anew") from error


def read_header(path: Path, kind: str) -> dict[str, Any]:
    """Read what a file of ours says of itself. See ``read_file``."""
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
    header = completed(header)
    check(header, path)
    return header


@lru_cache(maxsize=1024)
def _header(path: Path, modified_ns: int, kind: str) -> dict[str, Any]:
    return read_header(path, kind)


def load_expert(path: Path) -> Expert:
    """Read an expert.

    Raises:
        ValueError: the file is missing, damaged, or of another kind.
    """
    header, tensors = read_file(path, "expert")
    try:
        factors = {name: (tensors[f"lora_a.{name}"], tensors[f"lora_b.{name}"]) for name in header["scales"]}
    except KeyError as error:
        raise ValueError(f"{path} lacks {error} of an expert; restore it from a backup or publish anew") from error
    norms = {name.removeprefix("norms."): tensor for name, tensor in tensors.items() if name.startswith("norms.")}
    own = {name: header[name] for name in EXPERT_FIELDS}
    return Expert(factors=factors, norms=norms, **{**own, "structures": tuple(own["structures"])})


def _folder_name(department: str) -> str:
    return BASE if department == BASE else find_department(department).id
