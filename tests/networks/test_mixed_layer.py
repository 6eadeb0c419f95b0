"""Tests of lorkd_monailabel.networks.mixed_layer, and of each way to compute a layer, against separate passes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from lorkd_monailabel.networks import mixed_batch
from lorkd_monailabel.networks.mixed_batch import (
    chosen,
    factored,
    mixed_forward,
    pointwise,
    pointwise_factored,
    split,
    stacked,
)
from lorkd_monailabel.networks.mixed_layer import Convolve

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
WAYS = [split, stacked, factored, chosen]


@dataclass
class Numbers:
    """What a layer and its batch are made of."""

    kernel: tuple[int, ...]
    stride: int = 1
    dilation: int = 1
    padding: Any = 0
    bias: bool = True
    channels: tuple[int, int] = (4, 5)
    ranks: dict[str, int] = field(default_factory=lambda: {"a": 1, "b": 2, "c": 3})
    departments: Sequence[str] = ("c", "a", "c")
    seed: int = 0


@st.composite
def numbers(draw: Callable) -> Numbers:
    axes = draw(st.integers(1, 3))
    return Numbers(
        kernel=tuple(draw(st.lists(st.integers(1, 3), min_size=axes, max_size=axes))),
        stride=draw(st.integers(1, 2)),
        dilation=draw(st.integers(1, 2)),
        padding=draw(st.integers(0, 2)),
        bias=draw(st.booleans()),
        channels=(draw(st.integers(1, 6)), draw(st.integers(1, 6))),
        ranks={name: draw(st.integers(1, 3)) for name in "abc"},
        departments=draw(st.lists(st.sampled_from("abc"), min_size=1, max_size=5)),
        seed=draw(st.integers(0, 1000)),
    )


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(case=numbers())
def test_layer_equals_separate_passes(passes: Any, way: Convolve, case: Numbers) -> None:
    torch.manual_seed(case.seed)
    sides = [case.dilation * (size - 1) + 1 + extra for size, extra in zip(case.kernel, (3, 2, 1), strict=False)]
    layer = CONVOLUTIONS[len(case.kernel)](
        *case.channels,
        case.kernel,
        stride=case.stride,
        padding=case.padding,
        dilation=case.dilation,
        bias=case.bias,
    ).double()
    inputs = torch.randn(len(case.departments), case.channels[0], *sides, dtype=torch.float64, requires_grad=True)
    factors = passes.make_factors(layer, case.ranks, ["weight"])
    found = mixed_forward(layer, inputs, case.departments, factors=factors, convolve=way)
    expected = passes.separate_passes(layer, inputs, case.departments, factors)
    assert passes.agree(found, expected)
    found_grads, expected_grads = (passes.gradients(out, inputs, layer, factors) for out in (found, expected))
    assert found_grads.keys() == expected_grads.keys()  # absent departments have no gradient at all
    for name, grad in expected_grads.items():
        assert passes.agree(found_grads[name], grad), name


@pytest.mark.parametrize("way", [pointwise, pointwise_factored], ids=lambda way: way.__name__)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("axes", [1, 2, 3])
def test_pointwise_equals_separate_passes(passes: Any, axes: int, stride: int, way: Convolve) -> None:
    torch.manual_seed(0)
    layer = CONVOLUTIONS[axes](4, 6, 1, stride=stride).double()
    inputs = torch.randn(4, 4, *[5] * axes, dtype=torch.float64, requires_grad=True)
    departments = ["b", "a", "b", "c"]
    factors = passes.make_factors(layer, {"a": 1, "b": 3, "c": 2}, ["weight"])
    found = mixed_forward(layer, inputs, departments, factors=factors, convolve=way)
    expected = passes.separate_passes(layer, inputs, departments, factors)
    assert passes.agree(found, expected)
    found_grads = passes.gradients(found, inputs, layer, factors)
    for name, grad in passes.gradients(expected, inputs, layer, factors).items():
        assert passes.agree(found_grads[name], grad), name


@pytest.mark.parametrize("way", [*WAYS, pointwise, pointwise_factored], ids=lambda way: way.__name__)
@pytest.mark.parametrize("middle", [(), (3,), (3, 2)])
def test_linear_equals_separate_passes(passes: Any, way: Convolve, middle: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(4, 6).double()
    inputs = torch.randn(3, *middle, 4, dtype=torch.float64, requires_grad=True)
    factors = passes.make_factors(layer, {"a": 1, "b": 3}, ["weight"])
    found = mixed_forward(layer, inputs, ["b", "a", "b"], factors=factors, convolve=way)
    expected = passes.separate_passes(layer, inputs, ["b", "a", "b"], factors)
    assert passes.agree(found, expected)
    found_grads = passes.gradients(found, inputs, layer, factors)
    for name, grad in passes.gradients(expected, inputs, layer, factors).items():
        assert passes.agree(found_grads[name], grad), name


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("kernel", [2, 3])
def test_padding_by_name(passes: Any, padding: str, kernel: int) -> None:
    layer = nn.Conv2d(3, 4, kernel, padding=padding).double()
    inputs = torch.randn(2, 3, 5, 6, dtype=torch.float64)
    factors = passes.make_factors(layer, {"a": 2, "b": 1}, ["weight"])
    for way in WAYS:
        found = mixed_forward(layer, inputs, ["b", "a"], factors=factors, convolve=way)
        assert passes.agree(found, passes.separate_passes(layer, inputs, ["b", "a"], factors))


def test_a_department_may_leave_a_layer_as_it_is(passes: Any) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 1)).double()
    factors = passes.make_factors(network, {"a": 2}, ["0.weight", "1.weight"]) | passes.make_factors(
        network, {"b": 2}, ["1.weight"]
    )
    images = torch.randn(3, 3, 5, 5, dtype=torch.float64)
    for way in WAYS:
        found = mixed_forward(network, images, list("bab"), factors=factors, convolve=way)
        assert passes.agree(found, passes.separate_passes(network, images, list("bab"), factors))


@pytest.mark.parametrize(
    ("layer", "side", "samples", "way"),
    [
        (nn.Conv2d(4, 3, 3), 64, 1, "stacked"),
        (nn.Conv2d(4, 3, 3), 64, 2, "split"),
        (nn.Conv2d(4, 64, 3), 4, 1, "factored"),
        (nn.Conv2d(4, 64, 3), 4, 2, "factored"),
        (nn.Conv2d(4, 3, 1), 64, 1, "pointwise"),
        (nn.Conv2d(4, 3, 1), 4, 1, "pointwise_factored"),
        (nn.Conv2d(4, 3, 1, padding=1), 64, 1, "stacked"),
        (nn.Linear(4, 3), 1, 1, "pointwise_factored"),
    ],
)
def test_the_way_follows_from_the_shapes(
    passes: Any, layer: nn.Module, side: int, samples: int, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = []
    for name in ("split", "stacked", "factored", "pointwise", "pointwise_factored"):
        original = getattr(mixed_batch, name)
        monkeypatch.setattr(mixed_batch, name, lambda x, own, f=original: taken.append(f.__name__) or f(x, own))
    factors = passes.make_factors(layer.double(), {"a": 1, "b": 1}, ["weight"])
    shape = (4,) if isinstance(layer, nn.Linear) else (4, side, side)
    images = torch.randn(2 * samples, *shape, dtype=torch.float64)
    mixed_forward(layer, images, ["a", "b"] * samples, factors=factors)
    assert taken == [way]
