"""A decomposition that is killed twice is the one that was never killed; two processes are one run."""

import json
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from tests.train.processes import started
from train import decompose, pretrain

Arguments = Callable[..., list[str]]
STEPS = 50


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As the processes of these tests have: sums of other threads have other last digits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def kill_in(root: Path, arguments: list[str], run: Path, phase: str) -> None:
    """Run the recipe until a phase has a checkpoint and steps after it, and kill it there."""
    history, checkpoint = run / f"{phase}.jsonl", run / f"{phase}.pt"
    with started(root, "train.decompose", *arguments) as process:
        while not (checkpoint.exists() and history.read_bytes().count(b"\n") > 10):
            assert process.poll() is None
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    assert history.read_bytes().count(b"\n") < STEPS


def losses(path: Path) -> list[float]:
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [record["step"] for record in records] == list(range(1, len(records) + 1))
    return [record["loss"] for record in records]


def experts(store: Path) -> dict[str, bytes]:
    return {path.parent.name: path.read_bytes() for path in store.glob("*/0001.safetensors")}


@pytest.mark.usefixtures("one_thread")
def test_a_run_that_was_killed_twice_is_an_unbroken_one(root: Path, tmp_path: Path, arguments: Arguments) -> None:
    assert pretrain.main(arguments("default_foundation.toml")) == 0

    def told(name: str, **changed: object) -> list[str]:
        return arguments(
            "toy.toml",
            teacher=tmp_path / "run" / "foundation.safetensors",
            foundation="",
            output=tmp_path / name,
            store=tmp_path / name / "store",
            warmup_steps=STEPS,
            steps=STEPS,
            **changed,
        )

    assert decompose.main(told("unbroken")) == 0
    for phase in ("warmup", "joint"):
        kill_in(root, told("killed", engine__save_every_s=0.05), tmp_path / "killed", phase)
    assert decompose.main(told("killed")) == 0
    for phase in ("warmup", "joint"):
        unbroken = losses(tmp_path / "unbroken" / f"{phase}.jsonl")
        assert len(unbroken) == STEPS
        assert unbroken[-1] < unbroken[0] or phase == "joint"
        assert losses(tmp_path / "killed" / f"{phase}.jsonl") == pytest.approx(unbroken, abs=1e-6)
    published = experts(tmp_path / "killed" / "store")
    assert {"base", "abdomen", "thorax"} <= published.keys()
    assert (tmp_path / "killed" / "report.html").stat().st_size > 1000


def torchrun(root: Path, *command: str) -> tuple[int, str, str]:
    launch = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", *command)
    with started(root, *launch) as process:
        out, error = process.communicate(timeout=110)
        return process.returncode, out.decode(), error.decode()


@pytest.mark.usefixtures("one_thread")
def test_two_processes_of_torchrun_are_one_run(root: Path, tmp_path: Path, arguments: Arguments) -> None:
    assert pretrain.main(arguments("default_foundation.toml", output=tmp_path / "one", steps=4)) == 0
    two = arguments("default_foundation.toml", output=tmp_path / "two", steps=4, engine__shard="true")
    status, out, error = torchrun(root, "train.pretrain", *two)
    assert status == 0, error
    assert out.count("wrote ") == 1
    assert error.count("pretrain: step 4 of 4") == 1
    one = losses(tmp_path / "one" / "pretrain.jsonl")
    assert losses(tmp_path / "two" / "pretrain.jsonl") == pytest.approx(one, abs=1e-6)
    assert json.loads((tmp_path / "two" / "run.json").read_text(encoding="utf-8"))["world_size"] == 2
    sizes = [(tmp_path / name / "foundation.safetensors").stat().st_size for name in ("one", "two")]
    assert abs(sizes[0] - sizes[1]) < 64  # the headers' hashes and settings


def test_bad_input_of_two_processes_is_one_sentence(root: Path, arguments: Arguments) -> None:
    status, _, error = torchrun(root, "train.pretrain", *arguments("default_foundation.toml", batch_size=3))
    assert status != 0
    assert error.count("batch_size 3 can't be shared by 2 processes in 1 equal parts each; set batch_size to a") == 1
