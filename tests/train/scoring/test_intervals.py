"""Tests of train.scoring.intervals: means and intervals by hand, by simulation and by scipy."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from scipy.stats import bootstrap

from train.scoring.intervals import AVERAGE, Part, Resamples
from train.scoring.scores import Score


def score(
    subject: str,
    dsc: float,
    *,
    source: str = "ours",
    case: str = "a",
    structure: str = "liver",
    department: str = "abdomen",
    modality: str = "ct",
    nsd: float | None = None,
) -> Score:
    return Score(source, subject, case, department, modality, structure, "native", dsc, nsd, 1, 1)


def resampled(scores: Sequence[Score], *, resamples: int = 2000, seed: int = 0) -> Resamples:
    return Resamples(scores, resamples=resamples, seed=seed)


def test_means_by_hand() -> None:
    scores = [
        score("1", 0.5, case="a"),
        score("1", 0.7, case="b"),
        score("2", 0.9),
        score("1", 0.4, source="theirs"),  # another person of the same name
        score("1", 0.1, modality="mri"),
        score("1", 0.2, structure="spleen"),
        score("2", 0.8, department="brain", structure="brain", nsd=0.6),
    ]
    summary = resampled(scores).summary(scores, "dsc")
    liver = ((0.5 + 0.7 + 0.9) / 3 + 0.4) / 2
    abdomen = (liver + 0.1 + 0.2) / 3
    expected = {
        Part("brain", "ct", "brain"): (0.8, 1),
        Part("brain"): (0.8, 1),
        Part("abdomen", "ct", "liver"): (liver, 3),
        Part("abdomen", "mri", "liver"): (0.1, 1),
        Part("abdomen", "ct", "spleen"): (0.2, 1),
        Part("abdomen"): (abdomen, 3),
        AVERAGE: ((0.8 + abdomen) / 2, 3),
    }
    found = {part: (estimate.value, estimate.subjects) for part, estimate in summary.items()}
    assert list(found) == list(expected)
    assert found == {part: (pytest.approx(value), count) for part, (value, count) in expected.items()}


def test_what_has_no_distances_counts_in_no_mean_of_them() -> None:
    scores = [score("1", 0.5, nsd=0.4), score("2", 0.7), score("3", 0.9, department="pelvis", structure="prostate")]
    summary = resampled(scores).summary(scores, "nsd")
    assert list(summary) == [Part("abdomen", "ct", "liver"), Part("abdomen"), AVERAGE]
    assert [estimate.value for estimate in summary.values()] == pytest.approx([0.4, 0.4, 0.4])
    assert resampled(scores).summary(scores[1:], "nsd") == {}


def test_every_resample_of_two_subjects_by_hand() -> None:
    """Subjects with two scans and one: (1, 1) gives 0.6, (1, 2) and (2, 1) the mean of three scans, (2, 2) 0.9."""
    scores = [score("1", 0.5, case="a"), score("1", 0.7, case="b"), score("2", 0.9)]
    estimate = resampled(scores, resamples=4000).summary(scores, "dsc")[AVERAGE]
    shares = Counter(np.round(estimate.draws[1:], 9).tolist())
    assert {value: count / 4000 for value, count in shares.items()} == {
        0.6: pytest.approx(0.25, abs=0.03),
        0.7: pytest.approx(0.5, abs=0.03),
        0.9: pytest.approx(0.25, abs=0.03),
    }
    assert estimate.interval == pytest.approx((0.6, 0.9))
    assert estimate.percent() == "70.00 (60.00, 90.00)"


def test_one_subject_has_no_interval() -> None:
    scores = [score("1", 0.5, case="a"), score("1", 0.7, case="b")]
    estimate = resampled(scores).summary(scores, "dsc")[AVERAGE]
    assert np.isnan(estimate.interval).all()
    assert estimate.percent() == "60.00"


def test_interval_of_single_scans_is_scipys() -> None:
    values = np.random.default_rng(1).beta(8, 2, size=25)
    scores = [score(str(number), float(value)) for number, value in enumerate(values)]
    expected = bootstrap((values,), np.mean, method="percentile", n_resamples=5000, rng=np.random.default_rng(0))
    found = resampled(scores, resamples=5000).summary(scores, "dsc")[AVERAGE].interval
    assert found == pytest.approx(tuple(expected.confidence_interval), abs=0.005)


def test_a_second_scan_that_is_the_same_tells_nothing_new() -> None:
    values = np.random.default_rng(2).beta(8, 2, size=12)
    once = [score(str(number), float(value)) for number, value in enumerate(values)]
    twice = [*once, *(score(str(number), float(value), case="b") for number, value in enumerate(values))]
    intervals = [resampled(scores).summary(scores, "dsc")[AVERAGE].interval for scores in (once, twice)]
    assert intervals[0] == pytest.approx(intervals[1])


def test_departments_of_the_same_subjects_do_not_average_chance_away() -> None:
    values = np.random.default_rng(3).beta(8, 2, size=12)
    same = [
        score(str(number), float(value), department=department, structure=structure)
        for number, value in enumerate(values)
        for department, structure in (("brain", "brain"), ("abdomen", "liver"))
    ]
    summary = resampled(same).summary(same, "dsc")
    assert summary[AVERAGE].interval == pytest.approx(summary[Part("brain")].interval)
    others = [score(s.subject, s.dsc, source=s.department, department=s.department) for s in same]
    narrower = resampled(others).summary(others, "dsc")[AVERAGE].interval
    assert np.ptp(narrower) < 0.85 * np.ptp(summary[AVERAGE].interval)


def test_differences_are_paired() -> None:
    rng = np.random.default_rng(4)
    values = rng.beta(4, 2, size=15) * 0.9
    one = [score(str(number), float(value)) for number, value in enumerate(values)]
    other = [score(str(number), float(value) + 0.02) for number, value in enumerate(values)]
    resamples = resampled(one)
    better = resamples.summary(other, "dsc")[AVERAGE]
    gain = better - resamples.summary(one, "dsc")[AVERAGE]
    assert gain.interval == pytest.approx((0.02, 0.02))
    assert np.ptp(better.interval) > 0.1
    assert gain.percent(sign="+") == "+2.00 (+2.00, +2.00)"


def test_the_seed_and_the_source_alone_decide_the_draws() -> None:
    scores = [score(str(number), number / 9) for number in range(9)]
    more = [*scores, score("x", 0.5, source="theirs", structure="spleen")]
    first, again = (resampled(own).weights["ours"] for own in (scores, list(reversed(more))))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, resampled(scores, seed=1).weights["ours"])
    assert (first[1:].sum(axis=1) == 9).all()


def test_a_resample_without_the_only_subject_of_a_structure_leaves_it_out() -> None:
    scores = [score("1", 0.2), score("2", 0.2), score("1", 0.8, structure="spleen")]
    estimate = resampled(scores).summary(scores, "dsc")[AVERAGE]
    assert estimate.value == pytest.approx(0.5)
    assert set(np.round(estimate.draws[1:], 9)) == {0.2, 0.5}


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    """200 studies of 40 subjects with one to three scans each, whose scans are alike; the true mean is 0.7."""
    rng = np.random.default_rng(5)
    hits = 0
    for study in range(200):
        means = rng.normal(0.7, 0.1, size=40)
        scores = [
            score(str(who), float(mean + rng.normal(0, 0.03)), case=str(scan))
            for who, mean in enumerate(means)
            for scan in range(1 + who % 3)
        ]
        low, high = resampled(scores, resamples=300, seed=study).summary(scores, "dsc")[AVERAGE].interval
        hits += low <= 0.7 <= high
    assert 0.89 <= hits / 200 <= 0.98
