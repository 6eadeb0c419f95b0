"""Tests of lorkd_monailabel.networks.mixed_batch, against a pass for each department and sample in float64."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lorkd_monailabel.networks.low_rank import Factors
from lorkd_monailabel.networks.mixed_batch import chosen, factored, mixed_forward, split, stacked
from lorkd_monailabel.networks.mixed_layer import Convolve, Layer

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
WAYS = [split, stacked, factored, chosen]


class Net2d(nn.Module):
    """Convolutions of several kernels with batch normalisation between, and a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 6, 3, stride=2, padding=1),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.Conv2d(6, 6, 3, padding=1, groups=6),
            nn.Conv2d(6, 8, 1, bias=False),
            nn.BatchNorm2d(8),
        )
        self.head = nn.Linear(8, 5)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        features = self.body(images).relu().mean((2, 3))
        return {"features": features, "logits": self.head(features)}


NAMES = ["body.0.weight", "body.4.weight", "head.weight"]


def each_sample(inputs: Tensor, layer: Layer) -> Tensor:
    """Convolve sample by sample with its own fused weight: what every way must come to."""
    rows = []
    for department, samples in layer.batch.present:
        lora_a, lora_b, scale = layer.pair(department)
        weight = layer.weight + scale * (lora_b @ lora_a).reshape(layer.weight.shape)
        rows += [
            layer.operator(inputs[i : i + 1], weight, layer.bias, **layer.arguments)
            for i in range(*samples.indices(len(inputs)))
        ]
    return torch.cat(rows)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize("departments", ["cacab", "aaaaa", "abcab", "ccbba"])
def test_network_with_batch_statistics(passes: Any, way: Convolve, departments: str) -> None:
    torch.manual_seed(0)
    network = Net2d().double().train()
    factors = passes.make_factors(network, {"a": 1, "b": 2, "c": 3}, NAMES)
    images = torch.randn(5, 3, 9, 9, dtype=torch.float64, requires_grad=True)
    results = []
    for convolve in (way, each_sample):
        copied = copy.deepcopy(network)
        outputs = mixed_forward(copied, images, list(departments), factors=factors, convolve=convolve)
        loss = torch.cat([outputs["features"], outputs["logits"]], dim=1)
        results.append((loss, passes.gradients(loss, images, copied, factors), copied.body[1].running_var))
    (found, grads, statistics), (expected, expected_grads, expected_statistics) = results
    assert passes.agree(found, expected)
    assert passes.agree(statistics, expected_statistics)
    assert grads.keys() == expected_grads.keys()
    assert not any(name.startswith(f"{absent}.") for absent in set("abc") - set(departments) for name in grads)
    largest = max(grad.abs().max() for grad in expected_grads.values())
    for name, grad in expected_grads.items():  # a bias before batch normalisation has a gradient of zero
        assert (grads[name] - grad).abs().max() <= 1e-10 * max(grad.abs().max(), 1e-3 * largest), name


def test_statistics_are_those_of_the_mixed_batch(passes: Any) -> None:
    network = Net2d().double().train()
    factors = passes.make_factors(network, {"a": 2, "b": 2}, NAMES)
    images = torch.randn(4, 3, 9, 9, dtype=torch.float64)
    mixed = mixed_forward(copy.deepcopy(network), images, ["a", "b", "a", "b"], factors=factors)["logits"]
    only_a = mixed_forward(copy.deepcopy(network), images[[0, 2]], ["a", "a"], factors=factors)["logits"]
    assert not torch.allclose(mixed[[0, 2]], only_a)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_outputs_are_in_the_order_of_the_batch(passes: Any, way: Convolve) -> None:
    torch.manual_seed(0)
    network = nn.Conv2d(3, 4, 3).double()
    factors = passes.make_factors(network, {"a": 2, "b": 2, "c": 1}, ["weight"])
    images = torch.randn(5, 3, 6, 6, dtype=torch.float64)
    departments = list("bcaab")
    expected = mixed_forward(network, images, departments, factors=factors, convolve=way)
    order = [3, 0, 4, 2, 1]
    moved = mixed_forward(network, images[order], [departments[i] for i in order], factors=factors, convolve=way)
    assert passes.agree(moved, expected[order])


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize("axes", [2, 3])
def test_bfloat16_autocast(passes: Any, way: Convolve, axes: int) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(CONVOLUTIONS[axes](6, 8, 3, padding=1), nn.Tanh(), CONVOLUTIONS[axes](8, 4, 3))
    names = ["0.weight", "2.weight"]
    factors = {name: own.float() for name, own in passes.make_factors(network, {"a": 2, "b": 2}, names).items()}
    for own in factors.values():
        for tensor in own.parameters():
            tensor.data *= 0.1
    images = torch.randn(4, 6, *[6] * axes, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        found = mixed_forward(network, images, list("abba"), factors=factors, convolve=way)
    expected = passes.separate_passes(network, images, list("abba"), factors)
    assert found.dtype == torch.bfloat16
    assert passes.agree(found.float(), expected, 2e-2)
    found_grads = passes.gradients(found.float(), images, network, factors)
    for name, grad in passes.gradients(expected, images, network, factors).items():
        assert passes.agree(found_grads[name], grad, 2e-2), name


def test_absent_departments_do_not_move(passes: Any) -> None:
    torch.manual_seed(0)
    network = Net2d().train()
    factors = {name: own.float() for name, own in passes.make_factors(network, {"a": 2, "b": 2, "c": 2}, NAMES).items()}
    everything = [*network.parameters(), *(tensor for own in factors.values() for tensor in own.parameters())]
    optimizer = torch.optim.SGD(everything, lr=0.1, momentum=0.9, weight_decay=0.1)
    images = torch.randn(3, 3, 9, 9)

    def step(departments: str) -> None:
        optimizer.zero_grad(set_to_none=True)
        mixed_forward(network, images, list(departments), factors=factors)["logits"].square().sum().backward()
        optimizer.step()

    step("abc")  # every department has momentum now
    before = {name: [tensor.detach().clone() for tensor in own.parameters()] for name, own in factors.items()}
    step("aca")
    for name, own in factors.items():
        same = [torch.equal(old, new) for old, new in zip(before[name], own.parameters(), strict=True)]
        assert all(same) if name == "b" else not any(same)


def test_cost_does_not_grow_with_the_number_of_departments(passes: Any) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    network = nn.Sequential(nn.Conv2d(6, 32, 3, padding=1), nn.Conv2d(32, 6, 1)).double()
    images = torch.randn(4, 6, 8, 8, dtype=torch.float64)
    counts = []
    for total in (4, 64):
        factors = passes.make_factors(
            network, {f"d{number:02}": 2 for number in range(total)}, ["0.weight", "1.weight"]
        )
        with FlopCounterMode(display=False) as counter:
            mixed_forward(network, images, ["d00", "d01", "d02", "d03"], factors=factors).sum().backward()
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0


def test_split_keeps_no_fused_weight_for_the_backward_pass(passes: Any) -> None:
    network = nn.Conv2d(32, 32, 3)
    factors = {
        name: own.float() for name, own in passes.make_factors(network, dict.fromkeys("abcd", 1), ["weight"]).items()
    }
    images = torch.randn(4, 32, 3, 3, dtype=torch.float64)
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.numel()) or tensor, lambda t: t):
        mixed_forward(network, images, list("abcd"), factors=factors, convolve=split)
    assert kept.count(network.weight.numel()) == 1  # the base's, once


def test_refusals(passes: Any) -> None:
    network = nn.Sequential(nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3, groups=2))
    images = torch.randn(2, 4, 7, 7)
    factors = {name: own.float() for name, own in passes.make_factors(network, {"a": 1}, ["0.weight"]).items()}
    with pytest.raises(ValueError, match="3 departments for 2 images; name one for each image"):
        mixed_forward(network, images, ["a", "a", "a"], factors=factors)
    with pytest.raises(ValueError, match="department 'b' has no factors; there are those of: a"):
        mixed_forward(network, images, ["a", "b"], factors=factors)
    grouped = {"a": Factors(dict(network.named_parameters()), ranks={"1.weight": 1}, scales={"1.weight": 1.0})}
    with pytest.raises(ValueError, match=r"1\.weight is a convolution of 2 groups"):
        mixed_forward(network, images, ["a", "a"], factors=grouped)
    with pytest.raises(ValueError, match=r"a has factors of '0\.weight', which the network lacks"):
        mixed_forward(nn.Conv2d(4, 4, 3), images, ["a", "a"], factors=factors)

    class Folds(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(2, 4, 3)

        def forward(self, images: Tensor) -> Tensor:
            return self.conv(images.reshape(-1, 2, *images.shape[2:]))

    folding = Folds()
    folded = {name: own.float() for name, own in passes.make_factors(folding, {"a": 1}, ["conv.weight"]).items()}
    with pytest.raises(ValueError, match=r"conv\.weight is given 4 rows for a batch of 2 images"):
        mixed_forward(folding, images, ["a", "a"], factors=folded)
    assert math.isfinite(mixed_forward(network, images, ["a", "a"], factors=factors).sum().item())
