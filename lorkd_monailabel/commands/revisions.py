"""Verbs of ``lorkd experts`` about revisions: roll back, pin, unpin, diff, and candidates that were not published."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorkd_monailabel.commands.options import SERVERS_STORE, Subparsers, opened_store
from lorkd_monailabel.commands.tables import table

if TYPE_CHECKING:
    from lorkd_monailabel.store import ExpertStore

CHANGES = ("structure", "a", "b", "change")
CANDIDATES = ("candidate", "parent", "structures", "new dice", "served dice", "date")


def add_verbs(verbs: Subparsers) -> Iterator[argparse.ArgumentParser]:
    """Add them, and give their parsers."""
    back = verbs.add_parser("rollback", help="publish an old revision anew, as the newest")
    back.add_argument("department", metavar="DEPARTMENT")
    back.add_argument("revision", type=int, metavar="REVISION")
    back.set_defaults(run=rollback)
    held = verbs.add_parser("pin", help="serve a revision whatever is published")
    held.add_argument("department", metavar="DEPARTMENT")
    held.add_argument("revision", type=int, metavar="REVISION")
    held.set_defaults(run=pin)
    free = verbs.add_parser("unpin", help="serve the newest revision again")
    free.add_argument("department", metavar="DEPARTMENT")
    free.set_defaults(run=pin, revision=None)
    differ = verbs.add_parser("diff", help="print what changed from one revision to another")
    differ.add_argument("department", metavar="DEPARTMENT")
    differ.add_argument("a", type=int, metavar="A")
    differ.add_argument("b", type=int, metavar="B")
    differ.set_defaults(run=diff)
    kept = verbs.add_parser("candidates", help="list experts that were trained and not published; publish or discard")
    kept.add_argument("department", metavar="DEPARTMENT")
    chosen = kept.add_mutually_exclusive_group()
    chosen.add_argument("--publish", metavar="ID", help="publish this one")
    chosen.add_argument("--discard", metavar="ID", help="remove this one")
    kept.set_defaults(run=candidates)
    yield from (back, held, free, differ, kept)


def rollback(arguments: argparse.Namespace) -> int:
    """Publish an old revision anew, as the newest.

    Raises:
        ValueError: no store is named, the revision is the newest, or it is damaged.
        OSError: there is no store or no such revision, or the store can't be written.
    """
    from lorkd_monailabel import revisions

    store = store_to_change(arguments.store)
    department, revision = arguments.department, arguments.revision
    number = revisions.roll_back(store, department, revision)
    _note(store, "roll back", department, revision=revision, published=number)
    print(
        f"{department}: revision {revision} is published anew as revision {number}, which is the newest "
        f"now; all revisions before it stay, and {_served(store, department, number)}"
    )
    return 0


def pin(arguments: argparse.Namespace) -> int:
    """Pin a revision, or none.

    Raises:
        ValueError: no store is named, or the revision is damaged.
        OSError: there is no store or no such revision, or the store can't be written.
    """
    from lorkd_monailabel import revisions

    store = store_to_change(arguments.store)
    department, revision = arguments.department, arguments.revision
    served = revisions.pin(store, department, revision)
    _note(store, "unpin" if revision is None else "pin", department, revision=revision)
    state = "nothing is pinned" if revision is None else f"revision {revision} is pinned"
    print(f"{department}: {state}; running servers use revision {served} from their next request on")
    return 0


def diff(arguments: argparse.Namespace) -> int:
    """Print what changed from one revision to another.

    Raises:
        ValueError: a revision is damaged.
        OSError: there is no store or no such revision.
    """
    from lorkd_monailabel import revisions

    store = opened_store(arguments.store)
    found = revisions.difference(store, arguments.department, arguments.a, arguments.b)
    rows = [(name, *(_figure(each[key]) for key in CHANGES[1:])) for name, each in found["metrics"].items()]
    if rows:
        print(table(CHANGES, rows))
    if not found["same_validation"]:
        print("the two were validated on different cases, so their Dice don't compare")
    for name in ("structures", "cases"):
        sets = found[name]
        words = [
            f"{sets['kept']} kept",
            *(f"{word}: {', '.join(sets[word])}" for word in ("added", "removed") if sets[word]),
        ]
        print(f"{name}: {'; '.join(words)}")
    for name, (old, new) in found["ranks"].items():
        print(f"rank of {name}: {old} -> {new}")
    if not found["same_base"]:
        print("they stand on different bases")
    return 0


def candidates(arguments: argparse.Namespace) -> int:
    """List a department's candidates, or publish or remove one.

    Raises:
        ValueError: no store is named where one is changed, or a file is damaged.
        OSError: there is no store or no such candidate, or the store can't be written.
    """
    from lorkd_monailabel import candidates, revisions

    department = arguments.department
    if arguments.publish:
        store = store_to_change(arguments.store)
        number = candidates.publish_candidate(store, department, arguments.publish)
        _note(store, "publish candidate", department, candidate=arguments.publish, published=number)
        print(
            f"{department}: candidate {arguments.publish} is published as revision {number}, "
            f"and {_served(store, department, number)}"
        )
    elif arguments.discard:
        store = store_to_change(arguments.store)
        candidates.discard(store, department, arguments.discard)
        _note(store, "discard candidate", department, candidate=arguments.discard)
        print(f"{department}: candidate {arguments.discard} is removed")
    else:
        found = revisions.history(opened_store(arguments.store), department)["candidates"]
        print(table(CANDIDATES, [_row(each) for each in found]) if found else f"{department} has no candidate")
    return 0


def store_to_change(folder: Path | None) -> ExpertStore:
    """Open the store that a verb changes.

    Raises:
        ValueError: none is named.
        OSError: there is none.
    """
    if folder is None:  # the shipped store is a template; changing it would change no server
        raise ValueError(f"name the store to change with --store; a server that was told none uses {SERVERS_STORE}")
    return opened_store(folder)


def _served(store: ExpertStore, department: str, number: int) -> str:
    served = store.served(department)
    if served == number:
        return "running servers use it from their next request on"
    return f"revision {served} is pinned and goes on being served"


def _note(store: ExpertStore, action: str, department: str, **what: Any) -> None:
    from lorkd_monailabel.audit import Audit

    user = os.environ.get("USER", "")
    Audit(store.folder / "audit.jsonl").record(action, user=user, client="lorkd", department=department, **what)


def _row(candidate: dict[str, Any]) -> tuple[object, ...]:
    if candidate["problem"]:
        return candidate["id"], "", "", "damaged", "", ""
    comparison = candidate["comparison"] or {}
    figures = [_figure(comparison.get(key)) for key in ("new", "current")]
    return candidate["id"], candidate["parent"], len(candidate["structures"]), *figures, candidate["date"]


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
