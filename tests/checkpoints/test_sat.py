"""Tests of lorkd_monailabel.checkpoints.sat, against names, shapes and a forward written down anew."""

import math

import pytest
import torch
from torch.nn import functional as F

from lorkd_monailabel.checkpoints.keys import SAT, network_numbers, size_of
from lorkd_monailabel.checkpoints.sat import read_sat, sat_state, write_sat
from lorkd_monailabel.experts import plain_network
from lorkd_monailabel.networks.segmenter import SIZES, build_segmenter


@pytest.mark.parametrize(
    ("size", "ours", "keys", "parameters"),
    [("nano", "pro", 280, 109_194_624), ("pro", "sat_pro", 368, 475_561_344)],
)
def test_whole_size_has_sats_keys_and_shapes(shapes, size, ours, keys, parameters):
    wanted = shapes(size)
    assert (len(wanted), len(shapes(size, deep=True))) == (keys, keys + 12)
    with torch.device("meta"):
        network = build_segmenter(ours)
    assert sum(each.numel() for each in network.parameters()) == parameters
    numbers = {**SIZES[ours]}
    state = sat_state(numbers, network.state_dict())
    assert {name: tuple(each.shape) for name, each in state.items()} == wanted
    found = {name.removeprefix("module."): torch.empty(shape, device="meta") for name, shape in wanted.items()}
    read = network_numbers(found, SAT, None, what="")
    assert size_of(read) == ours
    assert size_of({**read, "layers": 5}) is None


@pytest.mark.parametrize("deep", [False, True])
def test_what_is_read_and_written_again_has_the_same_keys_and_bytes(state, file, tmp_path, deep):
    own = state("tiny", deep=deep)
    numbers, weights = read_sat(file(own))
    assert numbers == {
        "widths": (2, 3, 4, 5, 6, 7),
        "in_channels": 3,
        "convs": 2,
        "kernel_size": 3,
        "query_dim": 24,
        "dim": 24,
        "layers": 2,
        "heads": 8,
        "feedforward": 12,
        "projection_hidden": 10,
        "mask_hidden": 6,
        "token_stride": 32,
    }
    write_sat(tmp_path / "again.pth", numbers, weights)
    again = torch.load(tmp_path / "again.pth", weights_only=True)["model_state_dict"]
    assert set(again) == {name for name in own if "mid_mask_embed_proj" not in name}
    assert "module.transformer_decoder.layers.1.norm1.weight" in again  # no layer applies it
    assert all(torch.equal(tensor, own[name]) for name, tensor in again.items())
    assert (tmp_path / "again.pth").stat().st_size < 1.4 * (tmp_path / "file.pth").stat().st_size
    with pytest.raises(FileExistsError):
        write_sat(tmp_path / "again.pth", numbers, weights)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again.pth", "file.pth"]


def test_prefixes_aliases_and_half_precision(state, file):
    own = {name.removeprefix("module."): tensor.bfloat16() for name, tensor in state("tiny").items()}
    few = {name: tensor for name, tensor in own.items() if "all_modules" not in name}
    for number, wrapped in enumerate(
        (few, {f"model.module.{name}": each for name, each in own.items()}, {f"model.{k}": v for k, v in own.items()})
    ):
        _, weights = read_sat(file(wrapped, f"{number}.pth"))
        assert torch.equal(weights["unet.decoder.4.1.norm.bias"], own["backbone.decoder.stages.4.convs.1.norm.bias"])
        assert {each.dtype for each in weights.values()} == {torch.bfloat16}
    torch.save(own, file(own, "bare.pth"))  # without model_state_dict
    assert read_sat(file(own, "bare.pth"))[1].keys() == weights.keys()


def reference_forward(state, image, queries):
    """SAT's forward in plain functions, from the description of its layers and the names of its state."""
    w = {name.removeprefix("module."): each.double() for name, each in state.items()}

    def dense(x, name):
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def stage(x, name, stride):
        for block in range(2):
            at = f"{name}.convs.{block}"
            x = F.conv3d(x, w[f"{at}.conv.weight"], w[f"{at}.conv.bias"], stride if block == 0 else 1, padding=1)
            mean = x.mean(dim=(2, 3, 4), keepdim=True)
            variance = ((x - mean) ** 2).mean(dim=(2, 3, 4), keepdim=True)
            scale, shift = (w[f"{at}.norm.{last}"].reshape(1, -1, 1, 1, 1) for last in ("weight", "bias"))
            x = (x - mean) / (variance + 1e-5).sqrt() * scale + shift
            x = torch.where(x > 0, x, 0.01 * x)
        return x

    def norm(x, name):
        mean, variance = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, unbiased=False)
        return (x - mean) / (variance + 1e-5).sqrt() * w[f"{name}.weight"] + w[f"{name}.bias"]

    def gelu(x):
        return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))

    x = image.double().repeat(1, 3, 1, 1, 1)
    scales = []
    for level in range(6):
        x = stage(x, f"backbone.encoder.stages.{level}.0", 2 if level else 1)
        scales.append(x)
    pooled = torch.cat([F.avg_pool3d(each, 2 ** (5 - level)) for level, each in enumerate(scales)], dim=1)
    for level in range(5):
        up = f"backbone.decoder.transpconvs.{level}"
        x = F.conv_transpose3d(x, w[f"{up}.weight"], w[f"{up}.bias"], stride=2)
        x = stage(torch.cat((x, scales[4 - level]), dim=1), f"backbone.decoder.stages.{level}", 1)

    # Tokens in the order of their places, the last axis fastest, and their positions: a third of the channels an axis.
    places = [(i, j, k) for i in range(pooled.shape[2]) for j in range(pooled.shape[3]) for k in range(pooled.shape[4])]
    tokens = torch.stack([pooled[0, :, i, j, k] for i, j, k in places])
    tokens = gelu(dense(gelu(dense(tokens, "projection_layer.0")), "projection_layer.2"))
    dim = tokens.shape[1]
    third = 2 * math.ceil(dim / 6)
    positions = torch.tensor(
        [
            [
                (math.sin, math.cos)[channel % 2](place[axis] / 10000 ** (channel // 2 * 2 / third))
                for axis in range(3)
                for channel in range(third)
            ][:dim]
            for place in places
        ],
        dtype=torch.float64,
    )

    q = queries.double()
    for layer in range(2):
        name = f"transformer_decoder.layers.{layer}"
        inputs = norm(q, f"{name}.norm2"), tokens + positions, tokens
        weights = w[f"{name}.multihead_attn.in_proj_weight"].chunk(3)
        biases = w[f"{name}.multihead_attn.in_proj_bias"].chunk(3)
        parts = [each @ weight.T + bias for each, weight, bias in zip(inputs, weights, biases, strict=True)]
        heads = []
        for head in torch.arange(dim).chunk(8):
            query, key, value = (part[:, head] for part in parts)
            heads.append((query @ key.T / math.sqrt(dim // 8)).softmax(dim=-1) @ value)
        q = q + dense(torch.cat(heads, dim=1), f"{name}.multihead_attn.out_proj")
        q = q + dense(dense(norm(q, f"{name}.norm3"), f"{name}.linear1").clamp(min=0), f"{name}.linear2")
    q = norm(q, "transformer_decoder.norm")
    masks = gelu(dense(gelu(dense(q, "mask_embed_proj.0")), "mask_embed_proj.2"))
    return torch.einsum("nc,cxyz->nxyz", masks, x[0])


def test_network_of_a_file_computes_as_sat_does(state, file):
    own = state("tiny", deep=True)
    network = plain_network(*read_sat(file(own))).double()
    generator = torch.Generator().manual_seed(1)
    image = torch.randn(1, 1, 64, 32, 96, generator=generator)  # 2 x 1 x 3 tokens
    queries = torch.randn(3, 24, generator=generator)
    with torch.no_grad():
        logits = network(image.double(), queries.double())[0]
    expected = reference_forward(own, image, queries)
    assert expected.std() > 0.1
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)
    # What is compared does depend on the places of the tokens.
    moved = reference_forward(own, image.roll(32, dims=4), queries).roll(-32, dims=3)
    assert (moved - expected).abs().max() > 1e-3


def test_only_networks_of_sats_shape_become_one():
    weights = build_segmenter("tiny").state_dict()
    with pytest.raises(ValueError, match=r"have 6 scales, 8 heads and .* this one has 2, 2 and signed_masks=True;"):
        sat_state(SIZES["tiny"], weights)
    with pytest.raises(ValueError, match=r"have no place for query_projection.weight; only a network of their shape"):
        sat_state({"widths": SIZES["pro"]["widths"]}, weights)
    with torch.device("meta"):
        lorkd_nano = build_segmenter("nano").state_dict()
    with pytest.raises(ValueError, match=r"have 6 scales, .* this one has 5, 8 and signed_masks=False"):
        sat_state(SIZES["nano"], lorkd_nano)


def test_the_largest_kind_projects_queries_in_two_layers(state, file):
    more = {"query_proj.0.weight": (10, 9), "query_proj.0.bias": (10,)}
    more |= {"query_proj.2.weight": (24, 10), "query_proj.2.bias": (24,)}
    own = state("tiny") | {f"module.{name}": torch.randn(shape) for name, shape in more.items()}
    network, weights = read_sat(file(own))
    assert (network["query_dim"], network["query_hidden"], network["dim"]) == (9, 10, 24)
    again = sat_state(network, weights)
    assert again.keys() == own.keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in own.items())
    queries = torch.randn(2, 9)
    hidden = F.gelu(F.linear(queries, own["module.query_proj.0.weight"], own["module.query_proj.0.bias"]))
    by_hand = F.gelu(F.linear(hidden, own["module.query_proj.2.weight"], own["module.query_proj.2.bias"]))
    torch.testing.assert_close(plain_network(network, weights).query_projection(queries), by_hand)
