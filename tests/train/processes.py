"""Runs a command of train/ as a real process, on one thread; imported by tests, so it holds no fixtures."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def started(root: Path, *command: str) -> Iterator[subprocess.Popen[bytes]]:
    """Start ``python -m command``; whatever is left of it at the end is killed."""
    process = subprocess.Popen(
        [sys.executable, "-m", *command],
        cwd=root,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()
