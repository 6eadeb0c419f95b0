"""What is wrong between the cases of a list, or with what was measured of one."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from statistics import median
from typing import TypeVar

from lorkd_monailabel.case_lists.lines import Finding, Line, finding
from lorkd_monailabel.case_lists.measure import Measured
from lorkd_monailabel.departments import structures

ODD_RATIO = 10.0
FEWEST_TO_COMPARE = 5

Key = TypeVar("Key", bound=Hashable)
Item = TypeVar("Item")


def parted_subjects(lines: Iterable[Line]) -> Iterator[Finding]:
    """Find subjects that are in several splits."""
    for (source, subject), group in _grouped(((line.case.source, line.case.subject), line) for line in lines):
        splits = sorted({line.case.split for line in group})
        if len(splits) > 1:
            yield Finding(
                _numbers(group),
                f"one subject is in the splits {' and '.join(splits)}, so one is measured on what the other has seen; "
                "put it into one split",
                f"subject {subject!r} of {source}",
            )


def repeated_images(cases: Iterable[Measured]) -> Iterator[Finding]:
    """Find images whose voxels come twice; a further line of a case with other structures is none."""
    for _, group in _grouped((case.content, case) for case in cases):
        lines = [each.line for each in group]
        owners = {(line.case.source, line.case.subject, line.case.split) for line in lines}
        named = [name for line in lines for name in line.case.structures]
        if len(lines) > 1 and (len(owners) > 1 or len(set(named)) < len(named)):
            subjects = ", ".join(sorted({repr(line.case.subject) for line in lines}))
            yield Finding(
                _numbers(lines), f"the same image comes {len(lines)} times (subjects {subjects}); leave one of them"
            )


def empty_labels(cases: Sequence[Measured]) -> Iterator[Finding]:
    """Find label volumes without a voxel of what they are listed for, and structures that are absent everywhere."""
    filled = [case for case in cases if any(case.millilitres.values())]
    for case in cases:
        if case not in filled:
            have = f"its values are {sorted(case.values)}" if case.values else "it is empty"
            names = ", ".join(case.millilitres)
            yield finding(case.line, f"the label volume has no voxel of {names}, {have}; correct values, or drop it")
    for name, group in _grouped((name, case) for case in filled for name in case.millilitres):
        if not any(case.millilitres[name] for case in group):
            yield Finding(
                _numbers(case.line for case in group),
                f"{name!r} has no voxel in any of the {len(group)} cases that list it; correct its values, or drop it",
            )


def unlisted_values(cases: Iterable[Measured]) -> Iterator[Finding]:
    """Find values of label volumes that no structure lists, for each source."""
    surplus = (
        ((case.line.case.source, value), case)
        for case in cases
        for value in case.values.difference(*case.line.case.structures.values())
    )
    for (source, value), group in _grouped(surplus):
        yield Finding(
            _numbers(case.line for case in group),
            f"value {value} in label volumes of {source} is no structure's, so its voxels count as background; list it "
            "under a structure if it is one",
            fault=False,
        )


def flipped_sides(cases: Iterable[Measured]) -> Iterator[Finding]:
    """Find cases whose left structures lie to the right of their right ones; a source where all do is one finding."""
    for source, group in _grouped((case.line.case.source, case) for case in cases):
        pairs = [(case, *_pairs(case)) for case in group]
        judged = [(case, flipped, kept) for case, flipped, kept in pairs if flipped or kept]
        wrong = [(case, flipped, kept) for case, flipped, kept in judged if flipped]
        if len(wrong) > 1 and len(wrong) == len(judged) and not any(kept for _, _, kept in wrong):
            yield Finding(
                _numbers(case.line for case, _, _ in wrong),
                f"left lies right of right in all {len(wrong)} cases of {source} that have both sides; swap left and "
                "right in the list, or correct the affines",
            )
            continue
        for case, flipped, kept in wrong:
            among = "swap their names in the list" if kept else "swap left and right in the list, or correct its affine"
            yield finding(
                case.line,
                f"left lies right of right in {len(flipped)} of {len(flipped) + len(kept)} pairs, such as "
                f"{flipped[0]!r}; {among}",
            )


def odd_volumes(cases: Iterable[Measured]) -> Iterator[Finding]:
    """Find structures more than ten times as large or as small as in the middle one of at least five cases."""
    present = ((name, (case, ml)) for case in cases for name, ml in case.millilitres.items() if ml)
    for name, group in _grouped(present):
        middle = median(ml for _, ml in group)
        for case, ml in group if len(group) >= FEWEST_TO_COMPARE else ():
            if not middle / ODD_RATIO <= ml <= middle * ODD_RATIO:
                yield finding(
                    case.line, f"{name!r} has {ml:.3g} ml, the median case {middle:.3g} ml; look at it", fault=False
                )


def _pairs(case: Measured) -> tuple[list[str], list[str]]:
    """Names of left structures that lie right of their right ones, and of those that don't."""
    flipped: list[str] = []
    kept: list[str] = []
    for name, place in case.rightness_mm.items():
        known = structures().get(name)
        other = case.rightness_mm.get(name.replace("left", "right", 1))
        if known is not None and known.side == "left" and other is not None:
            (flipped if place > other else kept).append(name)
    return flipped, kept


def _grouped(pairs: Iterable[tuple[Key, Item]]) -> Iterator[tuple[Key, list[Item]]]:
    groups: dict[Key, list[Item]] = {}
    for key, item in pairs:
        groups.setdefault(key, []).append(item)
    yield from groups.items()


def _numbers(lines: Iterable[Line]) -> tuple[int, ...]:
    return tuple(sorted({line.number for line in lines}))
