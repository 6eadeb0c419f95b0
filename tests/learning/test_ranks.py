"""Tests of lorkd_monailabel.learning.ranks."""

import math
from dataclasses import FrozenInstanceError
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorkd_monailabel.learning.ranks import (
    ROUNDINGS,
    RankChoice,
    RankRule,
    check_rank,
    choose_ranks,
    needs_losses,
    ranks_by_loss_reduction,
    round_even,
)

RELEASED = {"nano": (12, 10, 10, 4, 8, 8, 12, 2), "pro": (4, 4, 4, 4, 4, 16, 12, 12)}
WIDE = {"least": 2, "most": 1000}


def losses_of(*reductions: float, start: float = 1.0) -> dict[str, tuple[float, float]]:
    return {str(number): (start, start - reduction) for number, reduction in enumerate(reductions)}


def ranks_of(*reductions: float, rank: int = 8, **settings: object) -> list[int]:
    choices = ranks_by_loss_reduction(losses_of(*reductions), rank=rank, **settings)
    return [choice.rank for choice in choices.values()]


def test_by_hand() -> None:
    # Reductions 0.1, 0.2, 0.3: mean 0.2, ratios 1/2, 1, 3/2; times r = 8: 2, 8, 18.
    losses = {"brain": (1.0, 0.9), "spine": (0.8, 0.6), "thorax": (2.0, 1.7)}
    brain, spine, thorax = ranks_by_loss_reduction(losses, rank=8).values()
    assert (brain.before, brain.after, brain.samples) == (1.0, 0.9, None)
    assert [own.reduction for own in (brain, spine, thorax)] == pytest.approx([0.1, 0.2, 0.3])
    assert [own.ratio for own in (brain, spine, thorax)] == pytest.approx([0.5, 1.0, 1.5])
    assert [own.value for own in (brain, spine, thorax)] == pytest.approx([2, 8, 18])
    assert [own.rounded for own in (brain, spine, thorax)] == [2, 8, 18]
    assert [(own.rank, own.bound) for own in (brain, spine, thorax)] == [(2, None), (8, None), (16, "most")]
    assert {own.reason for own in (brain, spine, thorax)} == {"loss_reduction"}
    assert ranks_by_loss_reduction({}, rank=8) == {}
    with pytest.raises(FrozenInstanceError):
        brain.rank = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("value", "floor", "nearest"),
    [(0, 0, 0), (0.9, 0, 0), (1, 0, 2), (1.9, 0, 2), (2, 2, 2), (2.9, 2, 2), (3, 2, 4), (7.1, 6, 8), (16, 16, 16)],
)
def test_rounding(value: float, floor: int, nearest: int) -> None:
    assert (round_even(value), round_even(value, "nearest_even")) == (floor, nearest)
    assert round_even(value - 1e-13 if value else 0.0) == floor  # the last bits of a float cost no rank


def interval(rank: int, rounding: str) -> tuple[float, float]:
    """Least and greatest value of Eq. 2 that is rounded to a rank, found by trying."""
    values = [number / 100 for number in range(2000) if round_even(number / 100, rounding) == rank]
    return values[0], values[-1] + 0.01


@pytest.mark.parametrize(
    ("network", "rounding", "feasible", "low", "high"),
    [
        ("pro", "floor_even", True, 7.40, 8.48),
        ("pro", "nearest_even", False, 6.78, 7.96),
        ("nano", "floor_even", True, 7.89, 8.90),
    ],
)
def test_which_rounding_explains_the_released_ranks(
    network: str, rounding: str, feasible: bool, low: float, high: float
) -> None:
    # The ratios of eight departments sum to 8, and a ratio is the root of the value over r = 8.
    bounds = [interval(rank, rounding) for rank in RELEASED[network]]
    least, greatest = (sum(math.sqrt(values[end] / 8) for values in bounds) for end in (0, 1))
    assert (least, greatest) == pytest.approx((low, high), abs=0.005)
    assert (least <= 8 < greatest) == feasible
    if feasible:  # ratios so far into their intervals that they sum to 8 give the very ranks
        part = (8 - least) / (greatest - least)
        roots = [[math.sqrt(value / 8) for value in values] for values in bounds]
        ratios = [first + part * (last - first) for first, last in roots]
        assert tuple(ranks_of(*ratios, rounding=rounding, **WIDE)) == RELEASED[network]


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_equal_reductions_make_equal_ranks(rounding: str) -> None:
    assert ranks_of(*[0.1] * 7, rounding=rounding) == [8] * 7
    # The same reduction from other losses differs in its last bits, which must not make 6 of 7.999…
    losses = {str(number): (0.3 + number / 7, number / 7) for number in range(8)}
    assert len({before - after for before, after in losses.values()}) > 1
    assert {own.rank for own in ranks_by_loss_reduction(losses, rank=8, rounding=rounding).values()} == {8}
    assert ranks_of(1e-320, 1e-320) == [8, 8]


def test_a_loss_that_rose_gets_the_least_and_never_the_square() -> None:
    choices = ranks_by_loss_reduction(losses_of(0.2, -0.9, 0.0, 0.2), rank=4, least=4, most=100)
    # The rise counts as 0 in the mean: (0.2 + 0 + 0 + 0.2) / 4 = 0.1, ratio 2, 4 * 4 = 16.
    assert [own.rank for own in choices.values()] == [16, 4, 4, 16]
    rose = choices["1"]
    assert (rose.reduction, rose.ratio, rose.value, rose.rounded, rose.bound) == (pytest.approx(-0.9), 0, 0, 0, "least")
    # With a large rise the plain mean would be negative, and every square positive.
    assert ranks_of(0.1, -5.0) == [16, 2]


def test_where_nothing_was_learned_every_department_gets_r() -> None:
    choices = ranks_by_loss_reduction(losses_of(-0.1, 0.0, -2.0), rank=20)
    assert [own.rank for own in choices.values()] == [20, 20, 20]
    assert {own.reason for own in choices.values()} == {"nothing_learned"}
    assert {(own.ratio, own.value, own.rounded, own.bound) for own in choices.values()} == {(None,) * 4}


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_loss_that_is_not_finite_is_refused_by_name(loss: float, moment: str) -> None:
    losses = {"brain": (1.0, 0.5), "spine": (loss, 0.5) if moment == "before" else (0.5, loss)}
    sentence = rf"^the loss of spine {moment} the warm-up is {loss}, and a rank needs a finite one; set .*ranks\.spine"
    with pytest.raises(ValueError, match=sentence):
        ranks_by_loss_reduction(losses, rank=8)
    # A department whose rank is decided can do without.
    choices = choose_ranks(RankRule("loss_reduction", given={"spine": 6}), ["brain", "spine"], losses=losses)
    assert choices == {
        "brain": RankChoice(4, "loss_reduction", 1.0, 0.5, 0.5, 1.0, 4.0, 4),
        "spine": RankChoice(6, "given"),
    }


@given(
    reductions=st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=12),
    rank=st.integers(1, 32),
    bounds=st.lists(st.integers(1, 40), min_size=2, max_size=2).map(sorted),
    rounding=st.sampled_from(ROUNDINGS),
)
def test_ranks_are_even_bounded_and_follow_the_reduction(
    reductions: list[float], rank: int, bounds: list[int], rounding: str
) -> None:
    least, most = (2 * bound for bound in bounds)
    choices = ranks_by_loss_reduction(
        losses_of(*reductions, start=0.0), rank=rank, rounding=rounding, least=least, most=most
    )
    assert len(choices) == len(reductions)
    if max(reductions) <= 0:
        assert {own.rank for own in choices.values()} == {rank}
        return
    assert all(own.rank % 2 == 0 and least <= own.rank <= most for own in choices.values())
    assert all(own.rank == least for own, by in zip(choices.values(), reductions, strict=True) if by <= 0)
    ordered = sorted(zip(reductions, choices.values(), strict=True), key=lambda pair: pair[0])
    assert all(first.rank <= second.rank for (_, first), (_, second) in pairwise(ordered))
    assert sum(own.ratio or 0 for own in choices.values()) == pytest.approx(len(choices))
    allowed = 2 if rounding == "floor_even" else 1
    for own in choices.values():
        assert own.value is not None
        assert own.rounded is not None
        assert -1e-6 <= own.value - own.rounded + (allowed if rounding == "nearest_even" else 0) <= 2 + 1e-6


def test_the_config_and_the_start_win_over_the_rule() -> None:
    departments = ["abdomen", "brain", "spine", "thorax"]
    rule = RankRule("equal", rank=6, given={"brain": 1, "spine": 40})
    choices = choose_ranks(rule, departments, kept={"thorax": 3})
    assert {name: (own.rank, own.reason) for name, own in choices.items()} == {
        "abdomen": (6, "equal"),
        "brain": (1, "given"),
        "spine": (40, "given"),
        "thorax": (3, "kept"),
    }
    measured = choose_ranks(
        RankRule("loss_reduction", rank=8, given={"2": 40}), ["0", "1", "2"], losses=losses_of(0.1, 0.2, 0.3)
    )
    assert [own.rank for own in measured.values()] == [2, 8, 40]
    assert (measured["2"].reason, measured["2"].bound, measured["2"].value) == ("given", None, pytest.approx(18))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"name": "best"}, "rank_rule 'best' is unknown; use one of equal, loss_reduction"),
        ({"rounding": "even"}, "rounding 'even' is unknown; use one of floor_even, nearest_even"),
        ({"rank": 0}, "rank 0 must be at least 1; set rank in the config"),
        ({"least": 0}, "least_rank 0 and most_rank 16 must be 1 or more and in this order; set them so"),
        ({"least": 17}, "least_rank 17 and most_rank 16 must be 1 or more and in this order; set them so"),
    ],
)
def test_a_rule_that_makes_no_sense_is_one_sentence(settings: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{sentence}$"):
        RankRule(**settings)  # type: ignore[arg-type]


def test_bad_arguments_of_the_equation_are_one_sentence() -> None:
    with pytest.raises(ValueError, match="rounding 'up' is unknown"):
        ranks_of(0.1, rounding="up")
    with pytest.raises(ValueError, match="rounding 'up' is unknown"):
        round_even(1.0, "up")
    with pytest.raises(ValueError, match="least_rank 4 and most_rank 2"):
        ranks_of(0.1, least=4, most=2)


def test_the_warm_up_is_measured_where_a_department_has_no_rank_yet() -> None:
    def needs(name: str, *, given: dict[str, int] | None = None, kept: dict[str, int] | None = None) -> bool:
        rule = RankRule(name, given=given or {})
        return needs_losses(rule, ["brain", "spine"], kept=kept or {}, limit=16, warmup_steps=1)

    assert not needs("equal")
    assert needs("loss_reduction")
    assert needs("loss_reduction", given={"brain": 3})
    assert not needs("loss_reduction", given={"brain": 3}, kept={"spine": 2})
    assert not needs("loss_reduction", kept={"brain": 3, "spine": 2})
    assert not needs("equal", given={"brain": 3}, kept={"brain": 3})


@pytest.mark.parametrize(
    ("rule", "warmup_steps", "sentence"),
    [
        (RankRule(given={"liver": 4}), 1, r"^ranks\.liver is of no department of the run; it has brain, spine$"),
        (
            RankRule(given={"brain": 500}),
            1,
            r"^rank 500 of brain must be in 1\.\.12, .*; set ranks\.brain in the config",
        ),
        (RankRule(given={"brain": 0}), 1, r"^rank 0 of brain must be in 1\.\.12, "),
        (RankRule(rank=13), 1, r"^rank 13 of brain must be in 1\.\.12, .*, or rank for all departments$"),
        (RankRule(given={"spine": 4}), 1, r"^ranks\.spine is 4, but the expert .* has rank 2; leave ranks\.spine out"),
        (RankRule("loss_reduction"), 1, r"^most_rank 16 is more than the largest layer can use; set it to 12 or less$"),
        (RankRule("loss_reduction", most=12), 0, r"^rank_rule loss_reduction needs a warm-up, not 0 steps; set warmup"),
    ],
)
def test_what_could_not_be_done_after_the_warm_up_is_refused_before(
    rule: RankRule, warmup_steps: int, sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        needs_losses(rule, ["brain", "spine"], kept={"spine": 2}, limit=12, warmup_steps=warmup_steps)


def test_ranks_up_to_the_limit_are_taken() -> None:
    for rank in (1, 12):
        check_rank("brain", rank, limit=12)
