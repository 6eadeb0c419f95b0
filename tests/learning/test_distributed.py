"""Tests of lorkd_monailabel.learning.distributed, alarm and sharding: real processes against one."""

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed
from torch import Tensor

from lorkd_monailabel.learning.checkpoint import load_checkpoint
from lorkd_monailabel.learning.decomposition import Decomposition
from lorkd_monailabel.learning.distributed import World, process_device
from lorkd_monailabel.learning.engine import Engine
from lorkd_monailabel.learning.sampler import ShareOfSamples
from lorkd_monailabel.learning.samples import Sample, Samples
from lorkd_monailabel.learning.sharding import is_sharded, shard
from lorkd_monailabel.learning.trainer import Trainer
from lorkd_monailabel.learning.training import Interrupted, Loop, run
from lorkd_monailabel.networks.segmenter import build_segmenter
from lorkd_monailabel.teachers.network import NetworkTeacher
from lorkd_monailabel.text_encoder import QueryTable
from tests.learning.two_processes import alone, in_processes

DEPARTMENTS = ("abdomen", "spine", "thorax")
MakeSamples = Callable[..., Samples]


def joint_trainer(world: World, table: QueryTable, *, steps: int = 6, seed: int = 0, **changed: Any) -> Trainer:
    """Base, experts and a teacher; another seed is another start."""
    torch.manual_seed(seed)
    decomposition = Decomposition(build_segmenter("tiny"), ranks=dict.fromkeys(DEPARTMENTS, 1))
    for name, tensor in decomposition.factor_tensors().items():
        if "lora_b" in name:
            torch.nn.init.normal_(tensor, std=0.1)
    trained = [(decomposition.weights, 1e-3), (decomposition.factor_tensors(), 2e-3)]
    torch.manual_seed(9)
    teacher = NetworkTeacher(build_segmenter("tiny").eval(), table)
    engine = Engine(world=world, bf16=False, **changed)
    return Trainer(
        decomposition.network,
        decomposition.weights_of,
        trained,
        queries=table,
        steps=steps,
        teacher=teacher,
        engine=engine,
    )


def foundation_trainer(world: World, table: QueryTable, *, sharded: bool, seed: int = 0) -> Trainer:
    """One network, whose weights may be spread over the processes, with a teacher whose weights are."""
    torch.manual_seed(seed)
    network = build_segmenter("tiny")
    torch.manual_seed(9)
    teacher = build_segmenter("tiny").requires_grad_(False).eval()
    if sharded:
        shard(network, world)
        shard(teacher, world)
    engine = Engine(world=world, bf16=False, shard=sharded, ema=0.5)
    weights = dict(network.named_parameters())
    teaching = NetworkTeacher(teacher, table)
    return Trainer(network, None, [(weights, 1e-3)], queries=table, steps=6, teacher=teaching, engine=engine)


def steps_of(trainer: Trainer, samples: Samples, checkpoint: Path, *, stop_after: int = 0) -> list[float]:
    """Run to the end, or until the last process asks to stop; the losses."""
    world, seen = trainer.engine.world, []
    try:
        run(
            trainer,
            samples,
            Loop(4, lambda: world.rank == world.size - 1 and trainer.step == stop_after, workers=0),
            checkpoint=checkpoint,
            report=lambda progress: seen.append(progress.loss),
        )
    except Interrupted:
        assert trainer.step == stop_after
    return seen


def gradients(trainer: Trainer) -> dict[str, Tensor | None]:
    return {name: tensor.grad for name, tensor in trainer.trained.items()}


def measure(world: World, folder: Path, table: QueryTable, samples: Samples, batch: Sequence[Sample]) -> dict[str, Any]:
    """Everything that two processes must find as one does; one pair of processes is enough for all of it."""
    found: dict[str, Any] = {}
    trainer = joint_trainer(world, table, seed=world.rank)
    trainer.load(world.share(trainer.state()))
    own = batch[world.rank :: world.size]
    found["departments"] = {sample.department for sample in own}
    found["step"] = trainer.train_step(own)
    found["gradients"] = gradients(trainer)

    found["unbroken"] = steps_of(joint_trainer(world, table), samples, folder / "unbroken.pt")
    found["begun"] = steps_of(joint_trainer(world, table), samples, folder / "begun.pt", stop_after=2)
    sharded = world.size > 1
    trainer = foundation_trainer(world, table, sharded=sharded)
    found["parts"] = sum(map(is_sharded, trainer.trained.values()))
    found["foundation"] = steps_of(trainer, samples, folder / "foundation.pt", stop_after=4)
    if sharded:
        found["resumed"] = steps_of(joint_trainer(world, table, seed=world.rank), samples, folder / "given.pt")
        trainer = foundation_trainer(world, table, sharded=True, seed=3)
        found["resumed foundation"] = steps_of(trainer, samples, folder / "given_foundation.pt")
        found["lacking"] = want_of_memory(world, table, samples, folder)
    return found


def want_of_memory(world: World, table: QueryTable, samples: Samples, folder: Path) -> str:
    """The sentence of a run whose last process lacks memory in its third step."""
    trainer = joint_trainer(world, table)
    loss = trainer.loss

    def lacking(*arguments: Any) -> Tensor:
        if world.rank == world.size - 1 and trainer.step == 2:
            raise torch.OutOfMemoryError("none left\nmore lines")
        return loss(*arguments)

    trainer.loss = lacking  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="lacked memory") as caught:
        steps_of(trainer, samples, folder / "lacking.pt")
    return str(caught.value)


@pytest.fixture(scope="module")
def found(
    tmp_path_factory: pytest.TempPathFactory, table: QueryTable, make_samples: MakeSamples
) -> tuple[dict[str, Any], list[dict[str, Any]], Path]:
    """What one process found, what each of two found, and the folder of both."""
    folder = tmp_path_factory.mktemp("processes")
    samples = make_samples(*DEPARTMENTS)
    drawn = {sample.department: sample for sample in (samples[index] for index in range(12))}
    # even numbers go to the first process: the abdomen is with the first alone, the spine with nobody
    batch = [drawn[name] for name in ("abdomen", "thorax", "abdomen", "thorax")]
    one = alone(measure, folder / "one", table, samples, batch)
    (folder / "two").mkdir()
    shutil.copy(folder / "one" / "begun.pt", folder / "two" / "given.pt")
    shutil.copy(folder / "one" / "foundation.pt", folder / "two" / "given_foundation.pt")
    return one, in_processes(measure, folder / "two", table, samples, batch), folder


Found = tuple[dict[str, Any], list[dict[str, Any]], Path]


def test_two_processes_give_the_gradients_of_one(found: Found) -> None:
    one, two, _ = found
    assert [own["departments"] for own in two] == [{"abdomen"}, {"thorax"}]
    for own in two:
        assert own["step"] == pytest.approx(one["step"], abs=1e-6)
        for name, gradient in one["gradients"].items():
            if name.startswith("spine.") or ".norm1." in name:  # absent everywhere; no part of the network
                assert gradient is None
                assert own["gradients"][name] is None
            else:
                torch.testing.assert_close(own["gradients"][name], gradient, atol=1e-6, rtol=0)
    assert any(name.startswith("thorax.") for name in one["gradients"])


def test_two_processes_lose_what_one_loses_and_resume_each_other(
    found: Found, table: QueryTable, make_samples: MakeSamples
) -> None:
    one, two, folder = found
    assert len(one["unbroken"]) == 6
    for own in two:
        assert own["unbroken"] == pytest.approx(one["unbroken"], abs=1e-6)
        assert own["begun"] == pytest.approx(one["unbroken"][:2], abs=1e-6)
        # begun by one process, ended by two; each of these had started from numbers of its own
        assert own["resumed"] == pytest.approx(one["unbroken"][2:], abs=1e-6)
    # begun by two, ended by one
    rest = steps_of(joint_trainer(World(), table, seed=5), make_samples(*DEPARTMENTS), folder / "two" / "begun.pt")
    assert rest == pytest.approx(one["unbroken"][2:], abs=1e-6)


def test_a_foundation_in_parts_is_the_same_foundation_and_its_checkpoint_is_whole(
    found: Found, table: QueryTable, make_samples: MakeSamples
) -> None:
    one, two, folder = found
    assert one["parts"] == 0
    whole = load_checkpoint(folder / "one" / "foundation.pt")
    parts = load_checkpoint(folder / "two" / "foundation.pt")
    assert whole is not None
    assert parts is not None
    assert whole.keys() == parts.keys()
    assert {name: tensor.shape for name, tensor in parts["average"].items()} == {
        name: tensor.shape for name, tensor in whole["average"].items()
    }
    assert sum(tensor.numel() for own in parts["optimizer"]["state"].values() for tensor in own.values()) == sum(
        tensor.numel() for own in whole["optimizer"]["state"].values() for tensor in own.values()
    )
    samples = make_samples(*DEPARTMENTS)
    rest = steps_of(foundation_trainer(World(), table, sharded=False), samples, folder / "one" / "foundation.pt")
    again = steps_of(foundation_trainer(World(), table, sharded=False), samples, folder / "two" / "foundation.pt")
    assert len(rest) == 2
    assert again == pytest.approx(rest, abs=1e-6)
    for own in two:
        assert own["parts"] == len(whole["trained"])
        assert own["foundation"] == pytest.approx(one["foundation"], abs=1e-6)
        assert own["resumed foundation"] == pytest.approx(rest, abs=1e-6)


def test_want_of_memory_on_one_process_ends_all_with_their_state_saved(found: Found) -> None:
    _, two, folder = found
    said = "step 3 lacked memory (on another process), its state is saved; set engine.accumulate to 2 and run again"
    assert two[0]["lacking"].startswith(said)
    assert "(none left)" in two[1]["lacking"]
    state = load_checkpoint(folder / "two" / "lacking.pt")
    assert state is not None
    assert state["step"] == 2


def fail_on_the_last(world: World, folder: Path) -> None:
    if world.rank == world.size - 1:
        raise ValueError("this process can't go on; mend it")
    world.barrier()  # which the last one never reaches


def test_a_failure_on_one_process_ends_all_with_its_sentence(tmp_path: Path) -> None:
    began = time.monotonic()
    with pytest.raises(torch.multiprocessing.ProcessExitedException) as caught:
        in_processes(fail_on_the_last, tmp_path)
    assert caught.value.exit_code == 2
    assert (tmp_path / "announced").read_text(encoding="utf-8") == "0: this process can't go on; mend it\n"
    assert time.monotonic() - began < 60


@pytest.mark.parametrize("size", [2, 8, 64])
def test_what_a_process_sends_and_writes_does_not_grow_with_their_number(
    tmp_path: Path, table: QueryTable, make_samples: MakeSamples, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    # The network between the machines is not ours: it answers as if all others had sent zeros.
    sent: list[int] = []
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor: sent.append(tensor.numel()))
    samples = make_samples(*DEPARTMENTS)
    for rank in (0, size - 1):
        sent.clear()
        indices = list(ShareOfSamples(0, 2 * size, rank=rank, world=size))
        trainer = joint_trainer(World(rank=rank, size=size), table)
        trainer.train_step([replace(samples[index], department="abdomen") for index in indices])
        numbers = sum(tensor.numel() for tensor in trainer.trained.values() if tensor.grad is not None)
        assert len(indices) == 2
        # losses and counts of eight departments and whether memory lacked, what has a gradient, the gradients at once
        assert sent == [17, len(trainer.trained), numbers]
        assert len(trainer.state()["trained"]) == len(trainer.trained)


def test_a_world_of_one_needs_nobody() -> None:
    world = World()
    state = {"a": [torch.ones(2), 3]}
    assert world.share(state) is state
    assert world.sum([1, 2.5]) == [1.0, 2.5]
    assert (world.any(True), world.any(False), world.first) == (True, False, True)
    with world.one_first():
        world.barrier()


def test_gradients_travel_in_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    from lorkd_monailabel.learning import distributed

    tensors = [torch.zeros(3), torch.zeros(2, 2).to(torch.bfloat16), torch.zeros(5), torch.zeros(1)]
    for tensor in tensors[:3]:
        tensor.grad = torch.ones_like(tensor)
    sent: list[Tensor] = []

    def double(tensor: Tensor) -> None:
        sent.append(tensor.clone())
        tensor.mul_(2)

    monkeypatch.setattr(torch.distributed, "all_reduce", double)
    monkeypatch.setattr(distributed, "BUCKET_BYTES", 20)
    World(size=4).average_gradients(tensors)
    assert [own.tolist() for own in sent] == [[1, 1, 1, 0], [1] * 4, [1] * 8]
    assert [None if own.grad is None else own.grad.flatten().tolist() for own in tensors] == [
        [0.5] * 3,
        [0.5] * 4,
        [0.5] * 5,
        None,
    ]


def test_processes_take_a_gpu_each_or_share_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    assert process_device("cpu", 3) == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert process_device("", 1) == process_device("cuda", 1) == torch.device("cuda", 1)
    with pytest.raises(ValueError, match="is 'cuda:1', one device for all processes; set it to cuda or"):
        process_device("cuda:1", 0)
    with pytest.raises(ValueError, match="process 2 of this machine has no GPU of its own; set --nproc-per-node of"):
        process_device("", 2)
