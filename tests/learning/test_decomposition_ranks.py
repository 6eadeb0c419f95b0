"""Tests of the ranks of lorkd_monailabel.learning.decomposition: given, kept, and out of the warm-up (LoRKD*)."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lorkd_monailabel.learning.decomposition import Decomposition
from lorkd_monailabel.learning.ranks import RankChoice, RankRule
from lorkd_monailabel.learning.samples import Samples
from lorkd_monailabel.learning.training import Interrupted
from lorkd_monailabel.networks.segmenter import build_segmenter
from lorkd_monailabel.text_encoder import QueryTable

MakeSamples = Callable[..., Samples]
RunPhases = Callable[..., list[tuple[str, int, float]]]
DEPARTMENTS = ("abdomen", "thorax")
STAR = RankRule("loss_reduction", rank=4, least=1, most=8)


def untied(seed: int = 0) -> Decomposition:
    torch.manual_seed(seed)
    return Decomposition(build_segmenter("tiny"))


def test_lorkd_star_warms_up_without_experts_and_then_trains_those_of_other_ranks(
    tmp_path: Path, table: QueryTable, make_samples: MakeSamples, run_phases: RunPhases
) -> None:
    decomposition, told = untied(), []
    base = {name: tensor.detach().clone() for name, tensor in decomposition.weights.items()}

    def ranked(choices: dict[str, RankChoice]) -> None:
        assert not all(
            torch.equal(tensor, base[name]) for name, tensor in decomposition.weights.items()
        )  # after the warm-up, before the joint phase
        assert not any(tensor.any() for name, tensor in decomposition.factor_tensors().items() if "lora_b" in name)
        assert not (tmp_path / "joint.pt").exists()
        told.append(choices)

    def no_experts(phase: str, step: int) -> None:
        assert bool(decomposition.factors) == (phase == "joint")

    samples = make_samples(*DEPARTMENTS)
    seen = run_phases(
        decomposition, tmp_path, table, samples, steps=(5, 2), rule=STAR, probe_samples=2, ranked=ranked, at=no_experts
    )
    assert [row[0] for row in seen] == ["warmup"] * 5 + ["joint"] * 2
    (choices,) = told
    assert list(choices) == list(DEPARTMENTS)
    reductions = [choice.reduction for choice in choices.values()]
    assert reductions[0] != reductions[1]
    ranks = [choice.rank for choice in choices.values()]
    assert ranks[0] != ranks[1]
    assert (ranks[0] > ranks[1]) == (reductions[0] > reductions[1])
    for department, rank in zip(DEPARTMENTS, ranks, strict=True):
        assert decomposition.rank_of(department) == rank
        assert any(lora_b.any() for lora_b in decomposition.factors[department].lora_b)


def test_what_the_probe_measures_is_the_loss_of_the_base(
    tmp_path: Path, table: QueryTable, make_samples: MakeSamples, run_phases: RunPhases
) -> None:
    """The warm-up of no learning rate leaves every loss as it was: equal reductions of zero, and the rank r for all."""
    decomposition, told = untied(), []
    samples = make_samples(*DEPARTMENTS)
    settings = {"rule": STAR, "probe_samples": 2, "learning_rate": 0.0, "ranked": told.append}
    run_phases(decomposition, tmp_path, table, samples, steps=(2, 0), **settings)
    assert {(own.rank, own.reason, own.reduction) for own in told[0].values()} == {(4, "nothing_learned", 0.0)}


@pytest.mark.parametrize("stop_at", [("warmup", 1), ("warmup", 5), ("joint", 1)])
def test_a_resumed_lorkd_star_has_the_ranks_and_weights_of_an_unbroken_one(
    tmp_path: Path, table: QueryTable, make_samples: MakeSamples, run_phases: RunPhases, stop_at: tuple[str, int]
) -> None:
    samples = make_samples(*DEPARTMENTS)
    settings = {"steps": (5, 2), "rule": STAR, "probe_samples": 2}
    whole, resumed, told = untied(), untied(), []
    run_phases(whole, tmp_path / "whole", table, samples, ranked=told.append, **settings)
    with pytest.raises(Interrupted):
        run_phases(untied(), tmp_path / "parts", table, samples, stop_at=stop_at, **settings)
    run_phases(resumed, tmp_path / "parts", table, samples, ranked=told.append, **settings)
    assert {name: own.rank for name, own in told[0].items()} == {name: own.rank for name, own in told[1].items()}
    for name, own in told[0].items():
        assert (own.before, own.after) == pytest.approx((told[1][name].before, told[1][name].after), abs=1e-6)
    expected = {**whole.weights, **whole.factor_tensors()}
    found = {**resumed.weights, **resumed.factor_tensors()}
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, atol=1e-6, rtol=1e-6)
    # Other settings are another run, which the folder's state does not fit.
    with pytest.raises(ValueError, match=r"warmup\.pt is of a run with rule .*'least': 1.* this one has .*'least': 2"):
        run_phases(untied(), tmp_path / "parts", table, samples, **{**settings, "rule": replace(STAR, least=2)})
    with pytest.raises(
        ValueError, match=r"warmup\.pt is of a run with start [0-9a-f]{12}, this one has [0-9a-f]{12}; "
    ):
        run_phases(untied(seed=1), tmp_path / "parts", table, samples, **settings)


def test_ranks_that_are_given_or_kept_need_no_measurement(
    tmp_path: Path, table: QueryTable, make_samples: MakeSamples, run_phases: RunPhases
) -> None:
    samples, told = make_samples(*DEPARTMENTS, "spine"), []
    decomposition = Decomposition(build_segmenter("tiny"), ranks={"spine": 3})
    rule = replace(STAR, given={"abdomen": 1, "thorax": 8})
    run_phases(decomposition, tmp_path, table, samples, steps=(1, 1), rule=rule, ranked=told.append)
    assert {name: (own.rank, own.reason, own.before) for name, own in told[0].items()} == {
        "abdomen": (1, "given", None),
        "thorax": (8, "given", None),
        "spine": (3, "kept", None),
    }
    assert [decomposition.rank_of(name) for name in ("abdomen", "thorax", "spine")] == [1, 8, 3]
    assert not (tmp_path / "ranks.pt").exists()
    rule = replace(STAR, given={"brain": 1})
    with pytest.raises(
        ValueError, match=r"^ranks\.brain is of no department of the run; it has abdomen, thorax, spine$"
    ):
        run_phases(untied(), tmp_path, table, samples, rule=rule)


def test_ranks_are_free_for_each_department_and_layer() -> None:
    decomposition = Decomposition(build_segmenter("tiny"), decoder_multiplier=1, alpha=6.0)
    assert decomposition.factor_tensors() == {}
    with pytest.raises(
        ValueError, match=r"^department 'abdomen' has no factors \(there are: none\); attach a rank to it"
    ):
        decomposition.weights_of("abdomen")
    first, second, last = decomposition.layers
    decomposition.attach({"abdomen": 2, "thorax": 3}, layers={"thorax": {second: 6, last: 1}})
    assert decomposition.factors["abdomen"].ranks == {first: 2, second: 2, last: 2}
    assert decomposition.factors["thorax"].ranks == {first: 3, second: 6, last: 1}
    assert decomposition.factors["thorax"].scales == {first: 2.0, second: 1.0, last: 6.0}
    decomposition.attach({"spine": 1})
    assert list(decomposition.factors) == ["abdomen", "thorax", "spine"]
    fused = decomposition.weights_of("thorax")
    assert all(torch.equal(fused[name], tensor) for name, tensor in decomposition.weights.items())
    with pytest.raises(ValueError, match=r"^'query' is no layer that an expert changes; use one of unet\.encoder"):
        decomposition.attach({"brain": 1}, layers={"brain": {"query": 1}})
    with pytest.raises(ValueError, match=r"^layers of 'pelvis' have ranks but the department has none; give it one$"):
        decomposition.attach({"brain": 1}, layers={"pelvis": {first: 1}})
    with pytest.raises(ValueError, match=rf"^rank 5 of {first} must be in 1\.\.4"):
        decomposition.attach({"brain": 1}, layers={"brain": {first: 5}})
