import functools

import pytest
import torch
from torch import nn

from lorkd_monailabel.networks.low_rank import Factors, layer_scales
from lorkd_monailabel.networks.mixed_batch import mixed_forward
from train.bench import mixed_adapters, ways
from train.bench.cases import Pixels
from train.bench.layers import Flora, paper
from train.bench.problem import make_problem
from train.bench.ways import FLOOR, MAKERS, make_ways

KNOWN = ("d0", "d1", "d2", "d3")
ORDER = ("d2", "d0", "d2", "d1")  # d3 is absent
EXACT = ("t_passes", "paper", "split", "stacked", "factored", "single_pass", "departments")


@functools.cache
def problem():
    """A tiny U-Net in float64 and a mixed batch in disorder."""
    torch.manual_seed(1)
    network = Pixels((4, 6)).double()
    names = [f"unet.{name}" for name in network.unet.low_rank_weights()]
    made = make_problem(network, (4, 1, 4, 4, 6), ORDER, names=names, known=KNOWN, rank=2)
    for each in made.factors.values():  # random biases too: a bias of zero would hide one that is applied wrongly
        assert all(tensor.abs().max() > 0 for tensor in each.parameters())
    with torch.no_grad():
        for name, tensor in network.named_parameters():
            if name.endswith("bias"):
                tensor.normal_()
    return made


def gradients(made):
    return {
        **{name: tensor.grad for name, tensor in made.network.named_parameters()},
        **{
            f"{department} {name}": tensor.grad
            for department, each in made.factors.items()
            for name, tensor in each.named_parameters()
        },
    }


@functools.cache
def one_by_one():
    """Outputs and gradients of a pass for each sample, with deltas in weights that are put together by hand."""
    made = problem()
    parts, loss = [], 0.0
    for tensor in made.tensors:
        tensor.grad = None
    for row, department in enumerate(ORDER):
        weights = dict(made.network.named_parameters())
        own = made.factors[department]
        for name, lora_a, lora_b in zip(own.names, own.lora_a, own.lora_b, strict=True):
            rank = own.ranks[name]
            assert own.scales[name] == 16 / rank
            weights[name] = weights[name] + 16 / rank * (lora_b @ lora_a).flatten().view(weights[name].shape)
        parts.append(torch.func.functional_call(made.network, weights, made.inputs[row : row + 1]))
        loss = loss + (parts[-1] * made.probe[row : row + 1]).sum() / len(ORDER)
    loss.backward()
    return torch.cat(parts).detach(), gradients(made), loss.item()


@pytest.mark.parametrize("name", EXACT)
def test_way_gives_outputs_and_gradients_of_separate_passes(name):
    made = problem()
    outputs, wanted, loss = one_by_one()
    phases = make_ways(made, [name])
    (forward,), (step,) = phases["forward"], phases["step"]
    found = forward.step()
    assert not found.requires_grad
    torch.testing.assert_close(found, outputs, rtol=1e-10, atol=1e-12)
    for tensor in made.tensors:
        tensor.grad = None
    assert step.step().item() == pytest.approx(loss, rel=1e-10)
    for key, grad in gradients(made).items():
        if key.startswith("d3"):
            assert grad is None or not grad.any()
            if name not in ("paper", "t_passes"):  # as published, absent departments get zeros
                assert grad is None
        else:
            torch.testing.assert_close(grad, wanted[key], rtol=1e-10, atol=1e-12, msg=key)


def test_experts_matter_and_the_floor_has_none():
    made = problem()
    outputs, _, _ = one_by_one()
    (floor,) = make_ways(made, [FLOOR])["forward"]
    torch.testing.assert_close(floor.step(), made.network(made.inputs).detach())
    assert (floor.step() - outputs).abs().max() > 1e-3


def test_paper_computes_strides_pointwise_and_linear_layers():
    torch.manual_seed(2)
    network = nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=2, padding=1), nn.Conv2d(4, 3, 1, bias=False), nn.Flatten(2), nn.Linear(4, 5)
    ).double()
    weights = dict(network.named_parameters())
    ranks = {"0.weight": 2, "1.weight": 1, "3.weight": 3}
    factors = {name: Factors(weights, ranks=ranks, scales=layer_scales(ranks)).double() for name in KNOWN}
    for each in factors.values():
        for lora_b in each.lora_b:
            nn.init.normal_(lora_b)
    images = torch.randn(4, 2, 4, 4, dtype=torch.float64)
    found = mixed_forward(network, images, ORDER, factors=factors, convolve=paper)
    for row, department in enumerate(ORDER):
        own = factors[department]
        fused = dict(weights)
        for name, (lora_a, lora_b) in own.pairs().items():
            fused[name] = weights[name] + own.scales[name] * (lora_b @ lora_a).view(weights[name].shape)
        alone = torch.func.functional_call(network, fused, images[row : row + 1])
        torch.testing.assert_close(found[row : row + 1], alone, rtol=1e-10, atol=1e-12)


def test_flora_scales_the_weight_of_each_sample():
    torch.manual_seed(3)
    network = nn.Sequential(nn.Conv3d(3, 4, 3, stride=2, padding=1)).double()
    weights = dict(network.named_parameters())
    factors = {name: Factors(weights, ranks={"0.weight": 2}, scales={"0.weight": 8.0}).double() for name in KNOWN}
    flora = Flora(weights, factors)
    images = torch.randn(4, 3, 4, 4, 4, dtype=torch.float64)
    found = mixed_forward(network, images, ORDER, factors=factors, convolve=flora)
    (incoming,), (outgoing,) = flora.incoming.values(), flora.outgoing.values()
    assert incoming.shape == (4, 2, 3)
    for row, department in enumerate(ORDER):
        index = KNOWN.index(department)
        scale = torch.einsum("ro,ri->oi", outgoing[index], incoming[index])  # sum_r a_r b_r^T
        weight = weights["0.weight"] * scale[:, :, None, None, None]
        alone = nn.functional.conv3d(images[row], weight, weights["0.bias"], 2, 1)
        torch.testing.assert_close(found[row], alone, rtol=1e-10, atol=1e-12)


def test_bf16_is_close():
    made = problem()
    outputs, _, _ = one_by_one()
    network = Pixels((4, 6))
    network.load_state_dict(made.network.state_dict())
    factors = {}
    for name, each in made.factors.items():
        factors[name] = Factors(dict(network.named_parameters()), ranks=each.ranks, scales=each.scales)
        factors[name].load_pairs({key: (a.float(), b.float()) for key, (a, b) in each.pairs().items()})
    single = ways.Problem(network, made.inputs.float(), ORDER, factors, made.probe.float(), bf16=True)
    for name in ("paper", "single_pass", "departments"):
        (way,) = make_ways(single, [name])["forward"]
        difference = way.step().double() - outputs
        assert 1e-6 < difference.norm() / outputs.norm() < 2e-2, name


def test_losses_of_parts_add_up():
    made = problem()
    outputs, _, _ = one_by_one()
    parts = [made.loss(outputs[made.rows(name)], made.rows(name)) for name in made.present]
    assert made.present == ("d2", "d0", "d1")
    assert sum(parts).item() == pytest.approx(made.loss(outputs).item(), rel=1e-12)
    assert made.rows("d3").tolist() == []


def test_a_way_that_is_left_out_says_why(monkeypatch):
    monkeypatch.setattr(mixed_adapters, "find_spec", lambda name: None)
    phases = make_ways(problem(), [FLOOR, "flora", "peft"], notes={"flora": "too large"})
    for found in phases.values():
        assert [(way.name, way.step is None, way.note) for way in found] == [
            (FLOOR, False, ""),
            ("flora", True, "too large"),
            ("peft", True, mixed_adapters.INSTALL),
        ]
    with pytest.raises(ValueError, match=r"there is no way 'lora'; use some of plain"):
        make_ways(problem(), ["lora"])


def test_peft_refuses_what_it_cannot_replace(monkeypatch):
    monkeypatch.setattr(mixed_adapters, "find_spec", lambda name: "there")
    assert mixed_adapters.refusal(problem()) == ""
    alone = make_problem(nn.Conv2d(2, 2, 1), (2, 2, 2, 2), ("d0", "d1"), names=["weight"], known=KNOWN, rank=1)
    assert "a network of a single layer" in mixed_adapters.refusal(alone)


def test_every_way_is_measured_somewhere():
    from train.bench import cases

    assert {*cases.LAYER_WAYS, *cases.UNET_WAYS, *cases.CLASSIFIER_WAYS} == set(MAKERS)
