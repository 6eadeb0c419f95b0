"""Cores: parts of a batch are computed side by side, each with its share of the cores.

Where all cores compute one layer, all wait for the slowest at its end, and a network of few channels has little between
one end and the next. A core that has windows of its own waits for none: on two, a tenth of the time is saved.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache

import torch
from threadpoolctl import ThreadpoolController
from torch import Tensor


def spread(work: Callable[[Tensor], Tensor], batch: Tensor) -> Tensor:
    """Give ``work(batch)``, without gradients, computed in as many parts as there are cores for this thread.

    An error of a part is raised when all parts are over: whoever tries something smaller then has their memory.

    Args:
        work: (B, …) -> (B, …), of each item for itself; it is called in several threads at the same time.
        batch: (B, …); one on a device is not parted.
    """
    cores = torch.get_num_threads()
    count = min(len(batch), cores) if batch.device.type == "cpu" else 1

    def one(part: Tensor) -> Tensor:
        with torch.no_grad():  # which each thread has for itself
            return work(part)

    def with_its_share(part: Tensor) -> Tensor:
        torch.get_num_threads()  # when it is first asked in a thread, torch gives it all cores
        _openmp().limit(limits=cores // count)
        return one(part)

    if count == 1:
        return one(batch)
    parts = [_threads(cores).submit(with_its_share, part) for part in batch.tensor_split(count)]
    wait(parts)
    return torch.cat([part.result() for part in parts])


@cache
def _threads(count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count, "cores")


@cache
def _openmp() -> ThreadpoolController:
    return ThreadpoolController().select(user_api="openmp")
