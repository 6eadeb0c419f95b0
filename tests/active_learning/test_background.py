"""Tests of lorkd_monailabel.active_learning.background: work that gives way."""

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from lorkd_monailabel.active_learning.background import CLIENT, Background
from lorkd_monailabel.jobs import Jobs
from lorkd_monailabel.sliding_window import Cancelled

PATIENCE_SECONDS = 20.0


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.005)


@pytest.fixture
def jobs() -> Jobs:
    return Jobs()


@pytest.fixture
def background(jobs: Jobs) -> Iterator[Background]:
    background = Background(jobs, "cpu", pause_seconds=0.01)
    yield background
    background.stop()


class Slow:
    """A case that goes on until it is let through or must end."""

    def __init__(self) -> None:
        self.through = threading.Event()
        self.begun = 0
        self.done = False

    def __call__(self, go_on: Callable[[int, int], bool]) -> None:
        self.begun += 1
        while not self.through.wait(0.005):
            if not go_on(0, 1):
                raise Cancelled("told to end")
        self.done = True


def test_works_are_done_in_their_order_as_one_job(background: Background, jobs: Jobs) -> None:
    done: list[int] = []
    background.want("scores", [lambda go_on, number=number: done.append(number) for number in range(5)])
    wait_until(lambda: not background.busy("scores"))
    assert done == [0, 1, 2, 3, 4]
    (status,) = jobs.all()
    assert (status.client, status.title, status.state, status.total) == (CLIENT, "scores", "done", 5)


def test_a_wish_is_not_begun_twice(background: Background) -> None:
    slow, other = Slow(), Slow()
    background.want("scores", [slow])
    background.want("scores", [other])
    slow.through.set()
    wait_until(lambda: not background.busy("scores"))
    assert (slow.done, other.begun) == (True, 0)
    background.want("scores", [other])
    wait_until(lambda: other.begun == 1)


def test_who_comes_gets_the_device_at_once_and_the_case_is_begun_anew(background: Background, jobs: Jobs) -> None:
    slow = Slow()
    background.want("scores", [slow])
    wait_until(lambda: slow.begun == 1)
    with jobs.turn("inference", client="someone", device="cpu"):
        assert background.busy("scores")
        assert not slow.done
    wait_until(lambda: slow.begun == 2)
    slow.through.set()
    wait_until(lambda: slow.done)


def test_it_does_not_begin_while_another_job_runs(background: Background, jobs: Jobs) -> None:
    slow = Slow()
    with jobs.turn("inference", client="someone", device="cpu"):
        background.want("scores", [slow])
        time.sleep(0.1)
        assert slow.begun == 0
    wait_until(lambda: slow.begun == 1)


def test_who_cancels_the_job_ends_all_of_it(background: Background, jobs: Jobs) -> None:
    slow, later = Slow(), Slow()
    background.want("scores", [slow, later])
    wait_until(lambda: slow.begun == 1)
    assert jobs.cancel(jobs.all()[0].id)
    wait_until(lambda: not background.busy("scores"))
    assert (slow.done, later.begun) == (False, 0)
    assert jobs.all()[0].state == "cancelled"


def test_stop_ends_it_for_ever(background: Background) -> None:
    slow = Slow()
    background.want("scores", [slow])
    wait_until(lambda: slow.begun == 1)
    background.stop()
    background.want("others", [slow])
    assert (slow.done, slow.begun, background.busy("others")) == (False, 1, False)
    assert CLIENT not in {thread.name for thread in threading.enumerate()}
