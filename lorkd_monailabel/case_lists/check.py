"""The check of a list of cases: every line and both volumes of each, read once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path

from lorkd_monailabel.case_lists.lines import Finding, Line, read_lines
from lorkd_monailabel.case_lists.measure import Measured, measure
from lorkd_monailabel.case_lists.rules import (
    empty_labels,
    flipped_sides,
    odd_volumes,
    parted_subjects,
    repeated_images,
    unlisted_values,
)

Measurement = tuple[Measured | None, list[Finding]]


def check(
    path: Path,
    *,
    workers: int = 1,
    progress: Callable[[Iterable[Measurement], int], Iterable[Measurement]] = lambda results, total: results,
) -> tuple[list[Line], list[Finding]]:
    """Look for all that will hurt a training.

    Args:
        path: of the list.
        workers: threads that read volumes; each holds one case in memory.
        progress: wraps the results of the cases, of which it is told the number.

    Returns:
        The lines that are cases; and the findings, faults first, in the order of the list.

    Raises:
        ValueError: the list can't be read, or the workers are less than one.
    """
    if workers < 1:
        raise ValueError(f"--workers {workers} must be at least 1")
    lines, findings = read_lines(path)
    findings += parted_subjects(lines)
    measured: list[Measured] = []
    with ThreadPoolExecutor(workers) as pool:
        for case, own in progress(pool.map(measure, lines), len(lines)):
            findings += own
            if case is not None:
                measured.append(case)
    rules = (repeated_images, empty_labels, unlisted_values, flipped_sides, odd_volumes)
    findings += chain.from_iterable(rule(measured) for rule in rules)
    return lines, sorted(findings, key=lambda each: (not each.fault, each.lines))
