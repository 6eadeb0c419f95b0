"""``lorkd experts``: what a store holds, what an expert says of itself, and the way back to an old revision."""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorkd_monailabel.commands.options import SERVERS_STORE, Subparsers, add_store, opened_store
from lorkd_monailabel.commands.tables import printable, table

if TYPE_CHECKING:
    from lorkd_monailabel.store import ExpertStore

HEADER = ("department", "revision", "revisions", "structures", "ranks", "sources", "date")
WIDTH = 100


def add_to(subparsers: Subparsers) -> None:
    """Add the command and those under it."""
    parser = subparsers.add_parser("experts", help="list, show and roll back experts", description=__doc__)
    add_store(parser)
    parser.set_defaults(run=run)
    verbs = parser.add_subparsers(metavar="show | rollback")
    shown = verbs.add_parser("show", help="print what a revision says of itself")
    shown.add_argument("department", metavar="DEPARTMENT", help="such as abdomen; base for the base")
    shown.add_argument("--revision", type=int, metavar="N", help="default: the newest")
    shown.set_defaults(run=show)
    back = verbs.add_parser("rollback", help="publish an old revision anew, as the newest")
    back.add_argument("department", metavar="DEPARTMENT")
    back.add_argument("revision", type=int, metavar="REVISION")
    back.set_defaults(run=rollback)
    for verb in (shown, back):
        # so that --store may stand before and after the verb; without a default the verb's would win over the noun's
        verb.add_argument("--store", type=Path, metavar="FOLDER", default=argparse.SUPPRESS, help="see lorkd experts")


def run(arguments: argparse.Namespace) -> int:
    """Print the departments of a store; 1 when a file is damaged.

    Raises:
        ValueError: the store holds no expert.
        OSError: there is no store.
    """
    store = opened_store(arguments.store)
    if not store.departments():
        raise ValueError(f"store {store.folder} holds no expert; train one, or name another store with --store")
    rows: list[tuple[object, ...]] = []
    problems: list[str] = []
    for department in store.departments():
        try:
            rows.append(_row(store, department))
        except ValueError as error:  # a damaged file of one department must not hide the others
            revisions = store.revisions(department)
            rows.append((department, revisions[-1], len(revisions), None, "damaged", "", ""))
            problems.append(str(error))
    print(table(HEADER, rows))
    print(f"in {store.folder}")
    for problem in problems:
        print(f"lorkd: {' '.join(problem.split())}", file=sys.stderr)
    return 1 if problems else 0


def show(arguments: argparse.Namespace) -> int:
    """Print the header of a revision.

    Raises:
        ValueError: there is no such revision, or its file is damaged.
        OSError: there is no store.
    """
    store = opened_store(arguments.store)
    header = store.header(arguments.department, arguments.revision)
    path = store.path(arguments.department, arguments.revision)
    print(f"{path} ({path.stat().st_size:,} bytes, {_date(path)})")
    for line in described(header):
        print(line)
    return 0


def rollback(arguments: argparse.Namespace) -> int:
    """Publish an old revision anew, as the newest.

    Raises:
        ValueError: no store is named, there is no such revision, it is the newest, or it is damaged.
        OSError: there is no store, or it can't be written.
    """
    if arguments.store is None:  # the shipped store is a template; changing it would change no server
        raise ValueError(f"name the store to change with --store; a server that was told none uses {SERVERS_STORE}")
    store = opened_store(arguments.store)
    expert = store.load(arguments.department, arguments.revision)
    if expert.revision == store.newest(expert.department):
        raise ValueError(f"{expert.department} revision {expert.revision} is the newest already; name an older one")
    number = store.publish(replace(expert, about={**expert.about, "copy_of": expert.revision}))
    print(
        f"{expert.department}: revision {expert.revision} is published anew as revision {number}, which is the newest "
        f"now; all revisions before it stay, and running servers use it from their next request on"
    )
    return 0


def described(header: Mapping[str, Any]) -> Iterator[str]:
    """Write a header in lines: lists wrapped, one value of all weights said once, tables indented."""
    for key, value in header.items():
        if isinstance(value, list):
            yield from _wrapped(key, ", ".join(map(str, value)))
        elif key in ("ranks", "scales"):
            yield f"{key}: {_range(value.values())} ({len(value)} weights)"
        elif isinstance(value, dict) and value:
            yield f"{key}:"
            for name, inner in value.items():
                text = inner if isinstance(inner, str) else json.dumps(inner)
                yield from (f"  {line}" for line in _wrapped(name, text))
        else:
            yield from _wrapped(key, "none" if value in ("", {}) else str(value))


def _row(store: ExpertStore, department: str) -> tuple[object, ...]:
    header = store.header(department)
    revisions = store.revisions(department)
    sources = header["about"].get("sources")
    return (
        department,
        revisions[-1],
        len(revisions),
        len(header["structures"]),
        _range(header["ranks"].values()),
        ", ".join(map(str, sources)) if isinstance(sources, list) else "-",
        _date(store.path(department)),
    )


def _range(values: Iterable[float]) -> str:
    """Give the values' extent: "8", or "4 to 16", or a dash where there is none."""
    ordered = sorted(values)
    if not ordered:
        return "-"
    return f"{ordered[0]:g}" if ordered[0] == ordered[-1] else f"{ordered[0]:g} to {ordered[-1]:g}"


def _date(path: Path) -> str:
    return datetime.fromtimestamp(path.stat().st_mtime).strftime("%Y-%m-%d %H:%M")


def _wrapped(key: str, text: str) -> list[str]:
    return textwrap.wrap(printable(f"{key}: {text}"), WIDTH, subsequent_indent="    ", break_on_hyphens=False)
