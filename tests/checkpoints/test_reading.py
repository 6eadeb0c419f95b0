"""Tests of lorkd_monailabel.checkpoints.reading: what it costs. What it refuses is in test_hostile.py."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from lorkd_monailabel.checkpoints.reading import read_state

MEASURE = """
import sys
from pathlib import Path

from lorkd_monailabel.checkpoints.sat import read_sat
from lorkd_monailabel.experts import plain_network, tensors_sha256

def kib(field):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(field))

read_sat(Path(sys.argv[1]))  # what the first call imports is no matter of the file
before = kib("VmRSS")
numbers, weights = read_sat(Path(sys.argv[2]))
read = kib("VmHWM") - before
plain_network(numbers, weights)
tensors_sha256(weights)  # touches every byte
print(read, kib("VmHWM") - before)
"""


def test_reading_takes_no_memory_and_using_takes_that_of_the_file(
    state: Callable[..., dict[str, torch.Tensor]], file: Callable[..., Path], root: Path
) -> None:
    small = file(state("tiny"), "small.pth")
    path = file({name: torch.zeros_like(each) for name, each in state("tiny", forward=200_000).items()})
    size = path.stat().st_size / 1024
    assert size > 64 * 1024
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(small), str(path)],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=True,
    )
    read, used = map(int, done.stdout.split())
    assert read < 0.2 * size
    assert used < 1.2 * size


def test_tensors_of_the_optimizer_stay_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "file.pth"
    weight = torch.arange(3.0).requires_grad_()
    torch.save({"model_state_dict": {"module.a": weight}, "optimizer_state_dict": {"state": {0: torch.ones(9)}}}, path)
    found = read_state(path)
    assert list(found) == ["a"]
    assert found["a"].tolist() == [0.0, 1.0, 2.0]
    assert not found["a"].requires_grad
