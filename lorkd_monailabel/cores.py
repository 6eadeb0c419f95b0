"""Cores: parts of a work are done side by side, each with its share of the cores.

Where all cores compute one layer, all wait for the slowest at its end, and a network of few channels has little between
one end and the next. A core that has windows of its own waits for none: on two, a tenth of the time is saved. A slab of
a volume stays in the cache of the core that does one thing after the other with it.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache
from typing import TypeVar

import numpy as np
import torch
from threadpoolctl import ThreadpoolController
from torch import Tensor

Item = TypeVar("Item")
Result = TypeVar("Result")


def spread(work: Callable[[Tensor], Tensor], batch: Tensor) -> Tensor:
    """Give ``work(batch)``, without gradients, computed in as many parts as there are cores for this thread.

    Args:
        work: (B, …) -> (B, …), of each item for itself; it is called in several threads at the same time.
        batch: (B, …); one on a device is not parted.
    """
    count = min(len(batch), torch.get_num_threads()) if batch.device.type == "cpu" else 1
    parts = each(work, batch.tensor_split(max(1, count)))
    return torch.cat(parts) if len(parts) > 1 else parts[0]


def each(work: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """Give ``work(item)`` of every item, without gradients; as many at the same time as this thread has cores.

    An error is raised when all that was begun is over: whoever tries something smaller then has its memory.

    Args:
        work: called in several threads; it lets Python's lock go for most of its time, as torch and numpy do.
        items: taken up in their order, each as soon as a core is free.
    """
    cores = torch.get_num_threads()
    count = min(len(items), cores)
    results: dict[int, Result] = {}
    waiting = iter(list(enumerate(items)))

    def take() -> None:
        with torch.no_grad():  # which each thread has for itself
            for index, item in waiting:
                try:
                    results[index] = work(item)
                except BaseException:
                    all(waiting)  # nobody begins another
                    raise

    def take_with_its_share() -> None:
        torch.get_num_threads()  # when it is first asked in a thread, torch gives it all cores
        _openmp().limit(limits=cores // count)
        take()

    if count < 2:
        take()
    else:
        takers = [_threads(cores).submit(take_with_its_share) for _ in range(count)]
        wait(takers)
        for taker in takers:
            taker.result()
    return [results[index] for index in range(len(items))]


def slabs(length: int, step: int) -> list[slice]:
    """Part a length into slabs of a step, at least 1; the last has what is left."""
    step = max(1, step)
    return [slice(start, min(start + step, length)) for start in range(0, length, step)]


def pieces(array: np.ndarray, size: int = 1 << 20) -> list[np.ndarray]:
    """Part an array into views of about a size, in elements, along the axis that is outermost in memory."""
    outermost = int(np.argmax(np.abs(array.strides)))
    turned = np.moveaxis(array, outermost, 0)
    return [turned[slab] for slab in slabs(len(turned), size * len(turned) // max(1, array.size))]


@cache
def _threads(count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count, "cores")


@cache
def _openmp() -> ThreadpoolController:
    return ThreadpoolController().select(user_api="openmp")
