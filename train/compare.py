"""Compare evaluated models side by side: tables in the form of the paper's, and a plot.

    python -m train.compare train/configs/compare.toml

Reads what ``train.evaluate`` wrote and writes ``tables.csv`` (all figures, unrounded), ``tables.tex``,
``comparison.png`` and ``tables.md`` into ``output``. Only what every model was evaluated on counts, so that all figures
are of the same structures of the same cases.
"""

import csv
import io
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path

from lorkd_monailabel.drafts import write_whole
from train.bench.report import need_matplotlib
from train.config import parse
from train.scoring.dots import plot
from train.scoring.intervals import METRICS, Resamples
from train.scoring.paper_tables import Figure, Run, cost_table, costs_of, figures_of, quality_tables
from train.scoring.scores import Score, read_about, read_scores
from train.scoring.tables import Table, latex, markdown

RUNS = "runs"
Key = tuple[str, str]
"""Table (``RUNS`` or the name of an ablation) and name of a run."""


@dataclass(frozen=True)
class CompareConfig:
    """Tables of several evaluations.

    Attributes:
        runs: name in the tables -> output of its evaluation (with or without ``.csv``), in the order of the columns.
        output: folder to write to.
        reference: run that the others' differences are taken to; empty for the first.
        ablations: name of what was varied -> its values -> output of the evaluation.
        grids: to compare on; the plot shows the first. The paper's is 1x1x3.
        resamples: of the subjects, for the intervals.
        seed: of the resamples.
    """

    runs: dict[str, str]
    output: str
    reference: str = ""
    ablations: dict[str, dict[str, str]] = field(default_factory=dict)
    grids: list[str] = field(default_factory=lambda: ["1x1x3", "native"])
    resamples: int = 10_000
    seed: int = 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the recipe; returns the exit status."""
    config: CompareConfig = parse(CompareConfig, __doc__ or "", argv)
    try:
        print(compare(config))
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def compare(config: CompareConfig) -> str:
    """Write tables and plot; return the tables as Markdown.

    Raises:
        ValueError: a run is missing, or the runs share no score.
    """
    need_matplotlib()
    paths = paths_of(config)
    reference = RUNS, config.reference or next(iter(config.runs), "")
    if reference not in paths or not config.grids:
        raise ValueError(f"reference {reference[1]!r} must be one of runs, and grids not empty; set them in the config")
    scores = {key: read_scores(stem.with_name(f"{stem.name}.csv")) for key, stem in paths.items()}
    about = {key: read_about(stem.with_name(f"{stem.name}.json")) for key, stem in paths.items()}
    figures = [figure for key in paths for figure in costs_of(Run(key[1], about[key], {}), table=key[0])]
    tables: list[Table] = []
    notes: list[str] = []
    folder = Path(config.output)
    folder.mkdir(parents=True, exist_ok=True)
    for grid in config.grids:
        kept, note = in_common(scores, grid)
        resamples = Resamples(kept[reference], resamples=config.resamples, seed=config.seed)
        runs = {
            key: Run(key[1], about[key], {metric: resamples.summary(own, metric) for metric in METRICS})
            for key, own in kept.items()
        }
        notes.append(note)
        tables += grid_tables(runs, runs[reference], grid=grid)
        figures += [
            figure for key, run in runs.items() for figure in figures_of(run, runs[reference], table=key[0], grid=grid)
        ]
        if grid == config.grids[0]:
            plot([run for key, run in runs.items() if key[0] == RUNS], folder / "comparison.png", grid=grid)
    text = "\n\n".join([*notes, "![DSC and NSD of each department](comparison.png)", *map(markdown, tables)]) + "\n"
    write_whole(folder / "tables.csv", csv_of(figures))
    write_whole(folder / "tables.tex", "\n\n".join(map(latex, tables)) + "\n")
    write_whole(folder / "tables.md", text)
    return text


def paths_of(config: CompareConfig) -> dict[Key, Path]:
    """Give the output of the evaluation of every run, without its ending.

    Raises:
        ValueError: an ablation is called as the main table is.
    """
    if RUNS in config.ablations:
        raise ValueError(f"an ablation can't be called {RUNS!r}, as the main table is; give it the name of what varies")
    tables = {RUNS: config.runs, **config.ablations}
    return {
        (table, name): Path(path.removesuffix(".csv")) for table, own in tables.items() for name, path in own.items()
    }


def grid_tables(runs: Mapping[Key, Run], reference: Run, *, grid: str) -> Iterator[Table]:
    """Lay out everything on one grid, the ablations last."""
    by_table: dict[str, list[Run]] = {}
    for (table, _), run in runs.items():
        by_table.setdefault(table, []).append(run)
    yield from quality_tables(by_table[RUNS], reference, grid=grid)
    for table, own in by_table.items():
        title = "Cost, ranks and averages" if table == RUNS else f"Ablation of {table}"
        yield cost_table(f"{title}, grid {grid}", own, reference, head="model" if table == RUNS else table)


def in_common(scores: Mapping[Key, Sequence[Score]], grid: str) -> tuple[dict[Key, list[Score]], str]:
    """Keep what every run has on a grid; where one run has no NSD, none has. Also says how much that is.

    Raises:
        ValueError: the runs share nothing, or one has a score twice.
    """
    by_key: dict[Key, dict[tuple[str, ...], Score]] = {}
    for run, own in scores.items():
        there = [score for score in own if score.grid == grid]
        by_key[run] = {score.key: score for score in there}
        if len(by_key[run]) < len(there):
            raise ValueError(
                f"run {run[1]!r} has a structure of a case twice; give cases of a subject files of other names"
            )
    every = {key for own in by_key.values() for key in own}
    shared = sorted(set.intersection(*(set(own) for own in by_key.values())))
    if not shared:
        raise ValueError(f"the runs share no score on grid {grid}; evaluate them on the same cases and grids")
    measured = {key for key in shared if all(own[key].nsd is not None for own in by_key.values())}
    kept = {
        run: [own[key] if key in measured else replace(own[key], nsd=None) for key in shared]
        for run, own in by_key.items()
    }
    cases, subjects = {key[:3] for key in shared}, {key[:2] for key in shared}
    note = f"Grid {grid}: {len(shared)} structures of cases, {len(cases)} cases, {len(subjects)} subjects"
    left = len(every) - len(shared)
    return kept, f"{note}; {left} that not every run has are left out." if left else f"{note}."


def csv_of(figures: Sequence[Figure]) -> str:
    """Write figures as CSV; what there is not is empty."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=[column.name for column in fields(Figure)], lineterminator="\n")
    writer.writeheader()
    for figure in figures:
        writer.writerow({name: "" if value is None else value for name, value in asdict(figure).items()})
    return text.getvalue()


if __name__ == "__main__":
    raise SystemExit(main())
