"""Tests of train.scoring.side_by_side: real processes."""

import os
import signal

import pytest

from train.scoring.side_by_side import side_by_side


def squared(number: int) -> int:
    if number < 0:
        raise ValueError(f"{number} is negative")
    return number**2


def killed_at_three(number: int) -> int:
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


@pytest.mark.parametrize("processes", [1, 3])
def test_answers_come_in_order(processes: int) -> None:
    assert list(side_by_side(squared, range(7), processes)) == [0, 1, 4, 9, 16, 25, 36]


@pytest.mark.parametrize("processes", [1, 2])
def test_an_exception_of_the_work_is_raised(processes: int) -> None:
    with pytest.raises(ValueError, match="-2 is negative"):
        list(side_by_side(squared, [1, -2, 3], processes))


def test_a_process_that_dies_is_one_sentence() -> None:
    with pytest.raises(ValueError, match="one of 2 processes died, most likely for memory; set processes lower"):
        list(side_by_side(killed_at_three, range(5), 2))
