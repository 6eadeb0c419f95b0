"""Tests of lorkd_monailabel.networks.low_rank."""

import math

import pytest
import torch
from torch import Tensor, nn

from lorkd_monailabel.networks.low_rank import (
    Factors,
    decomposable,
    delta_weight,
    factor_shapes,
    layer_ranks,
    layer_scales,
    rank_limit,
)

WEIGHTS = {
    "1x1x1": (6, 5, 1, 1, 1),
    "3x3x3": (6, 5, 3, 3, 3),
    "3x3x1": (6, 5, 3, 3, 1),
    "1x3x3": (6, 5, 1, 3, 3),
    "1x1x3": (6, 5, 1, 1, 3),
    "2d": (6, 5, 3, 3),
    "1d": (6, 5, 3),
    "linear": (6, 5),
}
SHAPES = {  # at rank 2, from method and paper: A (r k0, Cin k1 k2), B (Cout k0, r k0)
    "1x1x1": ((2, 5), (6, 2)),
    "3x3x3": ((6, 45), (18, 6)),
    "3x3x1": ((6, 15), (18, 6)),
    "1x3x3": ((2, 45), (6, 2)),
    "1x1x3": ((2, 15), (6, 2)),
    "2d": ((6, 15), (18, 6)),
    "1d": ((6, 5), (18, 6)),
    "linear": ((2, 5), (6, 2)),
}
CONVOLUTIONS = {5: nn.functional.conv3d, 4: nn.functional.conv2d, 3: nn.functional.conv1d}


def random_factors(shape: tuple[int, ...], rank: int) -> tuple[Tensor, Tensor]:
    a_shape, b_shape = factor_shapes(shape, rank)
    return torch.randn(a_shape, dtype=torch.float64), torch.randn(b_shape, dtype=torch.float64)


@pytest.mark.parametrize("kind", WEIGHTS)
def test_factor_shapes(kind: str) -> None:
    assert factor_shapes(WEIGHTS[kind], 2) == SHAPES[kind]


def test_factor_shapes_of_cubic_kernels_are_the_papers() -> None:
    for rank, inputs, outputs in ((8, 64, 32), (4, 3, 16)):
        assert factor_shapes((outputs, inputs, 3, 3, 3), rank) == ((rank * 3, inputs * 9), (outputs * 3, rank * 3))
        a, b = factor_shapes((outputs, inputs, 3, 3, 3), rank)
        assert math.prod(a) + math.prod(b) == rank * 3 * (inputs * 9 + outputs * 3)


@pytest.mark.parametrize("kind", WEIGHTS)
def test_delta_weight_is_the_row_major_reshape_of_the_product(kind: str) -> None:
    shape = WEIGHTS[kind]
    lora_a, lora_b = random_factors(shape, 2)
    delta = delta_weight(lora_a, lora_b, shape, 1.5)
    first, columns = (shape[2] if len(shape) > 2 else 1), lora_a.shape[1]
    assert delta.shape == shape
    for flat in range(math.prod(shape)):
        # Element (o k + i, j) of B A is the flat element (o k + i) C_in k^2 + j of the weight.
        row, column = divmod(flat, columns)
        output, rest = divmod(flat, math.prod(shape[1:]))
        assert row == output * first + rest // columns
        expected = 1.5 * sum(float(lora_b[row, inner] * lora_a[inner, column]) for inner in range(len(lora_a)))
        assert delta.flatten()[flat].item() == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_row_block_of_a_cubic_kernel_selects_the_third_of_the_inputs() -> None:
    shape = (2, 6, 3, 3, 3)
    lora_a, lora_b = random_factors(shape, 1)
    lora_b[1::3] = 0  # row block i = 1 of every output
    untouched = delta_weight(lora_a, lora_b, shape, 1.0).abs().sum(dim=(0, 2, 3, 4)) == 0
    assert untouched.tolist() == [False, False, True, True, False, False]


def low_rank_forward(image: Tensor, factors: tuple[Tensor, Tensor], shape: tuple[int, ...], stride: int) -> Tensor:
    """Run ``B A`` on the patches of a padded image without ever building a weight."""
    lora_a, lora_b = factors
    kernel = shape[2:]
    patches = image
    for axis, size in enumerate(kernel, start=2):
        patches = patches.unfold(axis, size, stride)
    spatial = len(kernel)
    # (B, C, positions..., kernel...) -> (B, positions..., C * kernel)
    patches = patches.movedim(1, spatial + 1).flatten(spatial + 1)
    first = kernel[0]
    columns = lora_a.shape[1]
    result = 0
    for block in range(first):
        part = patches[..., block * columns : (block + 1) * columns]
        result = result + part @ lora_a.T @ lora_b[block::first].T
    return result.movedim(-1, 1)


@pytest.mark.parametrize("kind", [kind for kind in WEIGHTS if kind != "linear"])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rank", [1, 2])
def test_fused_convolution_is_convolution_plus_low_rank_forward(kind: str, stride: int, bias: bool, rank: int) -> None:
    shape = WEIGHTS[kind]
    convolution = CONVOLUTIONS[len(shape)]
    factors = tuple(factor.float() for factor in random_factors(shape, rank))
    weight = torch.randn(shape)
    offset = torch.randn(shape[0]) if bias else None
    image = torch.randn(2, shape[1], *([7, 6, 5][: len(shape) - 2]))
    fused = convolution(image, weight + delta_weight(*factors, shape, 0.5), offset, stride=stride)
    apart = convolution(image, weight, offset, stride=stride) + 0.5 * low_rank_forward(image, factors, shape, stride)
    torch.testing.assert_close(fused, apart, atol=1e-5 * float(apart.abs().max()), rtol=1e-5)


def test_linear_layer_is_ordinary_low_rank_adaptation() -> None:
    lora_a, lora_b = random_factors((6, 5), 2)
    x = torch.randn(3, 5, dtype=torch.float64)
    torch.testing.assert_close(x @ delta_weight(lora_a, lora_b, (6, 5), 2.0).T, 2 * (x @ lora_a.T @ lora_b.T))


@pytest.mark.parametrize(
    ("shape", "limit"),
    [((32, 1, 3, 3, 3), 27), ((64, 3, 3, 3, 3), 64), ((4, 64, 3, 3, 3), 4), ((6, 5), 5), ((2, 1, 1), 1)],
)
def test_rank_limit_is_that_of_the_weight_as_a_matrix(shape: tuple[int, ...], limit: int) -> None:
    assert rank_limit(shape) == limit
    for rank in (limit, limit + 1):
        delta = delta_weight(*random_factors(shape, rank), shape, 1.0)
        assert int(torch.linalg.matrix_rank(delta.reshape(shape[0], -1))) == limit


def test_new_factors_change_nothing_and_can_learn() -> None:
    weights = {"conv": torch.randn(6, 5, 3, 3, 3), "other": torch.randn(4, 4)}
    factors = Factors(weights, ranks={"conv": 2}, scales={"conv": 8.0, "other": 1.0})
    lora_a, lora_b = factors.pairs()["conv"]
    assert set(factors.pairs()) == {"conv"}
    assert factors.scales == {"conv": 8.0}
    assert not delta_weight(lora_a, lora_b, (6, 5, 3, 3, 3), 8.0).any()
    bound = 1 / math.sqrt(lora_a.shape[1])  # Kaiming-uniform with a = sqrt(5)
    assert 0.5 * bound < lora_a.abs().max() <= bound
    assert {name for name, _ in factors.named_parameters()} == {"lora_a.0", "lora_b.0"}


def test_refuses_ranks_out_of_range_and_of_unknown_weights() -> None:
    weights = {"conv": torch.empty(16, 1, 3, 3, 3)}
    for rank in (0, -1, 17):
        with pytest.raises(ValueError, match=rf"rank {rank} of conv must be in 1\.\.16; set a smaller rank"):
            Factors(weights, ranks={"conv": rank}, scales={"conv": 1.0})
    with pytest.raises(ValueError, match="'head' is no weight of the network"):
        Factors(weights, ranks={"head": 1}, scales={"head": 1.0})


def test_decomposable_weights_are_those_of_convolutions_and_linear_layers() -> None:
    network = nn.ModuleDict({"conv": nn.Conv3d(2, 4, (1, 3, 3)), "line": nn.Linear(3, 2), "pure": nn.Conv1d(1, 2, 1)})
    weights = decomposable(network, ["conv.weight", "line.weight", "pure.weight"])
    assert all(weights[name] is network.get_parameter(name) for name in weights)
    assert list(weights) == ["conv.weight", "line.weight", "pure.weight"]


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (nn.Conv2d(4, 4, 3, groups=2), r"here\.weight is a convolution of 2 groups; only those of one group can have"),
        (nn.ConvTranspose3d(4, 4, 2), r"here\.weight belongs to a ConvTranspose3d; only convolutions and linear"),
        (nn.BatchNorm2d(4), r"here\.weight belongs to a BatchNorm2d; only convolutions and linear layers"),
        (nn.ReLU(), r"'here\.weight' is no weight of the network; name weights of its convolutions"),
    ],
)
def test_what_cannot_be_decomposed_is_refused_by_name(layer: nn.Module, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decomposable(nn.ModuleDict({"here": layer}), ["here.weight"])
    with pytest.raises(ValueError, match=r"'there\.weight' is no weight of the network"):
        decomposable(nn.ModuleDict({"here": layer}), ["there.weight"])
    with pytest.raises(ValueError, match=r"'here\.bias' is no weight of the network"):
        decomposable(nn.ModuleDict({"here": layer}), ["here.bias"])


def test_a_weight_without_inputs_has_no_factors() -> None:
    with pytest.raises(ValueError, match=r"a weight of shape \(8,\) has no factors; it needs \(C_out, C_in"):
        factor_shapes((8,), 1)


def test_loads_pairs_by_name_and_refuses_others() -> None:
    weights = {"one": torch.empty(6, 5), "two": torch.empty(4, 3)}
    source, target = (Factors(weights, ranks={"one": 2, "two": 1}, scales={"one": 1, "two": 1}) for _ in range(2))
    for parameter in source.parameters():
        nn.init.normal_(parameter)
    target.load_pairs(dict(reversed(source.pairs().items())))
    for name, pair in target.pairs().items():
        assert all(torch.equal(own, new) for own, new in zip(pair, source.pairs()[name], strict=True))
        assert pair[0] is not source.pairs()[name][0]
    with pytest.raises(ValueError, match=r"factors are of weights \['one'\]"):
        target.load_pairs({"one": source.pairs()["one"]})
    with pytest.raises(ValueError, match=r"a factor of two has shape \(2, 3\), expected \(1, 3\)"):
        target.load_pairs({**source.pairs(), "two": (torch.zeros(2, 3), torch.zeros(4, 2))})


def test_decoder_has_a_multiple_of_the_rank_and_scale_falls_with_it() -> None:
    ranks = layer_ranks({"encoder": False, "decoder": True}, 8)
    assert ranks == {"encoder": 8, "decoder": 16}
    assert layer_ranks({"encoder": False, "decoder": True}, 8, decoder_multiplier=1) == {"encoder": 8, "decoder": 8}
    for rank, multiplier in ((0, 2), (-1, 2), (4, 0)):
        with pytest.raises(ValueError, match=rf"rank {rank} and decoder multiplier {multiplier} must be at least 1"):
            layer_ranks({"encoder": False, "decoder": True}, rank, decoder_multiplier=multiplier)
    assert layer_scales(ranks) == {"encoder": 2.0, "decoder": 1.0}
    assert layer_scales(ranks, alpha=4.0) == {"encoder": 0.5, "decoder": 0.25}
