"""Tests of lorkd_monailabel.active_learning.diversity: points on a line."""

import numpy as np
import pytest

from lorkd_monailabel.active_learning.diversity import k_center

LINE = np.array([[0.0], [1.0], [4.0], [10.0]])
NONE = np.empty((0, 1))


def test_the_farthest_from_all_centres_comes_next() -> None:
    picks = k_center(LINE, np.array([[0.0]]), weights=np.ones(4), count=4)
    assert picks == [(3, 10.0), (2, 4.0), (1, 1.0), (0, 0.0)]


def test_without_centres_the_most_central_one_is_first() -> None:
    picks = k_center(LINE, NONE, weights=np.ones(4), count=2)
    assert picks == [(2, None), (3, 6.0)]  # the mean is 3.75


def test_without_centres_the_largest_weight_is_first() -> None:
    assert k_center(LINE, NONE, weights=np.array([1, 5, 1, 1]), count=1) == [(1, None)]


def test_weights_multiply_distances() -> None:
    picks = k_center(LINE, np.array([[0.0]]), weights=np.array([9, 9, 9, 1]), count=2)
    assert picks == [(2, 4.0), (1, 1.0)]  # 36 before 10; then 9 before 6


@pytest.mark.parametrize(("count", "length"), [(0, 0), (9, 4)])
def test_count_is_a_limit(count: int, length: int) -> None:
    assert len(k_center(LINE, NONE, weights=np.zeros(4), count=count)) == length


def test_against_a_slow_second_implementation() -> None:
    random = np.random.default_rng(0)
    points, centres, weights = random.normal(size=(30, 5)), random.normal(size=(4, 5)), random.random(30)
    chosen: list[int] = []
    for _ in range(30):
        there = [*centres, *(points[row] for row in chosen)]
        worth = {
            row: weights[row] * min(float(np.sqrt(((points[row] - each) ** 2).sum())) for each in there)
            for row in range(30)
            if row not in chosen
        }
        chosen.append(max(worth, key=worth.__getitem__))
    assert [pick.row for pick in k_center(points, centres, weights=weights, count=30)] == chosen
