"""Means over cases, structures and departments as SAT and LoRKD take them, and how far chance may have moved them.

A structure counts once for each modality, as in the paper's 429 classes. Its mean is taken over the cases of each
source, then over sources; a department's over its structures; the average over departments (SAT's evaluation; LoRKD,
Table II, "Avg").

Intervals are those of the percentile bootstrap (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter
13) over subjects: each source's subjects are drawn with replacement, as many as there are, and a subject brings all of
its cases and structures, in every department (resampling of clusters within strata; Davison and Hinkley, Bootstrap
Methods and their Application, 1997, sections 3.2 and 3.8). ``scipy.stats.bootstrap`` draws single values or pairs, not
such clusters. Two models are compared on the same draws, so that the difference is a paired one.

Sources and structures are taken as given: the intervals say nothing of another hospital. Those of few subjects (under
about ten) are too narrow, as percentiles of so few values are.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple
from zlib import crc32

import numpy as np

from lorkd_monailabel.departments import departments
from train.scoring.scores import Score

Metric = Literal["dsc", "nsd"]
METRICS: tuple[Metric, ...] = ("dsc", "nsd")
LEVEL = 0.95


class Part(NamedTuple):
    """What a mean is taken over: a structure in a modality; with these empty, a department; all empty, departments."""

    department: str = ""
    modality: str = ""
    structure: str = ""


AVERAGE = Part()


@dataclass(frozen=True, eq=False)
class Estimate:
    """A statistic of the data and of its resamples.

    Attributes:
        draws: ``(1 + resamples,)``; the first is that of the data. NaN where a resample has no subject for it.
        subjects: that it was taken over.
    """

    draws: np.ndarray
    subjects: int

    @property
    def value(self) -> float:
        """Of the data."""
        return float(self.draws[0])

    @property
    def interval(self) -> tuple[float, float]:
        """Low and high end at ``LEVEL``; NaN of fewer than two subjects or without resamples."""
        drawn = self.draws[1:][np.isfinite(self.draws[1:])]
        if self.subjects < 2 or not len(drawn):
            return float("nan"), float("nan")
        low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        return float(low), float(high)

    def percent(self, *, sign: str = "") -> str:
        """Write value and interval in percent: ``80.05 (78.90, 81.20)``; a sign of ``+`` marks gains too."""
        value, low, high = (f"{self.rounded(each):{sign}.2f}" for each in (self.value, *self.interval))
        return value if np.isnan(self.interval).any() else f"{value} ({low}, {high})"

    @staticmethod
    def rounded(share: float) -> float:
        """Give a share in percent as tables show it, and never -0."""
        return round(100 * share, 2) + 0.0

    def __sub__(self, other: "Estimate") -> "Estimate":
        """Give the paired difference of two estimates of the same subjects and resamples."""
        return Estimate(self.draws - other.draws, min(self.subjects, other.subjects))


Summary = dict[Part, Estimate]
"""Of one metric of one model on one grid: each department after its structures, in display order; ``AVERAGE`` last.

A department without the metric is not there; without any score that has it, nothing is.
"""


class Resamples:
    """How often each subject is drawn in each resample; the same for all models evaluated on the same subjects.

    Args:
        scores: whose subjects to draw.
        resamples: how many.
        seed: of the draws; each source has its own stream, so one source more changes no other's.
    """

    def __init__(self, scores: Iterable[Score], *, resamples: int, seed: int) -> None:
        found: dict[str, set[str]] = {}
        for score in scores:
            found.setdefault(score.source, set()).add(score.subject)
        self.columns = {source: {who: i for i, who in enumerate(sorted(own))} for source, own in found.items()}
        self.weights = {}
        for source, own in self.columns.items():
            rng = np.random.default_rng([seed, crc32(source.encode())])
            drawn = rng.multinomial(len(own), np.full(len(own), 1 / len(own)), size=resamples)
            self.weights[source] = np.vstack([np.ones(len(own)), drawn])

    def summary(self, scores: Sequence[Score], metric: Metric) -> Summary:
        """Take the means of one metric; scores without it count nowhere."""
        known = [score for score in scores if getattr(score, metric) is not None]
        if not known:
            return {}
        summary: Summary = {}
        means = []
        for department in departments():
            own = [score for score in known if score.department == department.id]
            parts = sorted({Part(*score.key[3:6]) for score in own}, key=lambda part: (part.structure, part.modality))
            for part in parts:
                summary[part] = self._structure([score for score in own if score.key[3:6] == part], metric)
            if parts:
                means.append(_mean([summary[part].draws for part in parts]))
                summary[Part(department.id)] = Estimate(means[-1], _subjects(own))
        return {**summary, AVERAGE: Estimate(_mean(means), _subjects(known))}

    def _structure(self, scores: Sequence[Score], metric: Metric) -> Estimate:
        """Average the cases of each source, then sources, in the data and in every resample."""
        means = []
        for source in dict.fromkeys(score.source for score in scores):
            columns = self.columns[source]
            totals, counts = np.zeros(len(columns)), np.zeros(len(columns))
            for score in scores:
                if score.source == source:
                    totals[columns[score.subject]] += getattr(score, metric)
                    counts[columns[score.subject]] += 1
            with np.errstate(invalid="ignore"):
                means.append((self.weights[source] @ totals) / (self.weights[source] @ counts))
        return Estimate(_mean(means), _subjects(scores))


def _mean(rows: Sequence[np.ndarray]) -> np.ndarray:
    """Average rows, column by column; a resample that lacks one of them is averaged over the others."""
    stack = np.stack(rows)
    there = np.isfinite(stack)
    with np.errstate(invalid="ignore"):
        return np.where(there, stack, 0).sum(axis=0) / there.sum(axis=0)


def _subjects(scores: Iterable[Score]) -> int:
    return len({(score.source, score.subject) for score in scores})
