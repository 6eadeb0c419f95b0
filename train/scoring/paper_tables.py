"""Tables of compared models in the form of LoRKD's Tables II (departments), VI (cost) and VII (ablations)."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lorkd_monailabel.departments import department
from train.scoring.intervals import AVERAGE, LEVEL, METRICS, Estimate, Metric, Part, Resamples, Summary
from train.scoring.scores import Score
from train.scoring.tables import Cell, Table

COSTS = ("parameters", "parameters_of_one", "gflops")


@dataclass(frozen=True, eq=False)
class Run:
    """One evaluated model.

    Attributes:
        name: in the tables.
        about: what ``train.evaluate`` tells of it: ``COSTS``, ``window``, ``ranks``; what is missing stays empty.
        summaries: of each metric, over the same cases and resamples as those of all other runs.
    """

    name: str
    about: Mapping[str, Any]
    summaries: Mapping[Metric, Summary]


@dataclass(frozen=True)
class Figure:
    """One figure of one run: a line of ``tables.csv``. Metrics and differences are in percent, as in the tables.

    Attributes:
        grid: that it was measured on; empty for what has none.
        table: ``runs``, or the name of an ablation.
        run: its name.
        quantity: a metric, one of ``COSTS``, or ``rank``.
        department: id; empty for the average and for the whole model.
        modality: of a structure; empty for more than one.
        structure: canonical name; empty for more than one.
        subjects: that it was taken over.
        value: as the tables show it, unrounded.
        low: end of its interval; empty of a single subject.
        high: end of its interval.
        difference: to the reference, on the same subjects.
        difference_low: end of its interval.
        difference_high: end of its interval.
    """

    grid: str
    table: str
    run: str
    quantity: str
    department: str = ""
    modality: str = ""
    structure: str = ""
    subjects: int | None = None
    value: float | None = None
    low: float | None = None
    high: float | None = None
    difference: float | None = None
    difference_low: float | None = None
    difference_high: float | None = None


def figures_of(run: Run, reference: Run, *, table: str, grid: str) -> Iterator[Figure]:
    """Give every metric of a run on a grid."""
    for metric, summary in run.summaries.items():
        for part, estimate in summary.items():
            gain = estimate - reference.summaries[metric][part]
            numbers = (estimate.value, *estimate.interval, gain.value, *gain.interval)
            shown = (100 * number if np.isfinite(number) else None for number in numbers)
            yield Figure(grid, table, run.name, metric, *part, estimate.subjects, *shown)


def costs_of(run: Run, *, table: str) -> Iterator[Figure]:
    """Give cost and ranks of a run."""
    for name in COSTS:
        if name in run.about:
            yield Figure("", table, run.name, name, value=run.about[name])
    for name, rank in run.about.get("ranks", {}).items():
        yield Figure("", table, run.name, "rank", name, value=rank)


def summary_table(scores: Sequence[Score], resamples: Resamples, grid: str) -> Table:
    """Lay out the means of structures and departments and over departments, in percent, with their intervals."""
    dsc, nsd = (resamples.summary(scores, metric) for metric in METRICS)
    rows = [
        tuple(
            Cell(text, bold=not part.structure)
            for text in (
                f"{part.department}: {part.structure} ({part.modality})"
                if part.structure
                else part.department or "mean",
                str(estimate.subjects),
                estimate.percent(),
                nsd[part].percent() if part in nsd else "",
            )
        )
        for part, estimate in dsc.items()
    ]
    return Table(f"Grid: {grid}", ("structure", "subjects", "DSC", "NSD"), tuple(rows))


def quality_tables(runs: Sequence[Run], reference: Run, *, grid: str) -> Iterator[Table]:
    """Lay out the metrics of departments (Table II), their differences to the reference, then those of structures."""
    for metric in METRICS:
        parts = [part for part in reference.summaries[metric] if not part.structure]
        if parts:
            yield department_table(runs, metric, parts, grid=grid)
            others = [run for run in runs if run is not reference]
            if others:
                yield difference_table(others, reference, metric, parts, grid=grid)
    for metric in METRICS:
        parts = [part for part in reference.summaries[metric] if part.structure]
        if parts:
            rows = []
            for part in parts:
                estimates = [run.summaries[metric][part] for run in runs]
                name = f"{part.structure} ({part.modality})"
                rows.append((Cell(name), Cell(str(estimates[0].subjects)), *_best_in_bold(estimates)))
            heads = ("structure", "subjects", *(run.name for run in runs))
            yield Table(f"{metric.upper()} by structure, grid {grid}", heads, tuple(rows))


def department_table(runs: Sequence[Run], metric: Metric, parts: Sequence[Part], *, grid: str) -> Table:
    """Lay out a metric of departments and on average, a column for each run."""
    note = f"Percent, with {LEVEL:.0%} bootstrap intervals over subjects; best in bold."
    summary = runs[0].summaries
    without = [part.structure for part in summary["dsc"] if part.structure and part not in summary[metric]]
    if without:
        note += f" In no mean, as distances in mm are meaningless there: {', '.join(without)}."
    rows = ((Cell(part_name(part)), *_best_in_bold([run.summaries[metric][part] for run in runs])) for part in parts)
    heads = ("department", *(run.name for run in runs))
    return Table(f"{metric.upper()} by department, grid {grid}", heads, tuple(rows), note)


def difference_table(runs: Sequence[Run], reference: Run, metric: Metric, parts: Sequence[Part], *, grid: str) -> Table:
    """Lay out how much better each run is than the reference; bold where the interval leaves zero out."""
    rows = []
    for part in parts:
        gains = [run.summaries[metric][part] - reference.summaries[metric][part] for run in runs]
        ends = [[Estimate.rounded(end) for end in gain.interval] for gain in gains]
        clear = [low > 0 or high < 0 for low, high in ends]
        cells = (Cell(gain.percent(sign="+"), bold) for gain, bold in zip(gains, clear, strict=True))
        rows.append((Cell(part_name(part)), *cells))
    return Table(
        f"{metric.upper()} less that of {reference.name}, grid {grid}",
        ("department", *(run.name for run in runs)),
        tuple(rows),
        "Percentage points, paired by subject, with their intervals; bold where the interval leaves zero out.",
    )


def cost_table(title: str, runs: Sequence[Run], reference: Run, *, head: str = "model") -> Table:
    """Lay out cost, ranks and average metrics of models (Table VI), or of an ablation's values (Table VII)."""
    metrics = [metric for metric in METRICS if AVERAGE in reference.summaries[metric]]
    columns = [_best_in_bold([run.summaries[metric][AVERAGE] for run in runs]) for metric in metrics]
    rows = []
    for number, run in enumerate(runs):
        texts = (
            run.name,
            _count(run, "parameters", 1e6),
            _share(run, reference, "parameters"),
            _count(run, "parameters_of_one", 1e6),
            _count(run, "gflops"),
            _share(run, reference, "gflops"),
            ranks_text(run.about.get("ranks", {})),
        )
        rows.append((*map(Cell, texts), *(column[number] for column in columns)))
    windows = sorted({" x ".join(map(str, run.about["window"])) for run in runs if "window" in run.about})
    note = f"% of {reference.name}. Parameters of all departments together, and of the network that one department runs"
    if windows:
        note += f"; operations of a window of {' or '.join(windows)} voxels, two for a multiply-add"
    heads = (head, "M parameters", "%", "M of one", "GFLOPs", "%", "rank", *(metric.upper() for metric in metrics))
    return Table(title, heads, tuple(rows), f"{note}. DSC and NSD on average over departments.")


def ranks_text(ranks: Mapping[str, int]) -> str:
    """Write ranks of departments: ``8``, ``2 to 16``, or nothing where there are no factors."""
    least, most = min(ranks.values(), default=0), max(ranks.values(), default=0)
    if most == 0:
        return ""
    return str(most) if least == most else f"{least} to {most}"


def part_name(part: Part) -> str:
    """Name a department as it is shown, or the average over them."""
    return department(part.department).name if part.department else "Average"


def _best_in_bold(estimates: Sequence[Estimate]) -> list[Cell]:
    """Write estimates; where there are several, the highest is bold, and so is what rounds to the same."""
    rounded = [Estimate.rounded(each.value) for each in estimates]
    several = len(estimates) > 1
    return [
        Cell(each.percent(), bold=several and own == max(rounded)) for each, own in zip(estimates, rounded, strict=True)
    ]


def _count(run: Run, cost: str, unit: float = 1.0) -> str:
    return f"{run.about[cost] / unit:.2f}" if cost in run.about else ""


def _share(run: Run, reference: Run, cost: str) -> str:
    if cost not in run.about or cost not in reference.about:
        return ""
    return f"{100 * run.about[cost] / reference.about[cost]:.2f}"
