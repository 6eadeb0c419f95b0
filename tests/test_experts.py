"""Tests of lorkd_monailabel.experts."""

import hashlib
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch.func import functional_call

from lorkd_monailabel.experts import Base, Expert, extract, fuse, fused_network, plain_network, tensors_sha256
from lorkd_monailabel.networks.low_rank import Factors
from lorkd_monailabel.networks.segmenter import build_segmenter

CONVOLUTION = "unet.encoder.0.0.conv.weight"
NORM = "unet.encoder.0.0.norm.weight"


def explicit_delta(expert: Expert, name: str, weight: torch.Tensor) -> torch.Tensor:
    """Element by element: row block ``i`` of an output is the i-th part of its row."""
    lora_a, lora_b = expert.factors[name]
    product = lora_b @ lora_a
    first = weight.shape[2]
    rows = [torch.cat([product[output * first + i] for i in range(first)]) for output in range(weight.shape[0])]
    return expert.scales[name] * torch.stack(rows).reshape(weight.shape)


def test_fused_weights_are_base_plus_delta_and_the_rest_is_shared(
    tiny_base: Base, make_expert: Callable[..., Expert]
) -> None:
    expert = make_expert(rank=2)
    before = tiny_base.sha256, tensors_sha256({name: a for name, (a, _) in expert.factors.items()})
    fused = fuse(tiny_base.weights, expert.factors, expert.scales, {NORM: torch.full((4,), 7.0)})
    assert set(fused) == set(tiny_base.weights)
    for name, tensor in fused.items():
        if name in expert.factors:
            weight = tiny_base.weights[name]
            torch.testing.assert_close(tensor, weight + explicit_delta(expert, name, weight))
            assert not torch.allclose(tensor, weight, atol=1e-2)
        elif name == NORM:
            assert tensor.tolist() == [7.0] * 4
        else:
            assert tensor is tiny_base.weights[name]
    after = tensors_sha256(tiny_base.weights), tensors_sha256({name: a for name, (a, _) in expert.factors.items()})
    assert after == before


def test_a_new_expert_is_exactly_the_base(tiny_base: Base) -> None:
    factors = Factors(tiny_base.weights, ranks={CONVOLUTION: 2}, scales={CONVOLUTION: 8.0})
    fused = fuse(tiny_base.weights, factors.pairs(), factors.scales)
    assert all(torch.equal(fused[name], tensor) for name, tensor in tiny_base.weights.items())


def test_fusion_is_differentiable_in_base_and_factors() -> None:
    torch.manual_seed(0)
    weight, lora_a, lora_b = (
        torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in ((2, 2, 3, 1, 1), (3, 2), (6, 3))
    )

    def fused(weight: torch.Tensor, lora_a: torch.Tensor, lora_b: torch.Tensor) -> torch.Tensor:
        return fuse({"w": weight}, {"w": (lora_a, lora_b)}, {"w": 0.7})["w"]

    assert torch.autograd.gradcheck(fused, (weight, lora_a, lora_b))


@pytest.mark.parametrize("shapes", [((3, 9), (12, 2)), ((3, 8), (12, 3)), ((27,), (12, 3))])
def test_refuses_factors_of_another_network(tiny_base: Base, shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    with pytest.raises(ValueError, match=r"'head\.weight', which the base lacks; it belongs to another network"):
        fuse(tiny_base.weights, {"head.weight": (torch.zeros(1, 1), torch.zeros(1, 1))}, {"head.weight": 1.0})
    pair = torch.zeros(shapes[0]), torch.zeros(shapes[1])
    with pytest.raises(ValueError, match=rf"do not make {CONVOLUTION} \(4, 1, 3, 3, 3\)"):
        fuse(tiny_base.weights, {CONVOLUTION: pair}, {CONVOLUTION: 1.0})


def test_fused_network_answers_as_the_network_called_with_fused_weights(
    tiny_base: Base, make_expert: Callable[..., Expert]
) -> None:
    expert = make_expert(norms={NORM: torch.rand(4)})
    network = fused_network(tiny_base, expert)
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())
    image, queries = torch.randn(1, 1, 4, 4, 4), torch.randn(2, 384)
    weights = {name: tensor.clone() for name, tensor in tiny_base.weights.items()}
    for name in expert.factors:
        weights[name] += explicit_delta(expert, name, weights[name])
    weights[NORM] = expert.norms[NORM]
    expected = functional_call(build_segmenter("tiny").eval(), weights, (image, queries))
    torch.testing.assert_close(network(image, queries), expected)
    shared = network.get_parameter("query_projection.weight").data_ptr()
    assert shared == tiny_base.weights["query_projection.weight"].data_ptr()


def test_weights_in_half_precision_serve_in_single(tiny_base: Base, make_expert: Callable[..., Expert]) -> None:
    base = replace(tiny_base, weights={name: tensor.half() for name, tensor in tiny_base.weights.items()})
    whole = make_expert(base_sha256=base.sha256)
    half = replace(whole, factors={name: (a.half(), b.half()) for name, (a, b) in whole.factors.items()})
    network = fused_network(base, half)
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}
    lora_a, lora_b = half.factors[CONVOLUTION]
    expected = base.weights[CONVOLUTION].float() + 0.25 * (lora_b.float() @ lora_a.float()).reshape(4, 1, 3, 3, 3)
    torch.testing.assert_close(network.get_parameter(CONVOLUTION).data, expected)


def test_refuses_an_expert_of_another_base(tiny_base: Base, make_expert: Callable[..., Expert]) -> None:
    expert = make_expert(base_sha256="f" * 64, revision=3)
    with pytest.raises(
        ValueError, match=rf"abdomen/0003 was trained on base ffffffffffff, this base is {tiny_base.sha256[:12]}"
    ):
        fused_network(tiny_base, expert)


def test_refuses_weights_and_numbers_of_another_network(tiny_base: Base) -> None:
    with pytest.raises(ValueError, match=r"the weights do not fit the network \(Missing key.*use those it was saved"):
        plain_network(tiny_base.network, {})
    wrong = {**tiny_base.weights, CONVOLUTION: torch.zeros(4, 2, 3, 3, 3)}
    with pytest.raises(ValueError, match=r"do not fit the network \(size mismatch"):
        plain_network(tiny_base.network, wrong)
    for numbers in ({"depth": 4}, {"widths": "ab"}, {"widths": [4, -8]}, {"widths": [4, 8], "dim": 24, "heads": 5}):
        with pytest.raises(ValueError, match=r"numbers .* make no segmenter"):
            plain_network(numbers, tiny_base.weights)


def test_extracted_expert_is_a_copy(tiny_base: Base) -> None:
    factors = Factors(tiny_base.weights, ranks={CONVOLUTION: 2}, scales={CONVOLUTION: 8.0})
    torch.nn.init.normal_(factors.lora_b[0])
    expert = extract(
        factors,
        department="spine",
        base_sha256="a" * 64,
        spacing_mm=1.5,
        structures=["L1 vertebra"],
        parent=4,
        about={"cases": 2},
    )
    assert (expert.department, expert.base_sha256, expert.spacing_mm) == ("spine", "a" * 64, (1.5, 1.5, 1.5))
    assert (expert.structures, expert.revision, expert.parent) == (("L1 vertebra",), 0, 4)
    assert (expert.ranks, expert.scales, expert.about) == ({CONVOLUTION: 2}, {CONVOLUTION: 8.0}, {"cases": 2})
    pair = expert.factors[CONVOLUTION]
    assert not any(tensor.requires_grad for tensor in pair)
    kept = [tensor.clone() for tensor in pair]
    with torch.no_grad():
        for parameter in factors.parameters():
            parameter.add_(1)
    assert all(torch.equal(now, before) for now, before in zip(pair, kept, strict=True))
    half = extract(factors, department="spine", base_sha256="", spacing_mm=1, structures=(), dtype=torch.float16)
    assert torch.equal(half.factors[CONVOLUTION][0], factors.lora_a[0].half())


def test_hash_covers_names_types_shapes_and_bytes() -> None:
    tensors = {"b": torch.tensor([1.0, 2.0]), "a": torch.tensor([[3, 4]], dtype=torch.int16)}
    text = b"a torch.int16 (1, 2)\x03\x00\x04\x00b torch.float32 (2,)\x00\x00\x80\x3f\x00\x00\x00\x40"
    assert tensors_sha256(tensors) == hashlib.sha256(text).hexdigest()
    assert tensors_sha256(dict(reversed(tensors.items()))) == tensors_sha256(tensors)
    others = [
        {**tensors, "b": torch.tensor([1.0, 2.5])},
        {**tensors, "b": torch.tensor([[1.0, 2.0]])},
        {**tensors, "b": torch.tensor([1.0, 2.0]).view(torch.int32)},
        {"c": tensors["b"], "a": tensors["a"]},
        {"a": tensors["a"]},
    ]
    assert len({tensors_sha256(each) for each in [tensors, *others]}) == 6
    strided = torch.arange(6.0).reshape(2, 3).T
    assert tensors_sha256({"x": strided}) == tensors_sha256({"x": strided.contiguous()})
    tensors_sha256({"scalar": torch.tensor(1.0, dtype=torch.bfloat16)})
