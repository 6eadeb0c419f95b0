"""Tests of lorkd_monailabel.learning.probe."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lorkd_monailabel.learning.checkpoint import load_checkpoint
from lorkd_monailabel.learning.engine import Engine
from lorkd_monailabel.learning.probe import SEED, Probe, finite_pairs, means
from lorkd_monailabel.learning.ranks import RankChoice
from lorkd_monailabel.learning.samples import Samples
from lorkd_monailabel.learning.trainer import Trainer
from lorkd_monailabel.learning.training import Interrupted
from lorkd_monailabel.networks.segmenter import Segmenter, build_segmenter
from lorkd_monailabel.teachers.network import NetworkTeacher
from lorkd_monailabel.text_encoder import QueryTable

MakeSamples = Callable[..., Samples]
Pairs = dict[str, tuple[float, float]]


@pytest.fixture
def network() -> Segmenter:
    torch.manual_seed(0)
    return build_segmenter("tiny")


@pytest.fixture
def make_probe(
    tmp_path: Path, network: Segmenter, table: QueryTable, make_samples: MakeSamples
) -> Callable[..., Probe]:
    """Make a probe of the tiny network over two departments, whose ranks are whatever it is told to give."""
    torch.manual_seed(1)
    foundation = build_segmenter("tiny").eval()
    weights = dict(network.named_parameters())

    def make(samples: Samples | None = None, **changed: Any) -> Probe:
        trainer = Trainer(
            network,
            lambda department: weights,
            [(weights, 1e-2)],
            queries=table,
            steps=3,
            teacher=NetworkTeacher(foundation, table),
            engine=Engine(bf16=False),
        )
        told: dict[str, Any] = {
            "count": 3,
            "path": tmp_path / "ranks.pt",
            "run": {"seed": 0, "warmup_steps": 3},
            "stop": lambda: False,
            "choose": lambda losses: {
                name: RankChoice(2, "loss_reduction", before, after) for name, (before, after) in losses.items()
            },
        }
        return Probe(trainer, samples or make_samples("abdomen", "thorax"), **{**told, **changed})

    return make


MakeProbe = Callable[..., Probe]


def move(network: nn.Module) -> None:
    with torch.no_grad():
        for tensor in network.parameters():
            tensor.mul_(1.1)


def test_the_same_samples_are_measured_without_dropout_before_and_after(
    tmp_path: Path, network: Segmenter, make_probe: MakeProbe, make_samples: MakeSamples
) -> None:
    asked: list[tuple[str, tuple[str, ...], float]] = []
    probe = make_probe()
    loss = probe.trainer.loss

    def spy(sample: Any, weights: Any) -> Any:
        assert not any(module.training for module in network.modules())
        assert not torch.is_grad_enabled()
        asked.append((sample.department, sample.names, sample.image.sum().item()))
        return loss(sample, weights)

    probe.trainer.loss = spy  # type: ignore[method-assign]
    network.train()
    network.query_decoder.eval()
    modes = [module.training for module in network.modules()]
    random = torch.get_rng_state()
    probe.begin(tmp_path / "warmup.pt")
    before, asked[:] = list(asked), []
    unmoved = probe.finish()
    assert before == asked
    assert [module.training for module in network.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random)
    assert [name for name, _, _ in asked] == ["abdomen"] * 3 + ["thorax"] * 3
    assert {name for _, names, _ in asked[:3] for name in names} <= {"liver", "spleen"}
    assert all(own.before == own.after and own.samples == 3 for own in unmoved.values())
    expected = make_samples("abdomen", seed=SEED)[0]
    assert asked[0] == ("abdomen", expected.names, expected.image.sum().item())


def test_a_department_is_measured_the_same_whatever_others_there_are_and_however_often_it_is_drawn(
    tmp_path: Path, make_probe: MakeProbe, make_samples: MakeSamples
) -> None:
    alone, among = make_samples("abdomen"), make_samples("abdomen", "spine")
    among.weights = {"abdomen": 0.0, "spine": 1.0}
    found = []
    for samples in (alone, among):
        probe = make_probe(samples)
        probe.begin(tmp_path / "none.pt")
        found.append(probe.found["before"]["abdomen"])
    assert found[0] == found[1]
    assert len(set(found[0])) == 3


def test_a_resumed_run_has_the_losses_and_ranks_that_it_had(
    tmp_path: Path, network: Segmenter, make_probe: MakeProbe
) -> None:
    checkpoint = tmp_path / "warmup.pt"
    probe = make_probe()
    probe.begin(checkpoint)
    before = means(finite_pairs(probe.found["before"], probe.found["before"]))
    checkpoint.touch()  # killed in the warm-up
    move(network)
    resumed = make_probe()
    resumed.begin(checkpoint)
    choices = resumed.finish()
    for name, own in choices.items():
        assert own.before == before[name][0]
        assert own.before != own.after
    move(network)  # killed in the joint phase: what was chosen stands, whatever a measurement would say now
    again = make_probe(choose=lambda losses: pytest.fail("the ranks are known"))
    again.begin(checkpoint)
    assert again.finish() == choices


def test_a_new_run_does_not_pick_up_what_another_found(
    tmp_path: Path, network: Segmenter, make_probe: MakeProbe
) -> None:
    checkpoint = tmp_path / "warmup.pt"
    probe = make_probe()
    probe.begin(checkpoint)
    old = probe.finish()
    move(network)
    anew = make_probe()
    anew.begin(checkpoint)  # no checkpoint: the warm-up begins
    assert "choices" not in (load_checkpoint(tmp_path / "ranks.pt") or {})
    assert anew.found["before"] != probe.found["before"]
    assert anew.finish() != old
    checkpoint.touch()
    other = make_probe(run={"seed": 0, "warmup_steps": 4})
    with pytest.raises(
        ValueError, match=r"warmup\.pt is of a run with warmup_steps 3, this one has 4; set it back, or "
    ):
        other.begin(checkpoint)
    (tmp_path / "ranks.pt").unlink()
    with pytest.raises(ValueError, match=r"warmup\.pt is of a warm-up that began without a probe; remove it to start"):
        make_probe().begin(checkpoint)


def test_it_can_be_stopped_and_leaves_nothing_half(tmp_path: Path, make_probe: MakeProbe) -> None:
    with pytest.raises(
        Interrupted, match="stopped while the losses of the departments were measured; run again to go on"
    ):
        make_probe(stop=lambda: True).begin(tmp_path / "warmup.pt")
    assert list(tmp_path.iterdir()) == []


def test_what_ranks_can_not_follow_from_is_refused_before_the_warm_up(tmp_path: Path, make_probe: MakeProbe) -> None:
    def refuse(losses: Pairs) -> dict[str, RankChoice]:
        raise ValueError("no rank")

    with pytest.raises(ValueError, match="no rank"):
        make_probe(choose=refuse).begin(tmp_path / "warmup.pt")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="probe_samples 0 must be at least 1; set probe_samples in the config"):
        make_probe(count=0)


def test_samples_without_a_finite_loss_are_left_out_of_both_means() -> None:
    pairs = finite_pairs(
        {"brain": [1.0, math.nan, 3.0, 7.0], "spine": [math.nan]}, {"brain": [0.5, 9.0, 1.5, math.inf], "spine": [1.0]}
    )
    assert pairs["brain"] == [(1.0, 0.5), (3.0, 1.5)]
    found = means(pairs)
    assert found["brain"] == (2.0, 1.0)
    assert math.isnan(found["spine"][0])
