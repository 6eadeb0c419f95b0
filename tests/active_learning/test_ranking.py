"""Tests of lorkd_monailabel.active_learning.ranking: cases whose right order is known."""

from lorkd_monailabel.active_learning.ranking import Known, ranked

CASES = [
    Known("twin of a labelled one", 0.9, (0.1, 0.0)),
    Known("strange but certain", 0.01, (9.0, 0.0)),
    Known("strange and uncertain", 0.5, (0.0, 6.0)),
    Known("its twin", 0.49, (0.0, 6.1)),
    Known("ordinary", 0.3, (3.0, 0.0)),
]
LABELLED = [(0.0, 0.0)]


def order(strategy: str, cases: list[Known] = CASES, limit: int | None = None) -> list[str]:
    followed, found = ranked(cases, LABELLED, strategy=strategy, limit=limit)
    assert followed == strategy
    return [each.image for each in found]


def test_uncertainty() -> None:
    names = ["twin of a labelled one", "strange and uncertain", "its twin", "ordinary", "strange but certain"]
    assert order("uncertainty") == names


def test_diversity() -> None:
    assert order("diversity", limit=3) == ["strange but certain", "its twin", "ordinary"]


def test_both_together_leave_twins_and_what_is_certain_for_later() -> None:
    # 0.5 * 6; then 0.3 * 3, 0.9 * 0.1, 0.01 * 6 and 0.49 * 0.1
    names = ["strange and uncertain", "ordinary", "twin of a labelled one", "strange but certain", "its twin"]
    assert order("uncertainty_diversity") == names


def test_scores_are_told() -> None:
    first = ranked(CASES, LABELLED, strategy="uncertainty_diversity", limit=1)[1][0]
    assert (first.score, first.uncertainty, first.distance) == (3.0, 0.5, 6.0)


def test_what_is_not_scored_follows_in_natural_order() -> None:
    cases = [Known("case 10"), Known("case 9"), Known("scored", 0.0, (1.0, 1.0)), Known("seen", None, (1.0, 1.0))]
    assert order("uncertainty_diversity", cases) == ["scored", "case 9", "case 10", "seen"]
    assert order("uncertainty_diversity", cases, limit=2) == ["scored", "case 9"]


def test_without_uncertainty_diversity_stands_in() -> None:
    cases = [Known("near", None, (1.0, 0.0)), Known("far", None, (5.0, 0.0))]
    for strategy in ("uncertainty", "uncertainty_diversity"):
        followed, found = ranked(cases, LABELLED, strategy=strategy)
        assert (followed, [each.image for each in found]) == ("diversity", ["far", "near"])


def test_without_anything_the_order_of_names_stands_in() -> None:
    followed, found = ranked([Known("case 10"), Known("case 2")], LABELLED, strategy="uncertainty")
    assert (followed, [each.image for each in found]) == ("order", ["case 2", "case 10"])
    assert ranked([], [], strategy="diversity") == ("order", [])
