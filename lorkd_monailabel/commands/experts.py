"""``lorkd experts``: what a store holds and an expert says of itself, which revision is served, smaller ranks."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorkd_monailabel.commands.options import Subparsers, add_store, opened_store
from lorkd_monailabel.commands.revisions import add_verbs, store_to_change
from lorkd_monailabel.commands.tables import printable, table

if TYPE_CHECKING:
    from torch import Tensor

    from lorkd_monailabel.experts import Expert
    from lorkd_monailabel.store import ExpertStore

HEADER = ("department", "revision", "revisions", "structures", "ranks", "sources", "date")
CURVE = ("rank", "of layers", "parameters", "energy kept %", "worst layer %", "worst layer")
WIDTH = 100


def add_to(subparsers: Subparsers) -> None:
    """Add the command and those under it."""
    parser = subparsers.add_parser("experts", help="list, show, roll back and truncate experts", description=__doc__)
    add_store(parser)
    parser.set_defaults(run=run)
    verbs = parser.add_subparsers(metavar="show | rollback | pin | unpin | diff | candidates | truncate")
    shown = verbs.add_parser("show", help="print what a revision says of itself")
    shown.add_argument("department", metavar="DEPARTMENT", help="such as abdomen; base for the base")
    shown.add_argument("--revision", type=int, metavar="N", help="default: the newest")
    shown.set_defaults(run=show)
    cut = verbs.add_parser("truncate", help="publish an expert of a smaller rank, made of the newest without training")
    cut.add_argument("department", metavar="DEPARTMENT")
    cut.add_argument("rank", type=int, metavar="RANK", nargs="?", help="smaller than the expert's own")
    cut.add_argument("--revision", type=int, metavar="N", help="to truncate (default: the newest)")
    cut.add_argument("--dry-run", action="store_true", help="only print what each rank would keep")
    cut.set_defaults(run=truncate)
    for verb in (shown, *add_verbs(verbs), cut):
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
    for department in store.departments():
        if store.served(department) != store.newest(department):
            print(f"{department}: revision {store.served(department)} is pinned and served")
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


def truncate(arguments: argparse.Namespace) -> int:
    """Publish an expert of a smaller rank as the newest, or print what each rank would keep.

    Raises:
        ValueError: no store is named, there is no such revision, its rank is not larger, or it is damaged.
        OSError: there is no store, or it can't be written.
    """
    # Imported here, for torch takes seconds and the other verbs' --help needs none.
    from lorkd_monailabel import truncation

    if arguments.rank is None and not arguments.dry_run:
        raise ValueError("name the RANK to truncate to; --dry-run shows what each would keep")
    store = opened_store(arguments.store) if arguments.dry_run else store_to_change(arguments.store)
    expert = store.load(arguments.department, arguments.revision)
    truncation.truncated_ranks(expert, expert.rank if arguments.rank is None else arguments.rank)
    energy = truncation.kept_energy(expert)
    if arguments.dry_run:
        ranks = range(1, expert.rank + 1) if arguments.rank is None else (arguments.rank,)
        print(table(CURVE, [_curve_row(expert, energy, rank) for rank in reversed(ranks)]))
        print(f"of {expert.department} revision {expert.revision} in {store.folder}; nothing is published")
        return 0
    if arguments.rank == expert.rank:
        raise ValueError(
            f"{expert.department} revision {expert.revision} is of rank {expert.rank} already; name a smaller one"
        )
    smaller = truncation.truncate(expert, arguments.rank)
    _, _, parameters, kept, worst, layer = _curve_row(expert, energy, arguments.rank)
    number = store.publish(smaller)
    print(
        f"{expert.department}: revision {expert.revision} of rank {_ranks(expert)} is published as revision {number} "
        f"of rank {_ranks(smaller)}, which is the newest now"
    )
    print(f"parameters: {parameters:,}, before {_parameters(expert, expert.ranks):,}")
    print(f"energy of the delta kept: {kept:.2f} %, in the worst layer {worst:.2f} % ({printable(str(layer))})")
    way_back = f"lorkd experts rollback {expert.department} {expert.revision} --store {shlex.quote(str(store.folder))}"
    print(
        "its metrics must be measured anew (python -m train.evaluate); running servers use it from their next request "
        f"on, and `{way_back}` takes it back"
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


def _curve_row(expert: Expert, energy: Mapping[str, Tensor], rank: int) -> tuple[Any, ...]:
    """Say what a rank keeps of an expert; a layer without a delta has nothing to lose."""
    from lorkd_monailabel.truncation import truncated_ranks

    ranks = truncated_ranks(expert, rank)
    kept = {name: float(each[ranks[name]]) for name, each in energy.items()}
    whole = {name: float(each[-1]) for name, each in energy.items()}
    shares = {name: 100 * (kept[name] / whole[name]) if whole[name] else 100.0 for name in energy}
    share = 100 * (sum(kept.values()) / sum(whole.values())) if any(whole.values()) else 100.0
    worst = min(shares, key=shares.__getitem__)
    layer = worst if shares[worst] < 100 else "-"
    return rank, _range(ranks.values()), _parameters(expert, ranks), share, shares[worst], layer


def _parameters(expert: Expert, ranks: Mapping[str, int]) -> int:
    """Count an expert's numbers with other ranks of its layers; the norms stay."""
    factors = sum(
        (a.numel() + b.numel()) // expert.ranks[name] * ranks[name] for name, (a, b) in expert.factors.items()
    )
    return factors + sum(norm.numel() for norm in expert.norms.values())


def _ranks(expert: Expert) -> str:
    extent = _range(expert.ranks.values())
    return extent if extent == str(expert.rank) else f"{expert.rank} ({extent} by layer)"


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
