"""Tests of lorkd_monailabel.networks.query_decoder."""

import math

import pytest
import torch
from torch import Tensor

from lorkd_monailabel.networks.query_decoder import QueryDecoder, QueryLayer, sine_positions


@pytest.fixture
def decoder() -> QueryDecoder:
    torch.manual_seed(0)
    return QueryDecoder(24, layers=2, heads=2, feedforward=32).eval()


def element(position: tuple[int, int, int], channel: int, channels: int) -> float:
    """One element of the position vectors; each axis has ``channels`` of them, sines and cosines in turn."""
    axis, place = divmod(channel, channels)
    angle = position[axis] / 10000 ** (2 * (place // 2) / channels)
    return math.sin(angle) if place % 2 == 0 else math.cos(angle)


@pytest.mark.parametrize(("dim", "channels"), [(24, 8), (20, 8), (6, 2), (32, 12)])
def test_sine_positions_element_by_element(dim: int, channels: int) -> None:
    shape = (3, 2, 4)
    expected = [
        [element((x, y, z), channel, channels) for channel in range(dim)]
        for x in range(shape[0])
        for y in range(shape[1])
        for z in range(shape[2])
    ]
    torch.testing.assert_close(sine_positions(shape, dim), torch.tensor(expected), atol=1e-6, rtol=1e-5)


def test_layer_is_pre_norm_cross_attention_and_feedforward() -> None:
    torch.manual_seed(0)
    heads, dim = 2, 4
    layer = QueryLayer(dim, heads=heads, feedforward=6, dropout=0.1).double().eval()
    for norm in (layer.norm2, layer.norm3):
        torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(layer.multihead_attn.in_proj_bias)
    queries, tokens = torch.randn(1, 3, dim).double(), torch.randn(1, 5, dim).double()
    positions = torch.randn(5, dim).double()

    def norm(x: Tensor, weight: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight

    q, k, v = (
        x @ weight.T + bias
        for x, weight, bias in zip(
            (norm(queries, layer.norm2.weight)[0], (tokens + positions)[0], tokens[0]),
            layer.multihead_attn.in_proj_weight.chunk(3),
            layer.multihead_attn.in_proj_bias.chunk(3),
            strict=True,
        )
    )
    heads_out = []
    for own in (slice(0, 2), slice(2, 4)):
        attention = torch.softmax(q[:, own] @ k[:, own].T / math.sqrt(dim / heads), dim=-1)
        heads_out.append(attention @ v[:, own])
    read = torch.cat(heads_out, dim=-1) @ layer.multihead_attn.out_proj.weight.T + layer.multihead_attn.out_proj.bias
    x = queries[0] + read
    hidden = (norm(x, layer.norm3.weight) @ layer.linear1.weight.T + layer.linear1.bias).clamp(min=0)
    expected = x + hidden @ layer.linear2.weight.T + layer.linear2.bias
    torch.testing.assert_close(layer(queries, tokens, positions)[0], expected)


def test_order_of_queries_only_orders_the_answers(decoder: QueryDecoder) -> None:
    queries, tokens = torch.randn(2, 5, 24), torch.randn(2, 24, 2, 3, 2)
    order = torch.tensor([3, 0, 4, 1, 2])
    torch.testing.assert_close(decoder(queries[:, order], tokens), decoder(queries, tokens)[:, order])


def test_queries_do_not_see_each_other(decoder: QueryDecoder) -> None:
    queries, tokens = torch.randn(1, 4, 24), torch.randn(1, 24, 2, 2, 2)
    before = decoder(queries, tokens)
    changed = queries.clone()
    changed[:, 2] += torch.randn(24)
    after = decoder(changed, tokens)
    torch.testing.assert_close(after[:, [0, 1, 3]], before[:, [0, 1, 3]])
    assert not torch.allclose(after[:, 2], before[:, 2], atol=1e-3)
    torch.testing.assert_close(decoder(queries[:, 1:2], tokens), before[:, 1:2])


def test_positions_steer_attention_but_are_not_read(decoder: QueryDecoder) -> None:
    queries, token = torch.randn(1, 2, 24), torch.randn(1, 24, 1, 1, 1)
    # Where all tokens are equal, any attention reads that one token: nothing of the positions may come through.
    torch.testing.assert_close(decoder(queries, token.expand(-1, -1, 3, 2, 4)), decoder(queries, token))
    tokens = torch.randn(1, 24, 3, 1, 1)
    assert not torch.allclose(decoder(queries, tokens.flip(2)), decoder(queries, tokens), atol=1e-4)


def test_the_norm_that_is_kept_for_equal_keys_has_no_part(decoder: QueryDecoder) -> None:
    decoder(torch.randn(1, 2, 24), torch.randn(1, 24, 1, 1, 1)).sum().backward()
    without = {name for name, parameter in decoder.named_parameters() if parameter.grad is None}
    assert without == {f"layers.{layer}.norm1.{part}" for layer in range(2) for part in ("weight", "bias")}
