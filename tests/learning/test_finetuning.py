"""Tests of lorkd_monailabel.learning.finetuning."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lorkd_monailabel.experts import Base, Expert, extract, fused_network, tensors_sha256
from lorkd_monailabel.learning.engine import Engine
from lorkd_monailabel.learning.finetuning import finetune
from lorkd_monailabel.learning.losses import Objective, task_loss
from lorkd_monailabel.learning.samples import Samples
from lorkd_monailabel.learning.training import Interrupted, Loop, Progress
from lorkd_monailabel.networks.low_rank import Factors
from lorkd_monailabel.store import ExpertStore
from lorkd_monailabel.text_encoder import QueryTable

MakeSamples = Callable[..., Samples]
NORM = "unet.encoder.0.0.norm.weight"


def train(
    base: Base,
    expert: Expert,
    folder: Path,
    table: QueryTable,
    samples: Samples,
    *,
    steps: int = 4,
    stop_after: int = 0,
    learning_rate: float = 1e-2,
    seen: list[Progress] | None = None,
) -> Factors:
    seen = [] if seen is None else seen
    torch.manual_seed(0)
    return finetune(
        base,
        expert,
        samples,
        Loop(2, lambda: bool(stop_after) and seen[-1].step == stop_after, workers=0),
        queries=table,
        steps=steps,
        learning_rate=learning_rate,
        objective=Objective(balance=0.5),
        engine=Engine(bf16=False),
        checkpoint=folder / "finetune.pt",
        report=seen.append,
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_retraining_a_department_leaves_every_other_file_as_it_is(
    tmp_path: Path,
    tiny_base: Base,
    make_expert: Callable[..., Expert],
    table: QueryTable,
    make_samples: MakeSamples,
) -> None:
    store = ExpertStore(tmp_path / "store")
    store.publish_base(tiny_base)
    for seed, department in enumerate(("abdomen", "thorax", "spine")):
        store.publish(make_expert(department, seed=seed))
    before = contents(store.folder)
    expert = store.load("abdomen")
    base = store.base(expert.base_sha256)
    factors = train(base, expert, tmp_path, table, make_samples("abdomen"))
    number = store.publish(
        extract(
            factors,
            department="abdomen",
            base_sha256=base.sha256,
            spacing_mm=expert.spacing_mm,
            structures=expert.structures,
            parent=expert.revision,
        )
    )
    after = contents(store.folder)
    assert number == 2
    assert after.keys() - before.keys() == {"abdomen/0002.safetensors"}
    assert {name: after[name] for name in before} == before
    retrained = store.load("abdomen")
    assert retrained.parent == 1
    for name, pair in retrained.factors.items():
        assert all(not torch.equal(new, old) for new, old in zip(pair, expert.factors[name], strict=True))


def test_arguments_stay_and_training_starts_from_the_expert(
    tmp_path: Path,
    tiny_base: Base,
    make_expert: Callable[..., Expert],
    table: QueryTable,
    make_samples: MakeSamples,
) -> None:
    expert = make_expert(rank=2, norms={NORM: torch.rand(4)})
    frozen = {**tiny_base.weights, **{f"a {name}": a for name, (a, _) in expert.factors.items()}, **expert.norms}
    before = tensors_sha256(frozen)
    untrained = train(tiny_base, expert, tmp_path / "none", table, make_samples("abdomen"), steps=0)
    for name, (lora_a, lora_b) in untrained.pairs().items():
        assert torch.equal(lora_a, expert.factors[name][0])
        assert torch.equal(lora_b, expert.factors[name][1])
    trained = train(tiny_base, expert, tmp_path / "some", table, make_samples("abdomen"))
    assert tensors_sha256(frozen) == before
    assert not any(tensor.requires_grad for tensor in frozen.values())
    assert (trained.ranks, trained.scales) == (expert.ranks, expert.scales)


def test_the_expert_learns_its_cases(
    tmp_path: Path,
    tiny_base: Base,
    make_expert: Callable[..., Expert],
    table: QueryTable,
    make_samples: MakeSamples,
) -> None:
    samples = make_samples("abdomen")
    expert = make_expert(rank=2)
    factors = train(tiny_base, expert, tmp_path, table, samples, steps=40, learning_rate=0.05)
    trained = replace(expert, factors={name: (a.detach(), b.detach()) for name, (a, b) in factors.pairs().items()})
    losses = []
    for each in (expert, trained):
        network = fused_network(tiny_base, each)
        own = []
        for index in range(1000, 1008):  # patches that were not trained on
            sample = samples[index]
            logits = network(sample.image[None], table.queries(sample.names, sample.modality))
            own.append(task_loss(logits, sample.masks[None]).item())
        losses.append(sum(own) / len(own))
    assert losses[1] < 0.95 * losses[0]


def test_half_precision_experts_are_trained_in_single(
    tmp_path: Path,
    tiny_base: Base,
    make_expert: Callable[..., Expert],
    table: QueryTable,
    make_samples: MakeSamples,
) -> None:
    base = replace(tiny_base, weights={name: tensor.half() for name, tensor in tiny_base.weights.items()})
    whole = make_expert(base_sha256=base.sha256)
    expert = replace(whole, factors={name: (a.half(), b.half()) for name, (a, b) in whole.factors.items()})
    factors = train(base, expert, tmp_path, table, make_samples("abdomen"), steps=2)
    assert {parameter.dtype for parameter in factors.parameters()} == {torch.float32}
    assert all(torch.isfinite(parameter).all() for parameter in factors.parameters())


def test_a_stopped_retraining_goes_on(
    tmp_path: Path,
    tiny_base: Base,
    make_expert: Callable[..., Expert],
    table: QueryTable,
    make_samples: MakeSamples,
) -> None:
    samples, expert = make_samples("abdomen"), make_expert()
    unbroken: list[Progress] = []
    whole = train(tiny_base, expert, tmp_path / "whole", table, samples, seen=unbroken)
    parts: list[Progress] = []
    with pytest.raises(Interrupted, match="stopped after step 3 of 4"):
        train(tiny_base, expert, tmp_path / "parts", table, samples, seen=parts, stop_after=3)
    resumed = train(tiny_base, expert, tmp_path / "parts", table, samples, seen=parts)
    assert [progress.loss for progress in parts] == pytest.approx([progress.loss for progress in unbroken], abs=1e-6)
    for one, other in zip(resumed.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-6)


def test_refuses_an_expert_of_another_base(
    tmp_path: Path,
    tiny_base: Base,
    make_expert: Callable[..., Expert],
    table: QueryTable,
    make_samples: MakeSamples,
) -> None:
    expert = make_expert(base_sha256="f" * 64, revision=2)
    with pytest.raises(ValueError, match=rf"abdomen/0002 belongs to base f{{12}}, not to {tiny_base.sha256[:12]}"):
        train(tiny_base, expert, tmp_path, table, make_samples("abdomen"))
    assert not list(tmp_path.iterdir())
