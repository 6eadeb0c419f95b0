"""Revisions: what a store's experts are, how two of them differ, and which of them is served."""

import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean
from typing import Any

from lorkd_monailabel.candidates import candidate_header, candidate_ids
from lorkd_monailabel.departments import department as find_department
from lorkd_monailabel.drafts import DRAFT
from lorkd_monailabel.pins import pinned, write_pin
from lorkd_monailabel.store import ExpertStore

DRAFT_S = 3600.0
"""After which nobody writes at a draft any more."""

Header = Mapping[str, Any]


def experts(store: ExpertStore) -> list[dict[str, Any]]:
    """Tell of every department that has an expert. See ``summary``."""
    return [summary(store, department) for department in store.departments()]


def summary(store: ExpertStore, department: str) -> dict[str, Any]:
    """Tell of a department what is served, and how much else there is.

    Raises:
        FileNotFoundError: the department has no expert.
        ValueError: the department is unknown, or the file of pins is damaged.
    """
    department = _known(store, department)
    return {
        "department": department,
        "served": store.served(department),
        "newest": store.newest(department),
        "pinned": pinned(store.folder, department),
        "revisions": len(store.revisions(department)),
        "candidates": len(candidate_ids(store, department)),
    }


def history(store: ExpertStore, department: str) -> dict[str, Any]:
    """Tell all revisions and candidates of a department, newest first; of a damaged one, its problem alone.

    Raises:
        FileNotFoundError: the department has no expert.
        ValueError: the department is unknown, or the file of pins is damaged.
    """
    told = summary(store, department)
    department = told["department"]
    candidates = [_candidate(store, department, each) for each in reversed(candidate_ids(store, department))]
    return {
        **told,
        "revisions": [_told(store, department, number) for number in reversed(store.revisions(department))],
        "candidates": [each for each in candidates if each],
    }


def revision(store: ExpertStore, department: str, number: int) -> dict[str, Any]:
    """Tell what a revision says of itself: metrics, structures, ranks, cases by their references, parent, date.

    Raises:
        FileNotFoundError: there is no such revision.
        ValueError: the department is unknown, or the file is damaged.
    """
    department = _known(store, department)
    path = _path(store, department, number)
    return described(store.header(department, number), path)


def described(header: Header, path: Path) -> dict[str, Any]:
    """Give what of a header people ask for."""
    about, ranks = header["about"], sorted(header["ranks"].values())
    metrics = dict(header["metrics"])
    return {
        "revision": header["revision"],
        "parent": header["parent"],
        "copy_of": about.get("copy_of"),
        "date": about.get("date") or _date(path),
        "dice": fmean(metrics.values()) if metrics else None,
        "metrics": metrics,
        "structures": list(header["structures"]),
        "ranks": [ranks[0], ranks[-1]] if ranks else [],
        "spacing_mm": list(header["spacing_mm"]),
        "base": header["base_sha256"],
        "cases": _references(about, "trained_on"),
        "validation": _references(about, "validated_on"),
        "comparison": about.get("comparison"),
        "bytes": path.stat().st_size,
    }


def difference(store: ExpertStore, department: str, a: int, b: int) -> dict[str, Any]:
    """Tell what changed from revision ``a`` to ``b``.

    Raises:
        FileNotFoundError: there is no such revision.
        ValueError: the department is unknown, or a file is damaged.
    """
    old, new = revision(store, department, a), revision(store, department, b)
    names = [*old["metrics"], *(name for name in new["metrics"] if name not in old["metrics"])]
    ranks = [store.header(department, number)["ranks"] for number in (a, b)]
    layers = dict.fromkeys([*ranks[0], *ranks[1]])
    changed = {
        name: [ranks[0].get(name), ranks[1].get(name)] for name in layers if ranks[0].get(name) != ranks[1].get(name)
    }
    return {
        "department": find_department(department).id,
        "a": a,
        "b": b,
        "dice": [old["dice"], new["dice"]],
        "metrics": {name: _change(old["metrics"].get(name), new["metrics"].get(name)) for name in names},
        "structures": _sets(old["structures"], new["structures"]),
        "ranks": changed,
        "cases": _sets(old["cases"], new["cases"]),
        "same_validation": sorted(old["validation"]) == sorted(new["validation"]),
        "same_base": old["base"] == new["base"],
    }


def roll_back(store: ExpertStore, department: str, number: int) -> int:
    """Publish an old revision anew, as the newest, and return its number.

    Raises:
        FileNotFoundError: there is no such revision.
        ValueError: the department is unknown, the revision is the newest already, or its file is damaged.
    """
    department = _known(store, department)
    _path(store, department, number)
    expert = store.load(department, number)
    if expert.revision == store.newest(department):
        raise ValueError(f"{department} revision {number} is the newest already; name an older one")
    return store.publish(replace(expert, about={**expert.about, "copy_of": expert.revision}))


def pin(store: ExpertStore, department: str, number: int | None) -> int | None:
    """Serve a revision whatever is published, or the newest again (None); return what is served now.

    Raises:
        FileNotFoundError: there is no such revision.
        ValueError: the department is unknown, or the file is damaged.
    """
    department = _known(store, department)
    if number is not None:
        _path(store, department, number)
        store.load(department, number)  # what can't be served must not be pinned
    write_pin(store.folder, department, number)
    return store.served(department)


def sweep_drafts(store: ExpertStore) -> None:
    """Remove what publications that were killed left in the store."""
    for draft in store.folder.rglob(f"{DRAFT}*"):
        with suppress(OSError):  # another process swept it away
            if time.time() - draft.stat().st_mtime > DRAFT_S:
                draft.unlink()


def _known(store: ExpertStore, department: str) -> str:
    known = find_department(department).id
    if not store.revisions(known):
        have = ", ".join(store.departments()) or "none"
        raise FileNotFoundError(f"{known} has no expert (experts exist for: {have}); train one first")
    return known


def _path(store: ExpertStore, department: str, number: int) -> Path:
    known = store.revisions(department)
    if number not in known:
        raise FileNotFoundError(f"{department} has no revision {number}; it has {known[0]} to {known[-1]}")
    return store.path(department, number)


def _told(store: ExpertStore, department: str, number: int) -> dict[str, Any]:
    try:
        return {**revision(store, department, number), "problem": None}
    except ValueError as error:
        return {"revision": number, "problem": str(error)}


def _candidate(store: ExpertStore, department: str, candidate: str) -> dict[str, Any]:
    """Tell of a candidate; nothing of one that was published or discarded since it was listed."""
    try:
        header = candidate_header(store, department, candidate)
    except FileNotFoundError:
        return {}
    except ValueError as error:
        return {"id": candidate, "problem": str(error)}
    about = header["about"]
    return {
        "id": candidate,
        "parent": header["parent"],
        "date": about.get("date", ""),
        "metrics": header["metrics"],
        "structures": header["structures"],
        "cases": _references(about, "trained_on"),
        "comparison": about.get("comparison"),
        "problem": None,
    }


def _references(about: Header, key: str) -> list[str]:
    kept = about.get(key)
    return [str(each) for each in kept] if isinstance(kept, list) else []


def _change(old: float | None, new: float | None) -> dict[str, float | None]:
    return {"a": old, "b": new, "change": None if old is None or new is None else new - old}


def _sets(old: list[str], new: list[str]) -> dict[str, Any]:
    return {
        "added": [each for each in new if each not in old],
        "removed": [each for each in old if each not in new],
        "kept": len(set(old).intersection(new)),
    }


def _date(path: Path) -> str:
    return datetime.fromtimestamp(path.stat().st_mtime, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
