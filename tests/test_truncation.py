"""Tests of lorkd_monailabel.truncation: smaller experts of one that is trained, and what is done with them."""

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lorkd_monailabel.departments import structure
from lorkd_monailabel.experts import Base, Expert, fused_network, tensors_sha256
from lorkd_monailabel.learning.engine import Engine
from lorkd_monailabel.learning.finetuning import finetune
from lorkd_monailabel.learning.losses import Objective
from lorkd_monailabel.learning.samples import Samples
from lorkd_monailabel.learning.training import Loop
from lorkd_monailabel.networks.low_rank import Factors, delta_weight, factor_shapes
from lorkd_monailabel.predictor import Predictor
from lorkd_monailabel.prompts import Target
from lorkd_monailabel.store import ExpertStore
from lorkd_monailabel.text_encoder import QueryTable
from lorkd_monailabel.truncation import kept_energy, truncate
from lorkd_monailabel.volumes import Grid, Volume

ENCODER = "unet.encoder.0.0.conv.weight"
DECODER = "unet.decoder.0.0.conv.weight"
NORM = "unet.encoder.0.0.norm.weight"


def all_tensors(expert: Expert) -> dict[str, torch.Tensor]:
    pairs = expert.factors.items()
    return {**{f"a {name}": a for name, (a, _) in pairs}, **{f"b {name}": b for name, (_, b) in pairs}, **expert.norms}


def deltas(expert: Expert, base: Base) -> dict[str, torch.Tensor]:
    return {
        name: delta_weight(a.double(), b.double(), base.weights[name].shape, expert.scales[name])
        for name, (a, b) in expert.factors.items()
    }


@pytest.fixture
def expert(tiny_base: Base, make_expert: Callable[..., Expert]) -> Expert:
    """Rank 4 in the encoder, 8 in the decoder, as after a training."""
    single = make_expert(rank=1)
    ranks = {name: 8 if "decoder" in name else 4 for name in single.ranks}
    generator = torch.Generator().manual_seed(0)
    factors = {
        name: tuple(
            torch.randn(shape, generator=generator) for shape in factor_shapes(tiny_base.weights[name].shape, rank)
        )
        for name, rank in ranks.items()
    }
    return replace(
        single,
        factors=factors,
        ranks=ranks,
        scales={name: 0.4 / rank for name, rank in ranks.items()},
        norms={NORM: torch.rand(4, generator=generator)},
        revision=3,
        parent=1,
        metrics={"liver": 0.9},
        about={"cases": 7},
    )


def test_rank_is_the_smallest_of_the_layers(expert: Expert) -> None:
    assert {expert.ranks[ENCODER], expert.ranks[DECODER]} == {4, 8}
    assert expert.rank == 4
    assert replace(expert, factors={}, scales={}, ranks={}).rank == 0


def test_each_layer_keeps_its_share_and_all_else_is_said(expert: Expert, tiny_base: Base) -> None:
    before = tensors_sha256(all_tensors(expert)), tiny_base.sha256
    smaller = truncate(expert, 2)
    assert {name: (each, smaller.ranks[name]) for name, each in expert.ranks.items()} == {
        name: (8, 4) if "decoder" in name else (4, 2) for name in expert.ranks
    }
    for name, pair in smaller.factors.items():
        shapes = factor_shapes(tiny_base.weights[name].shape, smaller.ranks[name])
        assert tuple(tensor.shape for tensor in pair) == shapes
    assert (smaller.rank, smaller.revision, smaller.parent, smaller.metrics) == (2, 0, 3, {})
    assert smaller.about == {"cases": 7, "truncated_from": {"rank": 4, "revision": 3}}
    kept = {field.name for field in fields(Expert)} - {"factors", "ranks", "revision", "parent", "metrics", "about"}
    assert {"scales", "norms", "structures", "base_sha256"} < kept
    assert all(getattr(smaller, name) == getattr(expert, name) for name in kept - {"norms"})
    assert smaller.norms is expert.norms
    assert (tensors_sha256(all_tensors(expert)), tiny_base.sha256) == before
    assert (expert.about, expert.metrics) == ({"cases": 7}, {"liver": 0.9})


def test_shares_are_rounded_up(expert: Expert) -> None:
    odd = replace(expert, ranks={ENCODER: 4, DECODER: 6}, factors={ENCODER: (), DECODER: ()})
    shapes = {ENCODER: ((12, 9), (12, 12)), DECODER: ((18, 108), (12, 18))}
    odd = replace(odd, factors={name: tuple(torch.randn(shape) for shape in pair) for name, pair in shapes.items()})
    ranks = [tuple(truncate(odd, rank).ranks[name] for name in (ENCODER, DECODER)) for rank in (1, 2, 3, 4)]
    assert ranks == [(1, 2), (2, 3), (3, 5), (4, 6)]  # of 6: 1.5, 3, 4.5, 6


def test_error_is_that_of_the_singular_values_that_go(expert: Expert, tiny_base: Base) -> None:
    whole, energy = deltas(expert, tiny_base), kept_energy(expert)
    assert energy.keys() == expert.factors.keys()
    for rank in (1, 2, 3):
        smaller = truncate(expert, rank)
        for name, delta in deltas(smaller, tiny_base).items():
            values = torch.linalg.svdvals(whole[name].reshape(delta.shape[0] * 3, -1))
            dropped = (values[3 * smaller.ranks[name] :] ** 2).sum().item()
            size = whole[name].norm().item()
            assert (whole[name] - delta).norm().item() == pytest.approx(dropped**0.5, rel=1e-4, abs=1e-5 * size)
            kept = energy[name][smaller.ranks[name]].item()
            assert kept == pytest.approx(size**2 - dropped, rel=1e-9)
    for name, each in energy.items():
        assert each.shape == (expert.ranks[name] + 1,)
        assert each[0] == 0
        assert (each.diff() >= 0).all()


def test_the_whole_rank_gives_the_same_network(expert: Expert, tiny_base: Base) -> None:
    image, queries = torch.randn(1, 1, 4, 4, 4), torch.randn(2, 384)
    expected = fused_network(tiny_base, expert)(image, queries)
    same = truncate(expert, expert.rank)
    torch.testing.assert_close(fused_network(tiny_base, same)(image, queries), expected, atol=1e-5, rtol=1e-5)
    assert same.ranks == expert.ranks
    assert not torch.allclose(same.factors[DECODER][0], expert.factors[DECODER][0], atol=0.1)
    smaller = fused_network(tiny_base, truncate(expert, 1))(image, queries)
    assert (smaller - expected).abs().max() > 1e-3


def test_nested_ranks(expert: Expert) -> None:
    once, twice = truncate(expert, 1), truncate(replace(truncate(expert, 2), revision=4), 1)
    assert once.ranks == twice.ranks
    for name, pair in once.factors.items():
        for one, other in zip(pair, twice.factors[name], strict=True):
            torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
    assert (twice.parent, twice.about["truncated_from"]) == (4, {"rank": 2, "revision": 4})


def test_half_precision_stays_half(expert: Expert, tiny_base: Base) -> None:
    for dtype in (torch.float16, torch.bfloat16):
        half = replace(expert, factors={name: (a.to(dtype), b.to(dtype)) for name, (a, b) in expert.factors.items()})
        smaller = truncate(half, 2)
        assert {tensor.dtype for pair in smaller.factors.values() for tensor in pair} == {dtype}
        expected = deltas(truncate(expert, 2), tiny_base)
        for name, delta in deltas(smaller, tiny_base).items():
            assert (delta - expected[name]).norm() < 0.03 * expected[name].norm()


def test_an_expert_without_a_delta_is_truncated_and_can_learn(expert: Expert) -> None:
    new = replace(expert, factors={name: (a, torch.zeros_like(b)) for name, (a, b) in expert.factors.items()})
    assert all(not energy.any() for energy in kept_energy(new).values())
    for lora_a, lora_b in truncate(new, 1).factors.values():
        assert lora_a.any(dim=1).all()
        assert not lora_b.any()


def test_a_truncated_expert_is_published_served_and_trained_on(
    tmp_path: Path,
    expert: Expert,
    tiny_base: Base,
    table: QueryTable,
    make_samples: Callable[..., Samples],
) -> None:
    store = ExpertStore(tmp_path / "store")
    store.publish_base(tiny_base)
    store.publish(expert)
    smaller = truncate(store.load("abdomen"), 2)
    assert store.publish(smaller) == 2
    loaded = store.load("abdomen")
    assert loaded == replace(smaller, factors=loaded.factors, norms=loaded.norms, revision=2)
    assert tensors_sha256(all_tensors(loaded)) == tensors_sha256(all_tensors(smaller))

    volume = Volume(np.random.default_rng(0).normal(0, 300, (8, 6, 8)), Grid((8, 6, 8), np.diag([3.0, 3, 3, 1])), "ct")
    (answer,) = Predictor(store, device="cpu").segment(volume, [Target("liver", structure("liver"))]).answers
    assert answer.revision == 2

    torch.manual_seed(0)
    factors: Factors = finetune(
        tiny_base,
        loaded,
        make_samples("abdomen"),
        Loop(1, lambda: False, workers=0),
        queries=table,
        steps=1,
        learning_rate=1e-2,
        objective=Objective(balance=0.5),
        engine=Engine(bf16=False),
        checkpoint=tmp_path / "finetune.pt",
        report=lambda progress: None,
    )
    assert (factors.ranks, factors.scales) == (smaller.ranks, expert.scales)
    for name, pair in factors.pairs().items():
        for new, old in zip(pair, loaded.factors[name], strict=True):
            assert new.shape == old.shape
            assert not torch.equal(new, old)


def test_what_can_not_be_truncated_is_one_sentence(expert: Expert) -> None:
    for rank in (0, -1, 5, 2.0, True, "2", None):
        with pytest.raises(
            ValueError, match=rf"^rank {rank!r} of abdomen/0003 must be a whole number in 1\.\.4; ranks"
        ):
            truncate(expert, rank)  # type: ignore[arg-type]
    empty = replace(expert, factors={}, scales={}, ranks={})
    with pytest.raises(ValueError, match=r"^expert abdomen/0003 has rank 0, below 1, and can't be truncated; train"):
        truncate(empty, 1)
    assert kept_energy(empty) == {}


def test_damaged_factors_are_named(expert: Expert) -> None:
    lora_a, lora_b = expert.factors[ENCODER]
    damaged = [
        (lora_a[:-1], lora_b[:, :-1]),  # 11 rows at rank 4
        (lora_a[:-1], lora_b),
        (lora_a[:0], lora_b[:, :0]),
        (lora_a[0], lora_b),
        (lora_a, lora_b[None]),
        (torch.tensor(1.0), torch.tensor(1.0)),
        (lora_a * torch.nan, lora_b),
        (lora_a, lora_b / 0),
    ]
    for pair in damaged:
        broken = replace(expert, factors={**expert.factors, ENCODER: pair})
        for function in (lambda broken=broken: truncate(broken, 2), lambda broken=broken: kept_energy(broken)):
            with pytest.raises(
                ValueError, match=rf"^factors \(.*\) of {ENCODER} are not finite ones of rank 4; restore"
            ):
                function()
