"""Tests of `lorkd vocabulary`, with the real MiniLM and tiny encoders of the other kinds."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from lorkd_monailabel.departments import structures
from lorkd_monailabel.encoders import sat
from lorkd_monailabel.encoders.mpnet import MPNetSize
from lorkd_monailabel.shipped import QUERIES
from lorkd_monailabel.text_encoder import QueryTable, sat_query_table

GOLDEN = Path(__file__).parents[1] / "golden" / "mpnet.safetensors"


def test_the_packages_own_table_is_made_again(lorkd: Callable, here: Path, table: QueryTable) -> None:
    outcome = lorkd("vocabulary", "embed")
    assert (outcome.status, outcome.err) == (0, "")
    made = QueryTable.load(here / "queries.safetensors")
    assert made.names == table.names == tuple(structures())
    assert made.encoder == table.encoder
    torch.testing.assert_close(made.vectors, table.vectors, atol=1e-4, rtol=0)
    first, second = outcome.out.splitlines()
    assert first == f"queries.safetensors: 137 names, 137 of them new, space {made.space}"
    assert second.startswith("the space is ")
    assert ("is not that" in second) == (made.space != table.space)
    assert [path.name for path in here.iterdir()] == ["queries.safetensors"]


def test_extend_adds_rows_and_keeps_the_space(lorkd: Callable, tmp_path: Path, table: QueryTable) -> None:
    path = tmp_path / "short.safetensors"
    replace(table, names=table.names[3:], vectors=table.vectors[3:]).save(path)
    outcome = lorkd("vocabulary", "embed", "--extend", path)
    assert (outcome.status, outcome.err) == (0, "")
    made = QueryTable.load(path)
    assert made.names == (*table.names[3:], *table.names[:3])
    assert made.space == table.space
    assert torch.equal(made.vectors[:-3], table.vectors[3:])
    # the matrix is stored in half precision, so rows that are added differ a little from those of the whole table
    torch.testing.assert_close(made.vectors[-3:], table.vectors[:3], atol=0.02, rtol=0)
    assert f"{path}: 137 names, 3 of them new" in outcome.out
    assert "its networks understand the queries" in outcome.out


def test_extend_into_another_file(lorkd: Callable, here: Path, table: QueryTable) -> None:
    before = QUERIES.read_bytes()
    outcome = lorkd("vocabulary", "embed", "--extend", QUERIES, "--output", "new.safetensors")
    assert outcome.status == 0
    assert "0 of them new" in outcome.out
    assert torch.equal(QueryTable.load(here / "new.safetensors").vectors, table.vectors)
    assert QUERIES.read_bytes() == before


def refusal(outcome) -> str:
    """The one sentence."""
    assert (outcome.status, outcome.out) == (2, "")
    (line,) = outcome.err.splitlines()
    return line.removeprefix("lorkd: ")


def test_what_can_not_be(lorkd: Callable, here: Path, table: QueryTable, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(QUERIES, here / "queries.safetensors")
    assert refusal(lorkd("vocabulary", "embed")).startswith("queries.safetensors exists already; name another file")
    assert refusal(lorkd("vocabulary", "embed", "--output", "no/q.safetensors")).startswith("folder no of q.safeten")
    assert "can't be read" in refusal(lorkd("vocabulary", "embed", "--extend", "no.safetensors"))
    (here / "text").write_text("no table")
    assert "can't be read" in refusal(lorkd("vocabulary", "embed", "--extend", "text"))
    replace(table, encoder="another").save(here / "other.safetensors")
    assert "was made by another, not by all-MiniLM" in refusal(
        lorkd("vocabulary", "embed", "--extend", "other.safetensors")
    )
    assert (
        refusal(lorkd("vocabulary"))
        == "the following arguments are required: embed | show | terminology; see lorkd vocabulary --help"
    )
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "encoder is not installed" in refusal(lorkd("vocabulary", "embed", "--force"))
    assert sorted(path.name for path in here.iterdir()) == ["other.safetensors", "queries.safetensors", "text"]
    assert (here / "queries.safetensors").read_bytes() == QUERIES.read_bytes()


def test_a_write_that_fails_leaves_the_old_table(lorkd: Callable, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "queries.safetensors").write_text("old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    assert "No space left" in refusal(lorkd("vocabulary", "embed", "--force"))
    assert [path.name for path in here.iterdir()] == ["queries.safetensors"]
    assert (here / "queries.safetensors").read_text(encoding="utf-8") == "old"


@pytest.fixture
def sat_words(here: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Options that name files of SAT's text encoder in miniature."""
    tensors = load_file(GOLDEN)
    with safe_open(GOLDEN, "pt") as file:
        pieces = json.loads(file.metadata()["pieces"])
    state = {name: tensor for name, tensor in tensors.items() if name.startswith("module.")}
    torch.save({"step": 1, "model_state_dict": state}, here / "text_encoder.pth")
    (here / "vocab.txt").write_text("\n".join(pieces))
    monkeypatch.setattr(sat, "BIOLORD", MPNetSize(30, 260, 8, 16, 2, 2))
    return ["--encoder", "sat", "--weights", "text_encoder.pth", "--tokenizer", "vocab.txt"]


def test_sats_encoder_makes_a_plain_table(lorkd: Callable, here: Path, sat_words: list[str]) -> None:
    outcome = lorkd("vocabulary", "embed", *sat_words)
    assert (outcome.status, outcome.err) == (0, "")
    made = QueryTable.load(here / "queries.safetensors")
    assert made.names == tuple(structures())
    assert list(made.modality_vectors) == ["ct", "mri", "us", "pet"]
    assert f"queries.safetensors: 137 names, 137 of them new, space {made.space}" in outcome.out
    assert "the space is not that of the package's own table" in outcome.out
    own = sat_query_table(made.names, weights=here / "text_encoder.pth", tokenizer=here / "vocab.txt")
    torch.testing.assert_close(made.queries(["liver"], "pet"), own.queries(["liver"], "pet"), atol=1e-6, rtol=0)
    assert (made.space, made.encoder) == (own.space, own.encoder)
    replace(made, names=made.names[2:], vectors=made.vectors[2:]).save(here / "short.safetensors")
    outcome = lorkd("vocabulary", "embed", *sat_words, "--extend", "short.safetensors")
    assert "short.safetensors: 137 names, 2 of them new" in outcome.out
    extended = QueryTable.load(here / "short.safetensors")
    torch.testing.assert_close(extended.vectors[-2:], made.vectors[:2], atol=1e-6, rtol=0)
    assert "was made by SAT text encoder sha256:" in refusal(
        lorkd("vocabulary", "embed", "--extend", "short.safetensors")
    )


def test_an_onnx_encoder_makes_a_whitened_table(lorkd: Callable, here: Path) -> None:
    from onnx import TensorProto, helper, numpy_helper, save

    words = sorted({word for name in structures() for word in name.lower().split()})
    pieces = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", *words)
    rows = torch.randn(len(pieces), 8, generator=torch.Generator().manual_seed(0)).numpy()
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["rows", "input_ids"], ["found"]),
            helper.make_node("Identity", ["attention_mask"], ["unused"]),
        ],
        "encoder",
        [
            helper.make_tensor_value_info(name, TensorProto.INT64, ("N", "L"))
            for name in ("input_ids", "attention_mask")
        ],
        [helper.make_tensor_value_info("found", TensorProto.FLOAT, ("N", "L", 8))],
        [numpy_helper.from_array(rows, "rows")],
    )
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), here / "model.onnx")
    (here / "vocab.txt").write_text("\n".join(pieces))
    options = ("--encoder", "onnx", "--weights", "model.onnx", "--tokenizer", "vocab.txt", "--output", "o.safetensors")
    outcome = lorkd("vocabulary", "embed", *options)
    assert (outcome.status, outcome.err) == (0, "")
    made = QueryTable.load(here / "o.safetensors")
    assert made.encoder.startswith("ONNX sha256:")
    assert made.vectors.shape == (137, 8)
    assert made.vectors.mean(dim=0).abs().max() < 1e-5
    assert made.vectors.square().mean().item() == pytest.approx(1, abs=1e-4)


def test_show_says_what_is_in_a_table(lorkd: Callable, here: Path, table: QueryTable) -> None:
    replace(table, names=("li\x1bver", *table.names[3:]), vectors=table.vectors[2:]).save(here / "short.safetensors")
    outcome = lorkd("vocabulary", "show", "short.safetensors")
    assert (outcome.status, outcome.err) == (0, "")
    assert outcome.out.startswith(f"names: 135: li?ver, {table.names[3]}, ")
    lines = outcome.out.replace("\n    ", " ").splitlines()
    assert lines[1:3] == ["dimension: 384", "modalities: ct, mri"]
    assert lines[3:5] == [f"encoder: {table.encoder}", f"space: {table.space}"]
    assert lines[5] == f"lacks of the vocabulary: 3 of 137: {', '.join(table.names[:3])}"
    assert max(map(len, outcome.out.splitlines())) <= 100
    assert "lacks of the vocabulary: nothing" in lorkd("vocabulary", "show", QUERIES).out
    assert "can't be read" in refusal(lorkd("vocabulary", "show", "no.safetensors"))
    assert "can't be read" in refusal(lorkd("vocabulary", "show", here))


def test_options_that_do_not_fit_the_encoder(lorkd: Callable, here: Path) -> None:
    for words, message in (
        (("--weights", "x"), "minilm brings its own files; leave --weights and --tokenizer out"),
        (("--encoder", "minilm", "--tokenizer", "x"), "minilm brings its own files"),
        (("--encoder", "sat"), "--encoder sat needs --weights FILE: SAT's text_encoder.pth"),
        (("--encoder", "onnx", "--weights", "x"), "--encoder onnx needs --tokenizer FILE"),
        (("--encoder", "clip"), "invalid choice: 'clip'"),
    ):
        assert message in refusal(lorkd("vocabulary", "embed", *words))
    assert list(here.iterdir()) == []


class Command:
    """Makes a folder when it is unpickled by who trusts it."""

    def __reduce__(self) -> object:
        return os.mkdir, ("mark",)


def test_hostile_encoders_are_one_sentence(lorkd: Callable, here: Path, sat_words: list[str]) -> None:
    path, pieces = here / "text_encoder.pth", here / "vocab.txt"
    whole, text = path.read_bytes(), pieces.read_text(encoding="utf-8")
    before = sorted(here.iterdir())

    def refused() -> str:
        said = refusal(lorkd("vocabulary", "embed", *sat_words))
        assert sorted(here.iterdir()) == before
        return said

    torch.save({"model_state_dict": Command()}, path)
    assert "text_encoder.pth asks to run posix.mkdir; nothing of it was run" in refused()
    torch.save({"model_state_dict": {"module.modality_embed.weight": torch.zeros(4, 8)}}, path)
    assert "it lacks module.text_tower.biolord.embeddings.word_embeddings.weight" in refused()
    for damaged in (b"", whole[:-200], b"text"):
        path.write_bytes(damaged)
        assert "is no checkpoint of torch" in refused()
        outcome = lorkd("vocabulary", "embed", "--encoder", "onnx", "--weights", path, "--tokenizer", pieces)
        assert "is no ONNX model that can run" in refusal(outcome)
        assert sorted(here.iterdir()) == before
    path.unlink()
    path.mkdir()
    assert "is a folder" in refused()
    path.rmdir()
    path.write_bytes(whole)
    pieces.write_text(text + "\nmore")
    assert "vocab.txt has 31 pieces, the encoder 30" in refused()
    sat_words[-1] = "tokenizer.json"
    before.append(here / "tokenizer.json")
    before.sort()
    (here / "tokenizer.json").write_text('{"model": ')
    assert "tokenizer.json can't be read" in refused()


TERMINOLOGY = Path(__file__).parents[2] / "slicer_module" / "LoRKD" / "Resources" / "Terminology" / "LoRKD.term.json"


def test_slicers_terminology_is_that_of_the_vocabulary(lorkd: Callable, here: Path) -> None:
    outcome = lorkd("vocabulary", "terminology", "new.term.json")
    assert (outcome.status, outcome.out) == (0, "new.term.json: 137 structures, 97 codes\n")
    made = (here / "new.term.json").read_text(encoding="utf-8")
    committed = TERMINOLOGY.read_text(encoding="utf-8")
    assert committed == made, f"departments.json has changed; run lorkd vocabulary terminology --force {TERMINOLOGY}"


def test_each_entry_of_the_terminology_is_another(lorkd: Callable, here: Path) -> None:
    lorkd("vocabulary", "terminology", "new.term.json")
    content = json.loads((here / "new.term.json").read_text(encoding="utf-8"))
    (category,) = content["SegmentationCodes"]["Category"]
    entries = {}
    for kind in category["Type"]:
        for part in kind.get("Modifier", [kind]):
            codes = [(each["CodingSchemeDesignator"], each["CodeValue"]) for each in (kind, part)]
            entries[tuple(codes)] = part["3dSlicerLabel"]
    assert sorted(entries.values()) == sorted(structures())
    assert all(len(value) <= 16 and len(scheme) <= 16 for codes in entries for scheme, value in codes)  # DICOM's SH
    assert entries[("SCT", "64033007"), ("SCT", "7771000")] == "left kidney"
    muscles = [codes[1] for codes in entries if codes[0] == ("SCT", "102292000")]
    assert {scheme for scheme, _ in muscles} == {"99LORKD"}
    assert len(set(muscles)) == 7


def test_a_terminology_is_not_overwritten_unasked(lorkd: Callable, here: Path) -> None:
    (here / "old.term.json").write_text("old", encoding="utf-8")
    assert "old.term.json exists already" in refusal(lorkd("vocabulary", "terminology", "old.term.json"))
    assert (here / "old.term.json").read_text(encoding="utf-8") == "old"
    assert lorkd("vocabulary", "terminology", "old.term.json", "--force").status == 0
    assert [path.name for path in here.iterdir()] == ["old.term.json"]
