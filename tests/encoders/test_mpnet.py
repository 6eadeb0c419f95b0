"""Tests of lorkd_monailabel.encoders.mpnet."""

import math

import torch

from lorkd_monailabel.encoders.mpnet import MPNetSize, distance_buckets, mpnet, mpnet_shapes


def test_hidden_states_are_those_of_transformers(golden):
    weights = {name.removeprefix("module.text_tower.biolord."): tensor for name, tensor in golden.state.items()}
    ids = golden.results["ids"].long()
    hidden = mpnet(weights, ids, ids > 0, size=golden.size)
    short = (ids > 0)[:-1, :12]
    torch.testing.assert_close(hidden[:-1, :12][short], golden.results["hidden_short"][short], atol=2e-6, rtol=0)
    torch.testing.assert_close(hidden[-1], golden.results["hidden_long"], atol=2e-6, rtol=0)
    # padding changes nothing: the first text alone
    alone = mpnet(weights, ids[:1, :4], ids[:1, :4] > 0, size=golden.size)
    torch.testing.assert_close(alone[0], hidden[0, :4], atol=2e-6, rtol=0)


def test_positions_are_counted_without_mpnets_own_padding(golden):
    weights = {name.removeprefix("module.text_tower.biolord."): tensor for name, tensor in golden.state.items()}
    apart = torch.tensor([[6, 9, 1, 11]])
    moved = {
        **weights,
        "embeddings.position_embeddings.weight": weights["embeddings.position_embeddings.weight"].clone(),
    }
    moved["embeddings.position_embeddings.weight"][[0, *range(5, 260)]] = torch.nan  # 2, 3 and 4 are used, and 1
    assert mpnet(moved, apart, apart > 1, size=golden.size).isfinite().all()
    moved["embeddings.position_embeddings.weight"][4] = torch.nan
    assert not mpnet(moved, apart, apart > 1, size=golden.size).isfinite().all()


def test_buckets_are_those_of_transformers_and_of_the_formula(golden):
    buckets = distance_buckets(200)
    assert torch.equal(buckets[0], golden.results["buckets_ahead"].long())
    assert torch.equal(buckets[:, 0], golden.results["buckets_behind"].long())
    for distance in set(range(8, 200)) - {16, 32, 64, 128}:  # where the logarithm is no whole number
        expected = min(8 + int(math.log(distance / 8) / math.log(128 / 8) * 8), 15)
        assert buckets[distance, 0] == expected
    assert buckets[7, 0] == 7
    assert buckets[0, 7] == 16 + 7


def test_shapes_are_those_of_mpnet_base():
    shapes = dict(mpnet_shapes(MPNetSize()))
    assert len(shapes) == 199
    assert sum(map(math.prod, shapes.values())) == 109_486_464
    assert shapes["encoder.layer.11.attention.attn.o.weight"] == (768, 768)
    assert shapes["encoder.relative_attention_bias.weight"] == (32, 12)
