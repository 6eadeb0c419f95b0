"""Tests of lorkd_monailabel.learning.engine."""

import pytest
import torch

from lorkd_monailabel.learning.distributed import World
from lorkd_monailabel.learning.engine import Engine, is_out_of_memory, smaller


@pytest.mark.parametrize(
    ("told", "sentence"),
    [
        ({"accumulate": 0}, "accumulate 0 must be at least 1; set engine.accumulate"),
        ({"ema": 1.0}, "ema 1.0 must be at least 0 and below 1; set engine.ema"),
        ({"ema": -0.1}, "ema -0.1 must be"),
        ({"save_every_s": -1.0}, "save_every_s -1.0 is below 0; set engine.save_every_s"),
        ({"compile": True, "shard": True}, "compile and shard exclude each other"),
    ],
)
def test_settings_that_can_not_be_are_refused(told: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Engine(**told)


def test_every_process_has_the_same_share_of_a_batch() -> None:
    assert Engine().share(3) == 3
    assert Engine(world=World(size=4), accumulate=2).share(16) == 4
    for size in (0, -8, 12, 4):
        with pytest.raises(ValueError, match=rf"batch_size {size} can't be shared by 4 processes in 2 equal parts"):
            Engine(world=World(size=4), accumulate=2).share(size)


def test_errors_of_memory_are_told_from_others() -> None:
    lacking = [
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:114] err == 0. DefaultCPUAllocator: can't allocate memory: you"),
    ]
    assert all(map(is_out_of_memory, lacking))
    assert not any(map(is_out_of_memory, [RuntimeError("shapes differ"), ValueError("can't allocate memory")]))
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60)
    assert is_out_of_memory(caught.value)


@pytest.mark.parametrize(
    ("world", "accumulate", "batch_size", "patch", "advice"),
    [
        (1, 1, 8, (64, 64, 64), "set engine.accumulate to 2"),
        (1, 2, 8, (64, 64, 64), "set engine.accumulate to 4"),
        (2, 2, 12, (64, 64, 64), "set engine.accumulate to 3"),
        (4, 2, 8, (64, 64, 64), "set data.patch to 48"),
        (1, 1, 1, (48, 48, 48), "set data.patch to 32"),
        (1, 1, 1, (96, 64, 16), "set data.patch to [64, 48, 16]"),
        (1, 1, 1, (16, 16, 16), "choose a smaller network, or a machine with more memory"),
    ],
)
def test_advice_is_the_next_smaller_setting(
    world: int, accumulate: int, batch_size: int, patch: tuple[int, int, int], advice: str
) -> None:
    engine = Engine(world=World(size=world), accumulate=accumulate)
    assert smaller(engine, batch_size=batch_size, patch=patch, stride=16) == advice
