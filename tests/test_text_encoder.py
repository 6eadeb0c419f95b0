"""Tests of lorkd_monailabel.text_encoder."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from lorkd_monailabel.departments import structures
from lorkd_monailabel.text_encoder import MODALITIES, QueryTable

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


@pytest.mark.parametrize("scale", [1e-9, 1e9])
def test_a_matrix_that_half_precision_does_not_hold_is_saved_whole(tmp_path: Path, scale: float) -> None:
    table = QueryTable.build(NAMES, lambda texts: encode(texts) * scale, encoder="fake")
    table.save(tmp_path / "queries.safetensors")
    assert torch.equal(QueryTable.load(tmp_path / "queries.safetensors").whitening, table.whitening)


def test_the_space_is_told_by_encoder_and_vocabulary(small: QueryTable) -> None:
    names = list(small.names)
    assert QueryTable.build(names, encode, encoder="fake").space == small.space
    assert QueryTable.build(names, encode, encoder="another").space != small.space
    assert QueryTable.build(names[::-1], encode, encoder="fake").space != small.space
    assert small.extended(["a new one"], encode).space == small.space


def test_a_plain_table_holds_what_the_encoder_gives() -> None:
    vectors = {"ct": torch.arange(8.0), "pet": -torch.ones(8)}
    plain = QueryTable.plain(NAMES, encode, modality_vectors=vectors, encoder="fake")
    assert plain.names == NAMES
    assert torch.equal(plain.vectors, encode(NAMES))
    assert torch.equal(plain.queries(["structure 5"], "pet"), encode(["structure 5"]) - 1)
    assert torch.equal(plain.queries(["structure 5"], "ct"), encode(["structure 5"]) + torch.arange(8.0))
    with pytest.raises(ValueError, match="modality 'mri' is unknown; use one of ct, pet"):
        plain.queries(["structure 5"], "mri")


def test_a_plain_table_is_extended_and_saved_without_loss(tmp_path: Path) -> None:
    vectors = {"ct": torch.ones(8)}
    plain = QueryTable.plain(NAMES[:3], encode, modality_vectors=vectors, encoder="fake")
    plain.save(tmp_path / "plain.safetensors")
    longer = QueryTable.load(tmp_path / "plain.safetensors").extended(NAMES, encode)
    assert torch.equal(longer.vectors, encode(NAMES))
    assert longer.space == plain.space
    # the space is the encoder's alone, and never that of a whitened table
    assert QueryTable.plain(NAMES, encode, modality_vectors=vectors, encoder="fake").space == plain.space
    assert QueryTable.plain(NAMES, encode, modality_vectors=vectors, encoder="another").space != plain.space
    assert QueryTable.build(NAMES, encode, encoder="fake").space != plain.space


def test_refuses_an_encoder_that_gives_no_vector_a_name(small: QueryTable) -> None:
    broken = {
        r"\(12, 8\) for 12 texts": lambda texts: encode(texts).index_fill(0, torch.tensor([3]), torch.nan),
        r"\(11, 8\) for 12 texts": lambda texts: encode(texts)[1:],
        r"\(12,\) for 12 texts": lambda texts: encode(texts)[:, 0],
    }
    for shape, broken_encode in broken.items():
        message = f"the encoder gives {shape}, expected a finite vector each"
        with pytest.raises(ValueError, match=message):
            QueryTable.build(NAMES, broken_encode, encoder="fake")
        with pytest.raises(ValueError, match=message):
            QueryTable.plain(NAMES, broken_encode, modality_vectors={}, encoder="fake")
        with pytest.raises(ValueError, match=message):
            small.extended([f"more {number}" for number in range(12)], broken_encode)
    with pytest.raises(ValueError, match=r"the vector of modality ct is \(7,\), expected \(8,\)"):
        QueryTable.plain(NAMES, encode, modality_vectors={"ct": torch.ones(7)}, encoder="fake")


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
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="can't be read"):
        QueryTable.load(path)
    with pytest.raises(ValueError, match="can't be read"):
        QueryTable.load(tmp_path)
    save_file(tensors, path, {**metadata, "format": "other"})
    with pytest.raises(ValueError, match="is no query table"):
        QueryTable.load(path)
    broken = [
        (tensors, {key: value for key, value in metadata.items() if key != "names"}),
        (tensors, {**metadata, "names": "not JSON"}),
        (tensors, {**metadata, "names": json.dumps(NAMES[:5])}),
        (tensors, {**metadata, "modalities": '["ct"]'}),
        (tensors, {**metadata, "modalities": "[1, 2]"}),
        (tensors, {**metadata, "names": json.dumps([NAMES[0]] * 12)}),
        (tensors, {**metadata, "names": json.dumps(dict.fromkeys(NAMES))}),
        ({**tensors, "whitening": tensors["whitening"][:5]}, metadata),
        ({**tensors, "mean": tensors["mean"][:, None]}, metadata),
        ({**tensors, "vectors": tensors["vectors"][:, :7].contiguous()}, metadata),
        ({**tensors, "vectors": tensors["vectors"] * torch.nan}, metadata),
        ({name: tensor for name, tensor in tensors.items() if name != "mean"}, metadata),
    ]
    for damaged in broken:
        save_file(damaged[0], path, damaged[1])
        with pytest.raises(ValueError, match=r"can't be read .*; restore it or build it anew"):
            QueryTable.load(path)
