"""Work on many items in several processes; the answers come in the order of the items."""

import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import TypeVar

import torch

Item = TypeVar("Item")
Answer = TypeVar("Answer")


def side_by_side(work: Callable[[Item], Answer], items: Sequence[Item], processes: int) -> Iterator[Answer]:
    """Give ``work(item)`` for each item in turn, computed by so many processes that share the threads of this one.

    Args:
        work: can be pickled; an exception of it is raised here.
        items: can be pickled.
        processes: one computes in this process.

    Raises:
        ValueError: there is no process, or one of several died.
    """
    if processes < 1:
        raise ValueError(f"processes = {processes} must be at least 1")
    if processes == 1:
        yield from map(work, items)
        return
    threads = max(1, torch.get_num_threads() // processes)
    with ProcessPoolExecutor(processes, get_context("spawn"), _begin, (threads,)) as pool:
        try:
            yield from pool.map(work, items)
        except BrokenProcessPool as error:
            said = f"one of {processes} processes died, most likely for memory; set processes lower"
            raise ValueError(said) from error


def _begin(threads: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl+C reaches every process of a terminal: it ends this one quietly
    torch.set_num_threads(threads)
