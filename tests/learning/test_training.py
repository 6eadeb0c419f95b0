"""Tests of lorkd_monailabel.learning.training."""

import math
import os
import signal
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from lorkd_monailabel.experts import fuse
from lorkd_monailabel.learning import training
from lorkd_monailabel.learning.checkpoint import load_checkpoint
from lorkd_monailabel.learning.decomposition import Decomposition
from lorkd_monailabel.learning.losses import task_loss, transfer_loss
from lorkd_monailabel.learning.samples import Sample, Samples
from lorkd_monailabel.learning.training import Interrupted, Progress, Trainer, run, schedule, stop_on_signal
from lorkd_monailabel.networks.segmenter import build_segmenter
from lorkd_monailabel.teachers.network import NetworkTeacher
from lorkd_monailabel.text_encoder import QueryTable

MakeSamples = Callable[..., Samples]
DEPARTMENTS = ("abdomen", "spine", "thorax")


@pytest.fixture
def decomposition() -> Decomposition:
    """Three departments with factors that are not zero, without dropout."""
    torch.manual_seed(0)
    decomposition = Decomposition(build_segmenter("tiny").eval(), ranks=dict.fromkeys(DEPARTMENTS, 1))
    for name, tensor in decomposition.factor_tensors().items():
        if "lora_b" in name:
            torch.nn.init.normal_(tensor, std=0.1)
    return decomposition


def trainer_of(decomposition: Decomposition, table: QueryTable, **changed: object) -> Trainer:
    trained = [(decomposition.weights, 1e-2), (decomposition.factor_tensors(), 2e-2)]
    settings = {"queries": table, "steps": 10, "weight_decay": 0.1, "bf16": False, **changed}
    return Trainer(decomposition.network, decomposition.weights_of, trained, **settings)


def one_of_each(samples: Samples, departments: Sequence[str]) -> list[Sample]:
    found = {sample.department: sample for sample in (samples[index] for index in range(12))}
    return [found[department] for department in departments]


def copies(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def test_a_mixed_batch_has_the_gradient_of_separate_passes_and_the_absent_stay(
    decomposition: Decomposition, table: QueryTable, make_samples: MakeSamples
) -> None:
    samples = make_samples(*DEPARTMENTS)
    batch = [samples[index] for index in range(12)]
    batch = [sample for sample in batch if sample.department != "spine"][:5]
    assert len({sample.department for sample in batch}) == 2
    trainer = trainer_of(decomposition, table)
    before = copies(trainer.trained)

    # Apart: one pass for each sample, with weights that are built anew.
    expected = {name: torch.zeros_like(tensor) for name, tensor in trainer.trained.items()}
    losses: dict[str, list[float]] = {}
    for sample in batch:
        factors = decomposition.factors[sample.department]
        weights = fuse(decomposition.weights, factors.pairs(), factors.scales)
        queries = table.queries(sample.names, "ct")
        logits = functional_call(decomposition.network, weights, (sample.image[None], queries))
        loss = task_loss(logits, sample.masks[None])
        losses.setdefault(sample.department, []).append(loss.item())
        gradients = torch.autograd.grad(loss, list(trainer.trained.values()), allow_unused=True)
        for name, gradient in zip(trainer.trained, gradients, strict=True):
            if gradient is not None:
                expected[name] += gradient / len(batch)
    norm = math.sqrt(sum(float(gradient.square().sum()) for gradient in expected.values()))

    found = trainer.train_step(batch)
    assert found == {name: pytest.approx(sum(own) / len(own), rel=1e-5) for name, own in losses.items()}
    for name, tensor in trainer.trained.items():
        if name.startswith("spine."):
            assert tensor.grad is None
            assert torch.equal(tensor, before[name])
        elif ".norm1." not in name:  # no part of the network, see QueryLayer
            assert tensor.grad is not None
            # clipped to a norm of one before the optimiser
            torch.testing.assert_close(tensor.grad * max(1, norm), expected[name], atol=1e-5, rtol=1e-4)
            assert not torch.equal(tensor, before[name])
    assert trainer.step == 1


def test_momentum_does_not_move_a_department_that_is_absent_later(
    decomposition: Decomposition, table: QueryTable, make_samples: MakeSamples
) -> None:
    samples = make_samples(*DEPARTMENTS)
    trainer = trainer_of(decomposition, table)
    trainer.train_step(one_of_each(samples, DEPARTMENTS))
    before = copies(trainer.trained)
    trainer.train_step(one_of_each(samples, ["thorax"]))
    for name, tensor in trainer.trained.items():
        absent = name.startswith(("abdomen.", "spine."))
        assert torch.equal(tensor, before[name]) == (absent or ".norm1." in name)


@pytest.mark.parametrize("transfer", ["bernoulli", "sum"])
def test_the_foundation_adds_its_transfer_loss_and_learns_nothing(
    decomposition: Decomposition, table: QueryTable, make_samples: MakeSamples, transfer: str
) -> None:
    (sample,) = one_of_each(make_samples("abdomen"), ["abdomen"])
    foundation = build_segmenter("tiny").eval()
    queries = table.queries(sample.names, "ct")
    with torch.no_grad():
        logits = functional_call(
            decomposition.network, decomposition.weights_of("abdomen"), (sample.image[None], queries)
        )
        teacher = foundation(sample.image[None], queries).sigmoid()
        expected = task_loss(logits, sample.masks[None], balance=0.5) + 3.0 * transfer_loss(
            logits, teacher, form=transfer
        )
    asked = NetworkTeacher(foundation, table)
    trainer = trainer_of(decomposition, table, teacher=asked, beta=3.0, balance=0.5, transfer=transfer)
    assert trainer.train_step([sample])["abdomen"] == pytest.approx(expected.item(), rel=1e-5)
    assert all(parameter.grad is None for parameter in foundation.parameters())


def test_transfer_is_the_divergence_unless_asked_and_an_unknown_form_is_refused_at_once(
    decomposition: Decomposition, table: QueryTable
) -> None:
    assert trainer_of(decomposition, table).transfer == "bernoulli"
    with pytest.raises(ValueError, match="transfer form 'kl' is unknown; use one of bernoulli, sum"):
        trainer_of(decomposition, table, transfer="kl")


def test_half_precision_is_close(decomposition: Decomposition, table: QueryTable, make_samples: MakeSamples) -> None:
    batch = one_of_each(make_samples(*DEPARTMENTS), DEPARTMENTS)
    state = copies(trainer_of(decomposition, table).trained)
    losses = {}
    for bf16 in (False, True):
        trainer = trainer_of(decomposition, table, bf16=bf16)
        with torch.no_grad():
            for name, tensor in trainer.trained.items():
                tensor.copy_(state[name])
        losses[bf16] = trainer.train_step(batch)
        assert {tensor.dtype for tensor in trainer.trained.values()} == {torch.float32}
    assert losses[True] == pytest.approx(losses[False], rel=0.05)
    assert losses[True] != losses[False]


def test_schedule_rises_over_a_twentieth_and_falls_as_a_cosine(
    decomposition: Decomposition, table: QueryTable, make_samples: MakeSamples
) -> None:
    assert [schedule(step, 100) for step in range(6)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])
    assert schedule(5 + 95 // 5, 100) == pytest.approx(0.5 * (1 + math.cos(math.pi / 5)))
    assert schedule(100, 100) == pytest.approx(0)
    assert schedule(0, 1) == 1
    trainer = trainer_of(decomposition, table, steps=4)
    batch = one_of_each(make_samples("abdomen"), ["abdomen"])
    for factor in (1, 1, 0.75, 0.25):  # a step of warm-up, then (1 + cos(k pi / 3)) / 2
        trainer.train_step(batch)
        rates = [group["lr"] for group in trainer.optimizer.param_groups]
        assert rates == pytest.approx([1e-2 * factor, 2e-2 * factor])


def new_run(
    folder: Path, table: QueryTable, samples: Samples, *, stop_after: int = 0, seed: int = 0, workers: int = 0
) -> tuple[list[float], Trainer]:
    """Run six steps with dropout; the losses seen and the trainer."""
    torch.manual_seed(seed)
    trainer = trainer_of(Decomposition(build_segmenter("tiny"), ranks=dict.fromkeys(DEPARTMENTS, 1)), table, steps=6)
    seen: list[Progress] = []
    sentence = f"stopped after step {stop_after} of 6; run again to go on"
    with pytest.raises(Interrupted, match=sentence) if stop_after else nullcontext():
        run(
            trainer,
            samples,
            batch_size=3,
            checkpoint=folder / "run.pt",
            report=seen.append,
            stop=lambda: bool(stop_after) and trainer.step == stop_after,
            workers=workers,
        )
    assert trainer.step == (stop_after or 6)
    for progress in seen:
        assert progress.steps == 6
        assert progress.loss == pytest.approx(sum(progress.losses.values()) / len(progress.losses))
        assert progress.seconds_left >= 0
    return [progress.loss for progress in seen], trainer


@pytest.mark.parametrize("stop_after", [1, 4])
def test_a_resumed_run_is_an_unbroken_run(
    tmp_path: Path, table: QueryTable, make_samples: MakeSamples, stop_after: int
) -> None:
    samples = make_samples(*DEPARTMENTS)
    unbroken, whole = new_run(tmp_path / "whole", table, samples)
    assert len(unbroken) == 6
    first, _ = new_run(tmp_path / "parts", table, samples, stop_after=stop_after)
    assert len(first) == stop_after
    # Another process: its weights and random numbers are others until the checkpoint is loaded.
    rest, resumed = new_run(tmp_path / "parts", table, samples, seed=99)
    assert first + rest == pytest.approx(unbroken, abs=1e-6)
    for name, tensor in whole.trained.items():
        torch.testing.assert_close(resumed.trained[name], tensor, atol=1e-6, rtol=1e-6)
    assert new_run(tmp_path / "parts", table, samples)[0] == []  # finished


def test_workers_change_nothing(tmp_path: Path, table: QueryTable, make_samples: MakeSamples) -> None:
    samples = make_samples(*DEPARTMENTS)
    alone, _ = new_run(tmp_path / "alone", table, samples)
    helped, _ = new_run(tmp_path / "helped", table, samples, workers=2)
    assert helped == pytest.approx(alone, abs=1e-6)


def test_state_is_saved_on_the_way(
    tmp_path: Path, table: QueryTable, make_samples: MakeSamples, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "SAVE_EVERY_S", -1.0)
    torch.manual_seed(0)
    trainer = trainer_of(Decomposition(build_segmenter("tiny"), ranks={"abdomen": 1}), table, steps=5)

    class PowerCut(Exception):
        pass

    def report(progress: Progress) -> None:
        if progress.step == 3:
            raise PowerCut

    with pytest.raises(PowerCut):
        run(
            trainer,
            make_samples("abdomen"),
            batch_size=1,
            checkpoint=tmp_path / "run.pt",
            report=report,
            stop=lambda: False,
            workers=0,
        )
    state = load_checkpoint(tmp_path / "run.pt")
    assert state is not None
    assert state["step"] == 2


def test_refuses_the_state_of_another_run(decomposition: Decomposition, table: QueryTable) -> None:
    trainer = trainer_of(decomposition, table)
    others = {
        "fewer departments": Decomposition(build_segmenter("tiny"), ranks={"abdomen": 1}),
        "another rank": Decomposition(build_segmenter("tiny"), ranks=dict.fromkeys(DEPARTMENTS, 2)),
    }
    states = [trainer_of(other, table).state() for other in others.values()]
    for state in [*states, {"step": 3}]:
        with pytest.raises(
            ValueError, match="belongs to another network or other departments; remove it to start anew"
        ):
            trainer.load(state)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_become_a_question_and_their_handlers_come_back(number: signal.Signals) -> None:
    def mine(*arguments: object) -> None:
        raise AssertionError("the handler of before was called")

    kept = {each: signal.signal(each, mine) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        with stop_on_signal() as stop:
            assert stop() is False
            os.kill(os.getpid(), number)
            assert stop() is True
        assert all(signal.getsignal(each) is mine for each in kept)
        with pytest.raises(KeyError), stop_on_signal():
            raise KeyError
        assert all(signal.getsignal(each) is mine for each in kept)
    finally:
        for each, handler in kept.items():
            signal.signal(each, handler)


def test_a_step_that_is_not_finite_leaves_the_weights_and_many_in_a_row_end_the_run(
    decomposition: Decomposition, table: QueryTable, make_samples: MakeSamples
) -> None:
    good = [make_samples(*DEPARTMENTS)[0]]
    bad = [replace(good[0], image=torch.full_like(good[0].image, math.nan))]
    trainer = trainer_of(decomposition, table, steps=100)
    before = copies(trainer.trained)
    trainer.train_step(bad)
    assert trainer.step == 1
    assert all(torch.equal(tensor, before[name]) for name, tensor in trainer.trained.items())
    trainer.train_step(good)
    assert all(tensor.isfinite().all() for tensor in trainer.trained.values())
    assert any(not torch.equal(tensor, before[name]) for name, tensor in trainer.trained.items())
    for _ in range(training.MOST_SKIPPED - 1):
        trainer.train_step(bad)
    with pytest.raises(ValueError, match=f"{training.MOST_SKIPPED} steps in a row are not finite; set a smaller"):
        trainer.train_step(bad)
