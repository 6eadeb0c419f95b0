"""Tests of lorkd_monailabel.cores."""

import threading
import time

import pytest
import torch

from lorkd_monailabel.cores import spread


@pytest.fixture
def four_cores():
    """Torch may use four, whatever the machine has."""
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("items", "parts"), [(1, {(1, 4)}), (2, {(1, 2)}), (3, {(1, 1)}), (6, {(1, 1), (2, 1)})])
def test_every_part_has_its_share_of_the_cores(four_cores, items, parts):
    """Parts as (items, cores)."""
    seen, barrier = [], threading.Barrier(min(items, 4))

    def work(part: torch.Tensor) -> torch.Tensor:
        barrier.wait(20)  # all parts at the same time
        seen.append((len(part), torch.get_num_threads(), torch.is_grad_enabled()))
        return part * 2

    batch = torch.arange(2.0 * items, requires_grad=True).reshape(items, 2)
    assert torch.equal(spread(work, batch), batch.detach() * 2)
    assert {(length, cores) for length, cores, _ in seen} == parts
    assert not any(gradients for _, _, gradients in seen)
    assert torch.get_num_threads() == 4
    other = []
    thread = threading.Thread(target=lambda: other.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert other == [4]  # a new thread has all cores


def test_what_is_on_a_device_is_not_parted(four_cores):
    seen = []
    spread(lambda part: seen.append(part.shape) or part, torch.empty(3, 2, device="meta"))
    assert seen == [(3, 2)]


def test_an_error_of_a_part_is_that_of_the_whole_when_all_are_over(four_cores):
    over = []

    def work(part: torch.Tensor) -> torch.Tensor:
        if part.min() < 2:
            raise RuntimeError("DefaultCPUAllocator: not enough memory")
        time.sleep(0.2)
        over.append(len(part))
        return part

    with pytest.raises(RuntimeError, match="not enough memory"):
        spread(work, torch.arange(8.0))
    assert over == [2, 2, 2]
    assert torch.equal(spread(work, torch.full((8,), 3.0)), torch.full((8,), 3.0))
