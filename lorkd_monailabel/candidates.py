"""Candidates: experts that were trained and not published, in a folder of the store that nothing is served from."""

import os
import re
import secrets
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from lorkd_monailabel.departments import department as find_department
from lorkd_monailabel.experts import Expert
from lorkd_monailabel.headers import expert_contents
from lorkd_monailabel.store import ExpertStore, load_expert, read_header, write_file

CANDIDATES = "candidates"
MOST = 50
"""Of a department: the oldest give way."""

_ID = re.compile(r"\d{8}-\d{6}-[0-9a-f]{6}")


def keep(store: ExpertStore, expert: Expert) -> str:
    """Keep an expert as a candidate and return its id, by which candidates sort in the order of their making."""
    folder = _folder(store, expert.department)
    folder.mkdir(parents=True, exist_ok=True)
    candidate = f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{secrets.token_hex(3)}"
    write_file(folder / f"{candidate}.safetensors", *expert_contents(expert))
    for old in candidate_ids(store, expert.department)[:-MOST]:
        _path(store, expert.department, old).unlink(missing_ok=True)
    return candidate


def candidate_ids(store: ExpertStore, department: str) -> tuple[str, ...]:
    """List the candidates of a department, oldest first."""
    folder = _folder(store, department)
    names = [path.stem for path in folder.glob("*.safetensors")] if folder.is_dir() else []
    return tuple(sorted(name for name in names if _ID.fullmatch(name)))


def candidate_header(store: ExpertStore, department: str, candidate: str) -> dict[str, Any]:
    """Read what a candidate says of itself, without its tensors.

    Raises:
        FileNotFoundError: there is none of that id.
        ValueError: its file is damaged.
    """
    return read_header(_path(store, department, candidate), "expert")


def publish_candidate(store: ExpertStore, department: str, candidate: str) -> int:
    """Publish a candidate as the newest revision, after which it is no candidate any more; return the number.

    Raises:
        FileNotFoundError: there is none of that id.
        ValueError: its file is damaged, or the store lacks its base.
    """
    path = _path(store, department, candidate)
    expert = load_expert(path)
    revision = store.publish(replace(expert, revision=0, about={**expert.about, "candidate": candidate}))
    path.unlink(missing_ok=True)
    return revision


def discard(store: ExpertStore, department: str, candidate: str) -> None:
    """Remove a candidate.

    Raises:
        FileNotFoundError: there is none of that id.
    """
    os.unlink(_path(store, department, candidate))


def _folder(store: ExpertStore, department: str) -> Path:
    return store.folder / CANDIDATES / find_department(department).id


def _path(store: ExpertStore, department: str, candidate: str) -> Path:
    path = _folder(store, department) / f"{candidate}.safetensors"
    if not _ID.fullmatch(candidate) or not path.is_file():
        have = ", ".join(candidate_ids(store, department)) or "none"
        raise FileNotFoundError(f"{department} has no candidate {candidate[:60]!r}; there are: {have}")
    return path
