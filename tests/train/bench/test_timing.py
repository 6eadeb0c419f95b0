import gc
import time

import pytest
import torch

from train.bench import timing
from train.bench.timing import Way, measure, peak_memory, with_memory

MS = 1e-3


@pytest.fixture(autouse=True)
def little_garbage():
    """Collecting garbage takes half a second among all that pytest holds."""
    gc.freeze()
    yield
    gc.unfreeze()


def sleeper(milliseconds):
    return lambda: time.sleep(milliseconds * MS)


def test_known_times_come_out():
    floor, slow = measure("case", "step", [Way("floor", sleeper(5)), Way("slow", sleeper(20))], floor="floor", rounds=3)
    assert (floor.way, floor.ratio, floor.floor, slow.floor) == ("floor", 1.0, True, False)
    assert 5 * MS <= floor.seconds < 20 * MS
    assert 20 * MS <= slow.seconds < 60 * MS
    assert 1.5 < slow.ratio < 6
    assert (slow.case, slow.phase, slow.rounds) == ("case", "step", 3)


def test_ratio_is_the_median_of_the_rounds_own_ratios(monkeypatch):
    """The machine doubles its pace after each round: ratios of medians would be wrong."""
    took = {"floor": iter([9.0, 1.0, 2.0, 4.0]), "other": iter([9.0, 3.0, 4.0, 20.0])}  # the first is the warm-up
    monkeypatch.setattr(timing, "_seconds", lambda way, device: next(took[way.name]))
    floor, other = measure("case", "step", [Way("floor", int), Way("other", int)], floor="floor", rounds=3)
    assert (floor.seconds, other.seconds) == (2.0, 4.0)
    assert other.ratio == 3.0  # of 3, 2 and 5; the ratio of the medians is 2


def test_order_is_rotated_and_the_warm_up_dropped():
    order = []
    ways = [Way(name, lambda name=name: order.append(name)) for name in "abc"]
    measure("case", "step", ways, floor="a", rounds=3)
    warm_up, *rounds = ("".join(order[start : start + 3]) for start in range(0, 12, 3))
    assert warm_up == "abc"
    assert rounds == ["abc", "bca", "cab"]
    assert order[12:] == []


def test_memory_of_a_step_is_its_peak():
    kept = []

    def allocate():
        kept.append(torch.ones(64, 2**18))  # 64 MiB
        kept.clear()

    peak_memory(Way("warm up", allocate))
    assert peak_memory(Way("allocates", allocate)) / 2**20 == pytest.approx(64, abs=3)
    assert peak_memory(Way("nothing", int)) / 2**20 < 3


def test_freed_blocks_do_not_hide_memory():
    """Blocks below the threshold of mmap stay with the allocator unless they are handed back."""

    def allocate():
        return len([torch.ones(2**14) for _ in range(512)])  # 512 blocks of 64 KiB

    allocate()
    for _ in range(2):
        assert peak_memory(Way("allocates", allocate)) / 2**20 == pytest.approx(32, abs=3)


def test_memory_is_compared_with_the_floors():
    ways = [Way(f"{size} MiB", lambda size=size: torch.ones(size, 2**18)) for size in (16, 48)]
    ways.append(Way("none", None, note="not installed"))
    timed = measure("case", "step", ways, floor="16 MiB", rounds=1)
    assert [result.memory_mib for result in timed] == [None, None, None]
    floor, more, none = with_memory(timed, ways)
    assert (floor.memory_ratio, none) == (1.0, timed[2])
    assert floor.memory_mib == pytest.approx(16, abs=2)
    assert more.memory_ratio == pytest.approx(3, abs=0.4)
    assert (more.seconds, more.ratio) == (timed[1].seconds, timed[1].ratio)


def test_gradients_are_dropped_before_each_step():
    tensor = torch.ones(3, requires_grad=True)

    def step():
        assert tensor.grad is None
        (2 * tensor).sum().backward()

    measure("case", "step", [Way("a", step, [tensor])], rounds=2)
    assert tensor.grad is None


def test_operations_are_counted():
    a, b = torch.ones(3, 5), torch.ones(5, 7)
    (result,) = measure("case", "step", [Way("product", lambda: a @ b)], rounds=1, count=True)
    assert result.operations == 2 * 3 * 5 * 7


def test_a_way_that_cannot_run_keeps_its_row():
    def exhaust():
        raise torch.OutOfMemoryError("no")

    ways = [Way("floor", int), Way("peft", None, note="not installed"), Way("huge", exhaust)]
    floor, absent, huge = measure("case", "step", ways, floor="floor", rounds=1)
    assert floor.seconds > 0
    assert (absent.seconds, absent.note) == (None, "not installed")
    assert (huge.seconds, huge.note) == (None, "out of memory")


@pytest.mark.parametrize(
    ("ways", "options", "message"),
    [
        (["a"], {"rounds": 0}, "0 rounds measure nothing"),
        (["a", "a"], {}, "repeat a name"),
        (["a"], {"floor": "b"}, "the floor 'b' of 'case' must be a way that can run"),
    ],
)
def test_refusals(ways, options, message):
    with pytest.raises(ValueError, match=message):
        measure("case", "step", [Way(name, int) for name in ways], **options)


def test_a_failing_way_ends_the_run_by_its_own_error():
    def fail():
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        measure("case", "step", [Way("a", fail)], rounds=1)
