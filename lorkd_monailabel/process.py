"""This process: what its allocator keeps of freed memory, and how many threads numpy's solvers have."""

import ctypes
import os
import sys

import numpy  # noqa: F401  # its OpenBLAS must be loaded before it can be told anything
from threadpoolctl import ThreadpoolController

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8  # as glibc's malloc.h numbers them
_TOLD = ("GLIBC_TUNABLES", "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_ARENA_MAX")


def tune() -> None:
    """Make a process quick that gets one large volume after the other, or trains.

    glibc keeps freed blocks for the next, up to half a GiB: a page that is new to a process costs more time than what
    is written to it. There is one arena, as only the first can hold large blocks; so this comes before the process
    has threads of its own. And numpy solves its four equations for an affine alone: the helper that it would wake
    waits up to 4 ms for a core on which torch's own still looks out for work. What the environment says of either
    stays.
    """
    if not any(name in os.environ for name in _TOLD):
        call_glibc("mallopt", _ARENA_MAX, 1)
        set_thresholds(trim_bytes=512 * 1024**2, mmap_bytes=256 * 1024**2)
    if "OPENBLAS_NUM_THREADS" not in os.environ:
        ThreadpoolController().select(internal_api="openblas").limit(limits=1)


def set_thresholds(*, trim_bytes: int, mmap_bytes: int) -> None:
    """Tell glibc how much freed memory it keeps.

    Args:
        trim_bytes: most that is kept at the end of its heap.
        mmap_bytes: size from which a block is a mapping of its own, which goes back as soon as it is freed.
    """
    call_glibc("mallopt", _TRIM_THRESHOLD, trim_bytes)
    call_glibc("mallopt", _MMAP_THRESHOLD, mmap_bytes)


def hand_back() -> None:
    """Make glibc give all that it keeps back to the system."""
    call_glibc("malloc_trim", 0)


def call_glibc(function: str, *numbers: int) -> None:
    """Call a function of glibc's allocator, which other systems and libraries have not."""
    called = getattr(ctypes.CDLL(None), function, None) if sys.platform == "linux" else None
    if called is not None:
        called(*numbers)
