"""Tests of lorkd_monailabel.learning.decomposition."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from lorkd_monailabel.experts import Base, Expert, extract, fused_network
from lorkd_monailabel.learning.decomposition import Decomposition
from lorkd_monailabel.learning.samples import Samples
from lorkd_monailabel.learning.training import Interrupted
from lorkd_monailabel.networks.segmenter import SIZES, build_segmenter
from lorkd_monailabel.store import ExpertStore
from lorkd_monailabel.text_encoder import QueryTable

MakeSamples = Callable[..., Samples]
RunPhases = Callable[..., list[tuple[str, int, float]]]
DEPARTMENTS = ("abdomen", "thorax")


def tiny(rank: int = 1, seed: int = 0) -> Decomposition:
    torch.manual_seed(seed)
    return Decomposition(build_segmenter("tiny"), ranks=dict.fromkeys(DEPARTMENTS, rank))


def copies(tensors: dict[str, Any]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def changed(tensors: dict[str, Any], before: dict[str, Tensor]) -> set[str]:
    return {name for name, tensor in tensors.items() if not torch.equal(tensor, before[name])}


@pytest.mark.parametrize(
    ("size", "ranks", "parameters"),
    [("nano", (12, 10, 10, 4, 8, 8, 12, 2), 67_315_458), ("pro", (4, 4, 4, 4, 4, 16, 12, 12), 127_861_884)],
)
def test_parameter_counts_of_the_released_ranks(size: str, ranks: tuple[int, ...], parameters: int) -> None:
    with torch.device("meta"):
        decomposition = Decomposition(build_segmenter(size))
        decomposition.attach({str(number): rank for number, rank in enumerate(ranks)})
    tensors = [*decomposition.weights.values(), *decomposition.factor_tensors().values()]
    assert sum(tensor.numel() for tensor in tensors) == parameters


@pytest.mark.parametrize(
    ("size", "rank", "millions"),
    [
        ("nano", 4, 62.12),
        ("nano", 8, 67.01),
        ("nano", 16, 76.78),
        ("pro", 4, 119.15),
        ("pro", 8, 129.11),
        ("pro", 16, 149.02),
    ],
)
def test_parameter_counts_of_the_paper(size: str, rank: int, millions: float) -> None:
    with torch.device("meta"):
        decomposition = Decomposition(build_segmenter(size), ranks={str(number): rank for number in range(8)})
    factors = sum(tensor.numel() for tensor in decomposition.factor_tensors().values())
    assert factors == 8 * rank * {"nano": 152_721, "pro": 311_121}[size]
    base = sum(tensor.numel() for tensor in decomposition.weights.values())
    assert round((base + factors) / 1e6, 2) == millions


def test_every_department_starts_as_the_base() -> None:
    decomposition = tiny(rank=2)
    for department in DEPARTMENTS:
        fused = decomposition.weights_of(department)
        assert all(torch.equal(fused[name], tensor) for name, tensor in decomposition.weights.items())
    names = set(decomposition.factor_tensors())
    assert names == {f"{d}.lora_{ab}.{layer}" for d in DEPARTMENTS for ab in "ab" for layer in range(3)}
    ranks = decomposition.factors["abdomen"].ranks
    assert ranks == {
        "unet.encoder.0.0.conv.weight": 2,
        "unet.encoder.1.0.conv.weight": 2,
        "unet.decoder.0.0.conv.weight": 4,
    }
    assert set(decomposition.factors["abdomen"].scales.values()) == {8.0, 4.0}


def test_a_layer_takes_no_more_rank_than_it_can_use() -> None:
    ranks = Decomposition(build_segmenter("tiny"), ranks={"abdomen": 5}).factors["abdomen"].ranks
    assert ranks == {
        "unet.encoder.0.0.conv.weight": 4,  # four outputs
        "unet.encoder.1.0.conv.weight": 5,
        "unet.decoder.0.0.conv.weight": 4,  # four outputs, though the decoder asks for ten
    }
    with pytest.raises(ValueError, match="rank 1 and decoder multiplier 0 must be at least 1; set them higher"):
        Decomposition(build_segmenter("tiny"), decoder_multiplier=0)


@pytest.mark.parametrize("rank", [0, 9, 500])
def test_a_rank_that_no_layer_can_use_is_refused_by_department(rank: int) -> None:
    sentence = (
        rf"^rank {rank} of abdomen must be in 1\.\.8, what the largest layer of the network can use; set ranks\.abd"
    )
    with pytest.raises(ValueError, match=sentence):
        Decomposition(build_segmenter("tiny"), ranks={"abdomen": rank})
    assert Decomposition(build_segmenter("tiny"), ranks={"abdomen": 8}).rank_of("abdomen") == 8


def test_warm_up_moves_the_base_alone_and_then_both_learn(
    tmp_path: Path, table: QueryTable, make_samples: MakeSamples, run_phases: RunPhases
) -> None:
    decomposition, samples = tiny(), make_samples(*DEPARTMENTS)
    base, factors = copies(decomposition.weights), copies(decomposition.factor_tensors())
    seen = run_phases(decomposition, tmp_path, table, samples, steps=(2, 0))
    assert [row[:2] for row in seen] == [("warmup", 1), ("warmup", 2)]
    unused = {name for name in base if ".norm1." in name}
    assert changed(decomposition.weights, base) == set(base) - unused
    assert changed(decomposition.factor_tensors(), factors) == set()
    warm = copies(decomposition.weights)
    seen = run_phases(decomposition, tmp_path, table, samples)
    assert [row[:2] for row in seen] == [("joint", 1), ("joint", 2), ("joint", 3)]
    assert changed(decomposition.weights, warm) == set(base) - unused
    assert changed(decomposition.factor_tensors(), factors) == set(factors)


@pytest.mark.parametrize("stop_at", [("warmup", 1), ("warmup", 2), ("joint", 1)])
def test_a_resumed_decomposition_is_an_unbroken_one(
    tmp_path: Path, table: QueryTable, make_samples: MakeSamples, run_phases: RunPhases, stop_at: tuple[str, int]
) -> None:
    samples = make_samples(*DEPARTMENTS)
    whole = tiny()
    unbroken = run_phases(whole, tmp_path / "whole", table, samples)
    assert [row[:2] for row in unbroken] == [("warmup", 1), ("warmup", 2), ("joint", 1), ("joint", 2), ("joint", 3)]
    with pytest.raises(Interrupted, match=rf"stopped after step {stop_at[1]} of"):
        run_phases(tiny(), tmp_path / "parts", table, samples, stop_at=stop_at)
    resumed = tiny()
    rest = run_phases(resumed, tmp_path / "parts", table, samples)
    expected = unbroken[len(unbroken) - len(rest) :]
    assert len(rest) == {("warmup", 1): 4, ("warmup", 2): 3, ("joint", 1): 2}[stop_at]
    assert [row[:2] for row in rest] == [row[:2] for row in expected]
    assert [row[2] for row in rest] == pytest.approx([row[2] for row in expected], abs=1e-6)
    for name, tensor in {**whole.weights, **whole.factor_tensors()}.items():
        own = {**resumed.weights, **resumed.factor_tensors()}[name]
        torch.testing.assert_close(own, tensor, atol=1e-6, rtol=1e-6)


def published(decomposition: Decomposition, dtype: torch.dtype = torch.float32) -> tuple[Base, dict[str, Expert]]:
    base = decomposition.base(network=SIZES["tiny"], window=8, query_space="space", about={"steps": 3}, dtype=dtype)
    experts = {
        department: extract(
            factors,
            department=department,
            base_sha256=base.sha256,
            spacing_mm=3.0,
            structures=("liver",),
            dtype=dtype,
        )
        for department, factors in decomposition.factors.items()
    }
    return base, experts


def test_what_is_served_is_what_was_trained(
    tmp_path: Path, table: QueryTable, make_samples: MakeSamples, run_phases: RunPhases
) -> None:
    decomposition = tiny(rank=2)
    run_phases(decomposition, tmp_path, table, make_samples(*DEPARTMENTS), steps=(1, 3))
    base, experts = published(decomposition)
    assert (base.window, base.query_space, base.about, base.revision) == ((8, 8, 8), "space", {"steps": 3}, 0)
    image, queries = torch.randn(1, 1, 8, 8, 8), table.queries(["liver", "heart"], "mri")
    answers = {}
    for department, expert in experts.items():
        trained = functional_call(
            decomposition.network.eval(), dict(decomposition.weights_of(department)), (image, queries)
        )
        answers[department] = fused_network(base, expert)(image, queries)
        torch.testing.assert_close(answers[department], trained, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(answers["abdomen"], answers["thorax"], atol=1e-4)
    kept = base.weights["query_projection.weight"].clone()
    with torch.no_grad():
        decomposition.weights["query_projection.weight"].add_(1)
    assert torch.equal(base.weights["query_projection.weight"], kept)
    half, halves = published(decomposition, torch.float16)
    assert {tensor.dtype for tensor in half.weights.values()} == {torch.float16}
    assert torch.isfinite(fused_network(half, halves["thorax"])(image, queries)).all()


def test_goes_on_from_a_store(
    tmp_path: Path, table: QueryTable, make_samples: MakeSamples, run_phases: RunPhases
) -> None:
    first = tiny()
    run_phases(first, tmp_path, table, make_samples(*DEPARTMENTS))
    base, experts = published(first)
    second = tiny(seed=5)
    second.load(base, [experts["thorax"]])
    assert changed(second.weights, copies(first.weights)) == set()
    for name, fused in second.weights_of("thorax").items():
        assert torch.equal(fused, first.weights_of("thorax")[name])
    for name, fused in second.weights_of("abdomen").items():
        assert torch.equal(fused, base.weights[name])


def test_experts_of_unequal_ranks_come_back_with_their_ranks_and_scales(tmp_path: Path) -> None:
    first = Decomposition(build_segmenter("tiny"), alpha=3.0)
    layer = next(iter(first.layers))
    first.attach({"abdomen": 2, "thorax": 5}, layers={"abdomen": {layer: 1}})
    for tensor in first.factor_tensors().values():
        torch.nn.init.normal_(tensor)
    base, experts = published(first)
    store = ExpertStore(tmp_path)
    store.publish_base(base)
    for expert in experts.values():
        store.publish(expert)
    assert store.header("abdomen")["ranks"] == dict(zip(first.layers, (1, 2, 4), strict=True))
    assert store.header("thorax")["ranks"] == dict(zip(first.layers, (4, 5, 4), strict=True))
    second = Decomposition(build_segmenter("tiny"))
    second.load(store.base(), [store.load("abdomen"), store.load("thorax")])
    for department in DEPARTMENTS:
        assert second.factors[department].ranks == first.factors[department].ranks
        for name, fused in second.weights_of(department).items():
            assert torch.equal(fused, first.weights_of(department)[name])
    fewer = replace(experts["thorax"], ranks={layer: 1})
    with pytest.raises(ValueError, match=r"^the expert of thorax changes other layers than this network's; give the"):
        Decomposition(build_segmenter("tiny")).load(base, [fewer])


def test_refuses_a_base_of_another_network_and_experts_of_other_ranks() -> None:
    base, experts = published(tiny(rank=2))
    with pytest.raises(ValueError, match="base is another network; give the config the same network size"):
        tiny().load(replace(base, weights={"a": torch.zeros(1)}), [])
    wide = {name: torch.zeros(3, *tensor.shape) for name, tensor in base.weights.items()}
    with pytest.raises(ValueError, match="base is another network; give the config the same network size"):
        tiny().load(replace(base, weights=wide), [])
    with pytest.raises(ValueError, match=r"has shape \(6, 9\), expected \(3, 9\)"):
        tiny().load(base, [experts["abdomen"]])
