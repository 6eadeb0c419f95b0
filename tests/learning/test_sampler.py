"""Tests of lorkd_monailabel.learning.sampler."""

import time
from collections import Counter
from itertools import islice

import pytest

from lorkd_monailabel.learning.sampler import ROUND, ShareOfSamples, department_at


@pytest.mark.parametrize(
    ("weights", "counts"),
    [
        ({"a": 1, "b": 1, "c": 2}, {"a": 16, "b": 16, "c": 32}),
        ({"a": 1, "b": 1, "c": 1}, {"a": 22, "b": 21, "c": 21}),  # 21.33 each: the one that is left goes to the first
        ({"a": 0.5, "b": 0.3, "c": 0.2}, {"a": 32, "b": 19, "c": 13}),  # 32, 19.2, 12.8
        ({"a": 495, "b": 305, "c": 200}, {"a": 32, "b": 19, "c": 13}),  # 31.68, 19.52, 12.8
        ({"a": 3}, {"a": 64}),
        ({"a": 1, "b": 0}, {"a": 64}),
        ({"a": 1000, "b": 1}, {"a": 64, "b": 1}),  # 63.9 and 0.06, but none is left out
    ],
)
def test_every_round_has_the_shares_of_the_weights(weights: dict[str, float], counts: dict[str, int]) -> None:
    length = sum(counts.values())
    for number in range(3):
        names = [department_at(index, weights, seed=5) for index in range(number * length, (number + 1) * length)]
        assert Counter(names) == counts


def test_more_departments_than_a_round_holds_all_have_their_turn() -> None:
    weights = {f"{number:03d}": 1.0 for number in range(ROUND + 10)}
    assert {department_at(index, weights, seed=0) for index in range(len(weights))} == set(weights)


def test_order_is_repeatable_random_and_of_the_seed() -> None:
    weights = {"a": 1.0, "b": 1.0}

    def order(seed: int, first: int = 0) -> list[str]:
        return [department_at(index, weights, seed=seed) for index in range(first, first + ROUND)]

    assert order(1) == order(1)
    assert len({tuple(order(seed, first)) for seed in (1, 2, 3) for first in (0, ROUND)}) == 6
    assert [department_at(index, dict(reversed(weights.items())), seed=1) for index in range(ROUND)] == order(1)
    assert 1 < sum(one != other for one, other in zip(order(1), order(1)[1:], strict=False)) < ROUND - 1


def test_processes_share_the_indices() -> None:
    alone = list(ShareOfSamples(3, 20))
    assert alone == list(range(3, 20))
    shares = [ShareOfSamples(3, 20, rank=rank, world=3) for rank in range(3)]
    assert list(shares[1]) == [4, 7, 10, 13, 16, 19]
    assert sorted(index for share in shares for index in share) == alone
    assert [len(share) for share in shares] == [6, 6, 5]


@pytest.mark.parametrize("world", [1, 64])
def test_a_long_run_on_many_processes_resumed_in_the_middle_shows_every_index_once(world: int) -> None:
    batch, steps, stopped = 64, 1000, 437
    first = [ShareOfSamples(0, steps * batch, rank=rank, world=world) for rank in range(world)]
    second = [ShareOfSamples(stopped * batch, steps * batch, rank=rank, world=world) for rank in range(world)]
    before = [index for share in first for index in islice(share, stopped * batch // world)]
    after = [index for share in second for index in share]
    assert sorted(before + after) == list(range(steps * batch))
    assert {len(share) for share in second} == {(steps - stopped) * batch // world}


def test_neither_a_late_start_nor_many_processes_cost_more() -> None:
    """A share and a department cost the same at the first index as at the ten to the twelfth."""

    def cost(start: int, world: int) -> float:
        began = time.perf_counter()
        for number in range(16):
            share = ShareOfSamples(start, start + 10**9 * world, rank=number % world, world=world)
            assert len(share) == 10**9
            for index in islice(share, 4):
                assert department_at(index, {"a": 1.0, "b": 2.0}, seed=0) in "ab"
        return time.perf_counter() - began

    early, late = (min(cost(*at) for _ in range(3)) for at in ((0, 1), (10**12, 4096)))
    assert late < 10 * early
