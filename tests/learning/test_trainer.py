"""Tests of lorkd_monailabel.learning.trainer."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from lorkd_monailabel.experts import fuse
from lorkd_monailabel.learning import engine as engine_module
from lorkd_monailabel.learning import trainer as trainer_module
from lorkd_monailabel.learning.decomposition import Decomposition
from lorkd_monailabel.learning.engine import Engine
from lorkd_monailabel.learning.losses import Objective, task_loss, transfer_loss
from lorkd_monailabel.learning.samples import Sample, Samples
from lorkd_monailabel.learning.trainer import schedule
from lorkd_monailabel.networks.segmenter import build_segmenter
from lorkd_monailabel.teachers.network import NetworkTeacher
from lorkd_monailabel.text_encoder import QueryTable
from tests.learning.trainers import DEPARTMENTS, copies, trainer_of

MakeSamples = Callable[..., Samples]


@pytest.fixture
def decomposition() -> Decomposition:
    """Three departments with factors that are not zero, without dropout."""
    torch.manual_seed(0)
    decomposition = Decomposition(build_segmenter("tiny").eval(), ranks=dict.fromkeys(DEPARTMENTS, 1))
    for name, tensor in decomposition.factor_tensors().items():
        if "lora_b" in name:
            torch.nn.init.normal_(tensor, std=0.1)
    return decomposition


def one_of_each(samples: Samples, departments: Sequence[str]) -> list[Sample]:
    found = {sample.department: sample for sample in (samples[index] for index in range(12))}
    return [found[department] for department in departments]


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
    trainer = trainer_of(decomposition, table, teacher=asked, objective=Objective(3.0, transfer, balance=0.5))
    assert trainer.train_step([sample])["abdomen"] == pytest.approx(expected.item(), rel=1e-5)
    assert all(parameter.grad is None for parameter in foundation.parameters())


def test_transfer_is_the_divergence_unless_asked_and_an_unknown_form_is_refused_at_once(
    decomposition: Decomposition, table: QueryTable
) -> None:
    assert trainer_of(decomposition, table).objective.transfer == "bernoulli"
    with pytest.raises(ValueError, match="transfer form 'kl' is unknown; use one of bernoulli, sum"):
        Objective(transfer="kl")


def test_half_precision_is_close(decomposition: Decomposition, table: QueryTable, make_samples: MakeSamples) -> None:
    batch = one_of_each(make_samples(*DEPARTMENTS), DEPARTMENTS)
    state = copies(trainer_of(decomposition, table).trained)
    losses = {}
    for bf16 in (False, True):
        trainer = trainer_of(decomposition, table, engine=Engine(bf16=bf16))
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
    for _ in range(trainer_module.MOST_SKIPPED - 1):
        trainer.train_step(bad)
    with pytest.raises(ValueError, match=f"{trainer_module.MOST_SKIPPED} steps in a row are not finite; set a smaller"):
        trainer.train_step(bad)


def test_parts_of_a_batch_have_its_gradients_and_one_graph_at_a_time(
    decomposition: Decomposition, table: QueryTable, make_samples: MakeSamples
) -> None:
    samples = make_samples(*DEPARTMENTS)
    batch = [samples[index] for index in range(6)]
    decomposition.network.train()  # dropout as well is the same
    state = copies(trainer_of(decomposition, table).trained)
    found = {}
    for parts in (1, 2, 6):
        trainer = trainer_of(decomposition, table, engine=Engine(bf16=False, accumulate=parts))
        trainer.dropout_seed = 3
        with torch.no_grad():
            for name, tensor in trainer.trained.items():
                tensor.copy_(state[name])
        alive: list[int] = []
        largest, loss = [0], trainer.loss

        def counted(*arguments: object, loss=loss, alive=alive, largest=largest) -> Tensor:
            result = loss(*arguments)
            alive.append(1)
            result.register_hook(lambda gradient: alive.pop() and None)
            largest[0] = max(largest[0], len(alive))
            return result

        trainer.loss = counted  # type: ignore[method-assign]
        losses = trainer.train_step(batch)
        found[parts] = losses, {name: tensor.grad for name, tensor in trainer.trained.items()}, largest[0]
    names = sorted(sample.department for sample in batch)
    most = {
        parts: max(max(Counter(names[start : start + 6 // parts]).values()) for start in range(0, 6, 6 // parts))
        for parts in (1, 2, 6)
    }
    assert most[1] > 1
    assert {parts: alive for parts, (_, _, alive) in found.items()} == most
    for losses, gradients, _ in found.values():
        assert losses == pytest.approx(found[1][0], abs=1e-6)
        for name, gradient in found[1][1].items():
            if gradient is None:
                assert gradients[name] is None
            else:
                torch.testing.assert_close(gradients[name], gradient, atol=1e-6, rtol=0)


def test_dropout_follows_the_number_of_the_sample_alone(
    decomposition: Decomposition, table: QueryTable, make_samples: MakeSamples
) -> None:
    samples = make_samples("abdomen")
    decomposition.network.train()
    state = copies(trainer_of(decomposition, table).trained)

    def loss(seed: int, place: int, *, step: int = 0) -> float:
        trainer = trainer_of(decomposition, table)
        trainer.dropout_seed, trainer.step = seed, step
        with torch.no_grad():
            for name, tensor in trainer.trained.items():
                tensor.copy_(state[name])
        torch.rand(place + seed)  # what was drawn before is of no concern
        seen: list[float] = []
        measured = trainer.loss
        trainer.loss = lambda *arguments: (seen.append((found := measured(*arguments)).item()), found)[1]  # type: ignore
        trainer.train_step([samples[0]] * 2)
        return seen[place]

    first = loss(1, 0)
    assert loss(1, 0) == first
    assert len({first, loss(1, 1), loss(2, 0), loss(1, 0, step=1)}) == 4
    assert loss(1, 0, step=1) != loss(1, 1, step=1)


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch would hide it, but makes an error of it before
@pytest.mark.parametrize("kind", ["eager", "inductor"])
def test_compiled_networks_compute_the_same(
    decomposition: Decomposition,
    table: QueryTable,
    make_samples: MakeSamples,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
) -> None:
    (sample,) = one_of_each(make_samples("abdomen"), ["abdomen"])
    plain = trainer_of(decomposition, table)
    weights = plain.weights("abdomen")
    if kind == "eager":
        for module in (trainer_module, engine_module):
            monkeypatch.setattr(module, "BACKEND", kind)
        compiled = trainer_of(decomposition, table, engine=Engine(bf16=False, compile=True))
        assert compiled.loss(sample, weights).item() == pytest.approx(plain.loss(sample, weights).item(), abs=1e-6)
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    else:  # a compiler takes its time for a network; that there is none must be said before the first step
        monkeypatch.setenv("CXX", "no-such-compiler")
        monkeypatch.setattr(torch._inductor.config.cpp, "cxx", ("no-such-compiler",))
        with pytest.raises(ValueError, match=r"but nothing can be compiled here \(.*install a C\+\+ compiler"):
            trainer_of(decomposition, table, engine=Engine(bf16=False, compile=True))


def test_other_errors_stay_what_they_are(tmp_path: Path, table: QueryTable, make_samples: MakeSamples) -> None:
    trainer = trainer_of(Decomposition(build_segmenter("tiny"), ranks={"abdomen": 1}), table, steps=5)

    def broken(*arguments: object) -> Tensor:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    trainer.loss = broken  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        trainer.train_step([make_samples("abdomen")[0]])
