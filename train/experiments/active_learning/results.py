"""What came out: validation Dice against the number of labelled cases, for each strategy, as tables and a picture.

Intervals are Student's t intervals over seeds: they say how far the choice of the first cases and the course of the
training moved the mean, not how another department would do. Differences from ``random`` are taken seed by seed.
"""

import csv
import io
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

import numpy as np

from lorkd_monailabel.drafts import draft_of, write_whole
from train.experiments.active_learning.rounds import RANDOM, Round
from train.scoring.tables import Cell, Table, markdown

LEVEL = 0.95
COLORS = {
    RANDOM: "#777777",
    "uncertainty": "#cc3355",
    "diversity": "#4477aa",
    "uncertainty_diversity": "#228833",
}


@dataclass(frozen=True)
class Mean:
    """A mean over seeds.

    Attributes:
        value: of the mean.
        half: of the interval's width; NaN for a single seed.
        seeds: how many.
    """

    value: float
    half: float
    seeds: int

    def percent(self, *, sign: str = "") -> str:
        """Write it in percent: ``71.2 ± 1.3``."""
        value = f"{100 * self.value:{sign}.1f}"
        return value if np.isnan(self.half) else f"{value} ± {100 * self.half:.1f}"


def mean_of(values: Sequence[float]) -> Mean:
    """Take the mean of at least one value, with its interval."""
    if len(values) < 2:
        return Mean(float(values[0]), float("nan"), len(values))
    from scipy.stats import t

    error = float(np.std(values, ddof=1)) / len(values) ** 0.5
    return Mean(float(np.mean(values)), float(t.ppf((1 + LEVEL) / 2, len(values) - 1)) * error, len(values))


def runs(rounds: Sequence[Round], department: str, strategy: str) -> dict[int, dict[int, float]]:
    """Give seed -> labelled cases -> Dice, of a department and a strategy."""
    found: dict[int, dict[int, float]] = {}
    for each in sorted(rounds, key=lambda each: (each.seed, each.cases)):
        if (each.department, each.strategy) == (department, strategy):
            found.setdefault(each.seed, {})[each.cases] = each.dice
    return found


def curves(rounds: Sequence[Round], department: str) -> dict[str, dict[int, Mean]]:
    """Give strategy -> labelled cases -> Dice of a department."""
    own = [each for each in rounds if each.department == department]
    found: dict[str, dict[int, Mean]] = {}
    for strategy in dict.fromkeys(each.strategy for each in own):
        counts = sorted({each.cases for each in own if each.strategy == strategy})
        found[strategy] = {
            count: mean_of([each.dice for each in own if (each.strategy, each.cases) == (strategy, count)])
            for count in counts
        }
    return found


def gain(rounds: Sequence[Round], department: str, strategy: str) -> Mean | None:
    """Give the mean Dice over what ``random`` has, over all counts after the first; None where none is shared."""
    dice = {(each.strategy, each.seed, each.cases): each.dice for each in rounds if each.department == department}
    counts = sorted({cases for _, _, cases in dice})[1:]
    gains = []
    for seed in sorted({seed for _, seed, _ in dice}):
        keys = [(seed, count) for count in counts if {(strategy, seed, count), (RANDOM, seed, count)} <= dice.keys()]
        if keys:
            gains.append(float(np.mean([dice[strategy, *key] - dice[RANDOM, *key] for key in keys])))
    return mean_of(gains) if gains else None


def cases_needed(curve: dict[int, Mean], wanted: float) -> float | None:
    """Give the cases at which a curve first reaches a Dice, between two counts by a straight line; None for never."""
    before: tuple[int, float] | None = None
    for count, mean in sorted(curve.items()):
        if mean.value >= wanted:
            if before is None:
                return float(count)
            return before[0] + (count - before[0]) * (wanted - before[1]) / (mean.value - before[1])
        before = count, mean.value
    return None


def tables(rounds: Sequence[Round]) -> list[Table]:
    """Lay out a table for each department."""
    found = []
    for department in dict.fromkeys(each.department for each in rounds):
        own = curves(rounds, department)
        counts = sorted({count for curve in own.values() for count in curve})
        rows = []
        for strategy, curve in own.items():
            cells = [strategy, *(curve[count].percent() if count in curve else "" for count in counts)]
            rows.append(tuple(map(Cell, [*cells, *_against_random(rounds, department, strategy)])))
        heads = (
            "strategy",
            *(f"{count} cases" for count in counts),
            "cases for random's last Dice",
            "gain over random",
        )
        seeds = max(mean.seeds for curve in own.values() for mean in curve.values())
        note = (
            f"Dice in percent on the validation cases, mean over {seeds} seeds ± half of the 95 % t interval; the gain "
            "is the mean over all counts after the first, seed by seed."
        )
        found.append(Table(department, heads, tuple(rows), note))
    return found


def _against_random(rounds: Sequence[Round], department: str, strategy: str) -> tuple[str, str]:
    """Give the cases that a strategy needs for the last Dice of ``random``, and its gain over it."""
    own = curves(rounds, department)
    if RANDOM not in own:
        return "", ""
    needed = cases_needed(own[strategy], own[RANDOM][max(own[RANDOM])].value)
    gained = gain(rounds, department, strategy) if strategy != RANDOM else None
    return "never" if needed is None else f"{needed:.1f}", gained.percent(sign="+") if gained else ""


def write_results(rounds: Sequence[Round], folder: Path) -> None:
    """Write ``rounds.csv``, ``tables.md`` and ``curves.png``, each whole or not at all."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([field.name for field in fields(Round)])
    writer.writerows(astuple(each) for each in rounds)
    write_whole(folder / "rounds.csv", text.getvalue())
    write_whole(folder / "tables.md", "\n\n".join(map(markdown, tables(rounds))) + "\n")
    with draft_of(folder / "curves.png") as draft:
        draft.write_bytes(picture(rounds))


def picture(rounds: Sequence[Round]) -> bytes:
    """Draw a panel for each department, as PNG: means over the seeds, and each seed's own curve as a thin line."""
    from matplotlib.figure import Figure

    departments = list(dict.fromkeys(each.department for each in rounds))
    figure = Figure(figsize=(4.6 * len(departments), 3.6), layout="constrained")
    for axis, department in zip(figure.subplots(1, len(departments), squeeze=False)[0], departments, strict=True):
        for strategy, curve in curves(rounds, department).items():
            color = COLORS.get(strategy, "#222222")
            for run in runs(rounds, department, strategy).values():
                axis.plot(list(run), [100 * dice for dice in run.values()], color=color, linewidth=0.7, alpha=0.4)
            means = {count: 100 * curve[count].value for count in sorted(curve)}
            label = strategy.replace("_", " + ")
            axis.plot(list(means), list(means.values()), marker="o", markersize=3, color=color, label=label)
        axis.set_title(department, loc="left", fontsize=10)
        axis.set_xlabel("labelled cases", fontsize=9)
        axis.set_ylabel("Dice (%), validation", fontsize=9)
        axis.locator_params(axis="x", integer=True)
        axis.grid(color="#dddddd", linewidth=0.6)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(fontsize=8, frameon=False)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=120, metadata={"Software": None})
    return picture.getvalue()
