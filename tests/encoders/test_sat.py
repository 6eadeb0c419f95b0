"""Tests of lorkd_monailabel.encoders.sat."""

import json

import pytest
import torch
from tokenizers.normalizers import Sequence

from lorkd_monailabel.encoders.sat import BIOLORD, read_sat_text_encoder, sat_shapes, sat_text_encoder, token_ids
from lorkd_monailabel.encoders.tokens import read_tokenizer
from lorkd_monailabel.text_encoder import QueryTable

MODALITY = "module.modality_embed.weight"
POSITION_IDS = "module.text_tower.biolord.embeddings.position_ids"
WORDS = "module.text_tower.biolord.embeddings.word_embeddings.weight"


def test_pieces_are_those_of_transformers(golden, vocabulary):
    ids = token_ids(read_tokenizer(vocabulary), golden.texts)
    assert torch.equal(ids, golden.results["ids"].long())
    # by hand: lower case, literal pieces at both ends, 0 behind; the last keeps [SEP] at 256 of its 302 pieces
    assert [golden.pieces[number] for number in ids[0, :5]] == ["[CLS]", "left", "kidney", "[SEP]", "<s>"]
    assert ids.shape == (7, 256)
    assert [golden.pieces[number] for number in ids[6, -2:]] == ["kidney", "[SEP]"]


def test_texts_are_in_lower_case_whatever_the_tokenizer_does(golden, vocabulary):
    tokenizer = read_tokenizer(vocabulary)
    tokenizer.normalizer = Sequence([])
    (row,) = token_ids(tokenizer, ["Left KIDNEY"])
    assert [golden.pieces[number] for number in row] == ["[CLS]", "left", "kidney", "[SEP]"]


def test_queries_are_those_of_transformers(golden, vocabulary, write_sat):
    sat = read_sat_text_encoder(write_sat(), vocabulary, size=golden.size)
    assert list(sat.modality_vectors) == ["ct", "mri", "us", "pet"]
    assert torch.equal(sat.modality_vectors["pet"], golden.state[MODALITY][3])
    table = QueryTable.plain(golden.texts, sat.encode, modality_vectors=sat.modality_vectors, encoder=sat.name)
    queries = table.queries(golden.texts, "mri")
    torch.testing.assert_close(queries, golden.results["queries_mri"], atol=2e-6, rtol=0)


def test_tokenizer_json_and_vocab_txt_are_the_same_encoder(golden, vocabulary, write_sat, tmp_path):
    weights = write_sat()
    tokenizer = read_tokenizer(vocabulary)
    tokenizer.enable_padding(length=77)  # as files of sentence-transformers have it; SAT's form asks for neither
    tokenizer.enable_truncation(max_length=3)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    one = read_sat_text_encoder(weights, vocabulary, size=golden.size)
    two = read_sat_text_encoder(weights, tmp_path / "tokenizer.json", size=golden.size)
    assert one.name == two.name
    assert torch.equal(one.encode(golden.texts), two.encode(golden.texts))
    other = vocabulary.with_name("other.txt")
    other.write_text(vocabulary.read_text(encoding="utf-8").replace("left\nright", "right\nleft"))
    assert read_sat_text_encoder(weights, other, size=golden.size).name != one.name
    name = one.name
    weights = write_sat(**{MODALITY: golden.state[MODALITY] + 1})
    assert read_sat_text_encoder(weights, vocabulary, size=golden.size).name != name


def test_keys_that_may_be_there_or_not(golden, vocabulary, write_sat):
    plain = read_sat_text_encoder(write_sat(), vocabulary, size=golden.size).encode(["liver"])
    more = write_sat(
        **{
            POSITION_IDS: torch.arange(260)[None],
            "module.temperature": torch.tensor(2.0),
            "module.atlas_tower.conv.weight": torch.zeros(3),
            MODALITY: torch.cat((golden.state[MODALITY], torch.ones(1, 8))),
        }
    )
    sat = read_sat_text_encoder(more, vocabulary, size=golden.size)
    assert torch.equal(sat.encode(["liver"]), plain)
    assert list(sat.modality_vectors) == ["ct", "mri", "us", "pet", "microscopy"]
    half = {name: tensor.half() for name, tensor in golden.state.items()}
    assert (
        read_sat_text_encoder(write_sat(**half), vocabulary, size=golden.size).encode(["liver"]).dtype == torch.float32
    )


def test_sats_own_file_has_204_keys():
    shapes = sat_shapes(BIOLORD, 4)
    assert len(shapes) == 204
    expected = {
        WORDS: (30527, 768),
        "module.text_tower.biolord.embeddings.position_embeddings.weight": (514, 768),
        "module.text_tower.biolord.encoder.layer.11.attention.attn.q.weight": (768, 768),
        "module.text_tower.biolord.encoder.layer.0.attention.LayerNorm.bias": (768,),
        "module.text_tower.biolord.encoder.layer.5.intermediate.dense.weight": (3072, 768),
        "module.text_tower.biolord.encoder.relative_attention_bias.weight": (32, 12),
        "module.text_tower.biolord.pooler.dense.bias": (768,),
        "module.projection_layer.0.weight": (768, 768),
        "module.projection_layer.2.bias": (768,),
        MODALITY: (4, 768),
    }
    assert expected.items() <= shapes.items()


def test_small_files_are_not_taken_for_sats_own(golden, vocabulary, write_sat):
    with pytest.raises(ValueError, match=rf"{WORDS} has shape \(30, 8\), not \(30527, 768\)"):
        sat_text_encoder(write_sat(), vocabulary)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({WORDS: None}, rf"is no text encoder of SAT: it lacks {WORDS} .*; give the file as its makers publish it"),
        ({WORDS: torch.zeros(29, 8)}, rf"{WORDS} has shape \(29, 8\), not \(30, 8\)"),
        ({WORDS: torch.zeros(30, 8, dtype=torch.int64)}, rf"{WORDS} is not made of plain floating-point numbers"),
        ({WORDS: torch.zeros(1, 1).expand(30, 8)}, rf"{WORDS} is not made of plain"),
        ({WORDS: torch.zeros(30, 8, device="meta")}, rf"{WORDS} is not made of plain"),
        ({WORDS: "text"}, rf"it lacks {WORDS}"),
        ({MODALITY: torch.zeros(())}, rf"{MODALITY} has shape \(\), not \(4, 8\)"),
        ({MODALITY: torch.zeros(6, 8)}, rf"{MODALITY} has shape \(6, 8\), not \(4, 8\)"),
        ({"module.more": torch.zeros(1)}, "it has 'module.more' .*, which does not belong there"),
        ({"module.projection_layer.2.bias": None, MODALITY: None}, "it lacks module.projection_layer.2.bias"),
    ],
)
def test_first_key_that_is_wrong_is_named(golden, vocabulary, write_sat, changed, message):
    with pytest.raises(ValueError, match=message):
        read_sat_text_encoder(write_sat(**changed), vocabulary, size=golden.size)


def test_refuses_what_is_no_checkpoint_of_it(golden, vocabulary, write_sat):
    path = write_sat()
    for content in ({"step": 1}, {"model_state_dict": [1]}, golden.state):
        torch.save(content, path)
        with pytest.raises(ValueError, match=r"it lacks model_state_dict; give SAT's text_encoder.pth"):
            read_sat_text_encoder(path, vocabulary, size=golden.size)


def test_refuses_the_tokenizer_of_another_encoder(golden, vocabulary, write_sat):
    weights = write_sat()
    text = vocabulary.read_text(encoding="utf-8")
    vocabulary.write_text(text + "more\n")
    with pytest.raises(ValueError, match=r"vocab.txt has 31 pieces, the encoder 30; give BioLORD-2023-C's own"):
        read_sat_text_encoder(weights, vocabulary, size=golden.size)
    vocabulary.write_text(text.replace("[SEP]", "[END]"))
    with pytest.raises(ValueError, match=r"has no piece \[SEP\]"):
        read_sat_text_encoder(weights, vocabulary, size=golden.size)
    vocabulary.write_text(text)
    path = vocabulary.with_name("tokenizer.json")
    read_tokenizer(vocabulary).save(str(path))
    content = json.loads(path.read_text(encoding="utf-8"))
    content["model"]["vocab"]["liver"] = 30  # would be read from beyond the matrix
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="has 30 pieces, the encoder 30"):
        read_sat_text_encoder(weights, path, size=golden.size)
