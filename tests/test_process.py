"""Tests of lorkd_monailabel.process, each in a process of its own: what it sets up can't be taken back."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from lorkd_monailabel import process

BLOCKS = """
import threading
import numpy as np
from lorkd_monailabel.process import hand_back, tune

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

def fill_and_free():
    blocks = [np.ones(2**20) for _ in range(32)]
    end.append(np.ones(1000))
    full.append(resident())
    blocks.clear()

tune()
full, end = [], []
for target in (fill_and_free,) * 2:
    thread = threading.Thread(target=target)
    thread.start()
    thread.join()
kept = resident()
hand_back()
print(full[-1] - kept, kept - resident())
"""

SOLVERS = """
import numpy
from threadpoolctl import threadpool_info
from lorkd_monailabel.process import tune
for step in (lambda: None, tune):
    step()
    print(*{pool["num_threads"] for pool in threadpool_info() if pool["internal_api"] == "openblas"})
"""


def ran(script: str, **variables: str) -> list[int]:
    """Run a script in an environment that says nothing but the variables; return the numbers that it prints."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("GLIBC", "MALLOC", "OPENBLAS"))}
    run = subprocess.run(
        [sys.executable, "-c", script], env={**clean, **variables}, capture_output=True, text=True, check=True
    )
    return list(map(int, run.stdout.split()))


def test_a_thread_keeps_freed_blocks_until_they_are_handed_back() -> None:
    given, handed = ran(BLOCKS)
    assert given < 2**26  # of 2**28
    assert handed > 2**27


def test_what_the_environment_says_of_the_allocator_stays() -> None:
    given, _ = ran(BLOCKS, MALLOC_MMAP_THRESHOLD_="131072")
    assert given > 2**27


def test_numpys_solvers_have_one_thread_unless_told_otherwise() -> None:
    _, after = ran(SOLVERS)
    assert after == 1
    before, after = ran(SOLVERS, OPENBLAS_NUM_THREADS="2")
    assert after == before  # 2, but for machines of one core


@pytest.mark.parametrize(
    ("platform", "has", "called"),
    [("linux", ["malloc_trim"], [0]), ("linux", [], []), ("win32", ["malloc_trim"], [])],
    ids=["glibc", "musl", "Windows"],
)
def test_other_systems_are_left_alone(
    monkeypatch: pytest.MonkeyPatch, platform: str, has: list[str], called: list[int]
) -> None:
    given: list[int] = []
    monkeypatch.setattr(process.sys, "platform", platform)
    monkeypatch.setattr(process.ctypes, "CDLL", lambda name: SimpleNamespace(**dict.fromkeys(has, given.append)))
    process.hand_back()
    assert given == called
