"""Tests of lorkd_monailabel.cores."""

import threading
import time

import numpy as np
import pytest
import torch

from lorkd_monailabel.cores import each, pieces, slabs, spread


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
    over, barrier = [], threading.Barrier(4)

    def work(part: torch.Tensor) -> torch.Tensor:
        barrier.wait(20)
        if part.min() < 2:
            raise RuntimeError("DefaultCPUAllocator: not enough memory")
        time.sleep(0.2)
        over.append(len(part))
        return part

    with pytest.raises(RuntimeError, match="not enough memory"):
        spread(work, torch.arange(8.0))
    assert over == [2, 2, 2]
    assert torch.equal(spread(work, torch.full((8,), 3.0)), torch.full((8,), 3.0))


def test_more_items_than_cores_are_taken_up_as_cores_are_free(four_cores):
    release = threading.Event()

    def work(item: int) -> tuple[int, int]:
        if item == 0:
            assert release.wait(20)  # the others are done by three cores meanwhile
        if item == 9:
            release.set()
        return item * item, torch.get_num_threads()

    assert each(work, range(10)) == [(item * item, 1) for item in range(10)]
    assert each(work, []) == []


def test_after_an_error_no_further_item_is_begun(four_cores):
    begun, barrier = [], threading.Barrier(4)

    def work(item: int) -> None:
        begun.append(item)
        if item < 4:
            barrier.wait(20)
        if item == 3:
            raise ValueError("no")
        time.sleep(0.1)

    with pytest.raises(ValueError, match="no"):
        each(work, range(100))
    assert set(range(4)) <= set(begun)
    assert len(begun) < 12


@pytest.mark.parametrize("order", ["C", "F"])
def test_pieces_make_up_the_array_and_each_is_in_one_part_of_memory(order):
    array = np.asarray(np.random.default_rng(0).random((5, 6, 70)), order=order)
    found = pieces(array, 100)
    assert sum(piece.size for piece in found) == array.size
    assert np.array_equal(np.sort(np.concatenate([piece.ravel() for piece in found])), np.sort(array.ravel()))
    assert all(piece.size <= 100 or len(piece) == 1 for piece in found)
    steps = [np.abs(piece.strides).min() for piece in found]
    assert set(steps) == {8}
    assert len(found) > 4


def test_slabs_cover_a_length_once():
    assert slabs(7, 3) == [slice(0, 3), slice(3, 6), slice(6, 7)]
    assert slabs(2, 0) == [slice(0, 1), slice(1, 2)]
    assert slabs(0, 4) == []
