"""Tests of lorkd_monailabel.encoders.onnx, with tiny models that look vectors up."""

import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from lorkd_monailabel.encoders.onnx import onnx_encoder
from lorkd_monailabel.encoders.tokens import read_tokenizer

PIECES = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "left", "right", "kidney")
ROWS = np.arange(14, dtype=np.float32).reshape(7, 2) ** 2
INPUTS = ("input_ids", "attention_mask", "token_type_ids")


@pytest.fixture
def vocabulary(tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join(PIECES))
    return path


@pytest.fixture
def write_model(tmp_path):
    """A model whose last hidden state is the row of each piece plus its type, and whose pooled outputs are told."""

    def write(
        *, inputs=INPUTS, whole=TensorProto.INT64, outputs=("last_hidden_state",), rows=ROWS, shape=("N", "L", 2)
    ):
        nodes = [
            helper.make_node("Gather", ["rows", "input_ids"], ["looked_up"]),
            helper.make_node(
                "Cast", [INPUTS[2] if INPUTS[2] in inputs else "input_ids"], ["types"], to=TensorProto.FLOAT
            ),
            helper.make_node("Unsqueeze", ["types", "last"], ["types_wide"]),
            helper.make_node("Mul", ["types_wide", "nothing"], ["types_used"]),
            helper.make_node("Add", ["looked_up", "types_used"], ["last_hidden_state"]),
            helper.make_node("ReduceSum", ["last_hidden_state", "middle"], ["sentence_embedding"], keepdims=0),
            helper.make_node("ReduceSum", ["sentence_embedding"], ["all"], keepdims=0),
        ]
        constants = {
            "rows": rows,
            "last": np.array([2]),
            "middle": np.array([1]),
            "nothing": np.zeros(1, np.float32),
        }
        shapes = {"last_hidden_state": shape, "sentence_embedding": ("N", 2), "all": ()}
        graph = helper.make_graph(
            nodes,
            "encoder",
            [helper.make_tensor_value_info(name, whole, ("N", "L")) for name in inputs],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, shapes[name]) for name in outputs],
            [numpy_helper.from_array(value, name) for name, value in constants.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
        path = tmp_path / "model.onnx"
        onnx.save(model, path)
        return path

    return write


@pytest.mark.parametrize(
    "changed", [{}, {"inputs": INPUTS[:2]}, {"whole": TensorProto.INT32}, {"outputs": ("last_hidden_state", "all")}]
)
def test_mean_of_the_texts_tokens_by_hand(write_model, vocabulary, changed):
    encode, name = onnx_encoder(write_model(**changed), vocabulary)
    # [CLS] left kidney [SEP], [CLS] [UNK] [SEP] [PAD]
    expected = [ROWS[[2, 4, 6, 3]].mean(axis=0), ROWS[[2, 1, 3]].mean(axis=0)]
    np.testing.assert_allclose(encode(["Left KIDNEY", "heart"]).numpy(), expected, rtol=1e-6)
    assert name.startswith("ONNX sha256:")


def test_a_pooled_output_is_taken_as_it_is(write_model, vocabulary):
    encode, _ = onnx_encoder(write_model(outputs=("last_hidden_state", "sentence_embedding")), vocabulary)
    np.testing.assert_allclose(encode(["left"]).numpy(), [ROWS[[2, 4, 3]].sum(axis=0)], rtol=1e-6)
    encode, _ = onnx_encoder(write_model(outputs=("sentence_embedding",)), vocabulary)
    assert encode(["left", "right"]).dtype == torch.float32


def test_both_files_tell_the_name(write_model, vocabulary, tmp_path):
    path = write_model()
    name = onnx_encoder(path, vocabulary)[1]
    assert onnx_encoder(path.rename(tmp_path / "other.onnx"), vocabulary)[1] == name
    assert onnx_encoder(write_model(rows=ROWS + 1), vocabulary)[1] != name
    vocabulary.write_text("\n".join((*PIECES[:4], "right", "left", "kidney")))
    assert onnx_encoder(write_model(), vocabulary)[1] != name


def test_tokenizer_json_keeps_its_ends_and_its_padding(write_model, vocabulary, tmp_path):
    tokenizer = read_tokenizer(vocabulary)
    tokenizer.enable_padding(pad_id=1, pad_token="[UNK]", length=20)
    tokenizer.enable_truncation(max_length=2)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    model = write_model(outputs=("sentence_embedding",))  # sums over the padding too
    encode, _ = onnx_encoder(model, tmp_path / "tokenizer.json")
    found = encode(["left right kidney", "left"])
    np.testing.assert_allclose(found.numpy(), [ROWS[[4, 5]].sum(axis=0), ROWS[[4, 1]].sum(axis=0)], rtol=1e-6)


def test_a_list_of_pieces_gives_the_ends_of_its_kind(write_model, vocabulary):
    vocabulary.write_text("\n".join(("<s>", "[UNK]", "</s>", "<pad>", "left", "[CLS]", "[SEP]")))
    encode, _ = onnx_encoder(write_model(), vocabulary)
    np.testing.assert_allclose(encode(["left"]).numpy(), [ROWS[[0, 4, 2]].mean(axis=0)], rtol=1e-6)
    vocabulary.write_text("[PAD]\n[UNK]\nleft")
    with pytest.raises(ValueError, match=r"vocab.txt has neither \[CLS\] and \[SEP\] nor <s> and </s>"):
        onnx_encoder(write_model(), vocabulary)
    vocabulary.write_text("[UNK]\n[CLS]\n[SEP]")
    with pytest.raises(ValueError, match="knows no padding"):
        onnx_encoder(write_model(), vocabulary)


def test_refuses_other_models(write_model, vocabulary):
    for changed, message in (
        ({"inputs": ("input_ids",)}, "is no text encoder: it has no input attention_mask"),
        ({"inputs": (*INPUTS, "position_ids")}, "wants an input 'position_ids', known are input_ids"),
        ({"inputs": (*INPUTS[:2], "x" * 100)}, "wants an input 'x{80}',"),
    ):
        with pytest.raises(ValueError, match=message):
            onnx_encoder(write_model(**changed), vocabulary)
    encode, _ = onnx_encoder(write_model(outputs=("all",)), vocabulary)
    with pytest.raises(ValueError, match=r"output all of .*model.onnx is \(\), neither texts x D"):
        encode(["left"])
    encode, _ = onnx_encoder(write_model(rows=ROWS[:3]), vocabulary)
    with pytest.raises(ValueError, match=r"model.onnx can't encode 1 texts \(.*out of.*bounds") as caught:
        encode(["kidney"])
    assert "\n" not in str(caught.value)


def test_refuses_what_is_no_model(write_model, vocabulary, tmp_path, capfd):
    path = write_model()
    whole = path.read_bytes()
    for content in (b"", b"text", whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"model.onnx is no ONNX model that can run") as caught:
            onnx_encoder(path, vocabulary)
        assert "\n" not in str(caught.value)
    for missing in (tmp_path, tmp_path / "no.onnx"):
        with pytest.raises(ValueError, match=r"can't be read .*; check the path"):
            onnx_encoder(missing, vocabulary)
    assert capfd.readouterr() == ("", "")


def test_reads_no_other_file(write_model, vocabulary, tmp_path, monkeypatch):
    path, model = tmp_path / "split.onnx", onnx.load(write_model())
    onnx.save(model, path, save_as_external_data=True, location="rows.bin", size_threshold=50)
    monkeypatch.chdir(tmp_path)
    assert onnxruntime.InferenceSession("split.onnx").get_inputs()  # by its path it would be read
    for number in range(2):
        with pytest.raises(ValueError, match=r"split.onnx is no ONNX model that can run \(.*External data"):
            onnx_encoder(path, vocabulary)
        model = onnx.load(path, load_external_data=False)
        for tensor in model.graph.initializer:
            for entry in tensor.external_data:
                entry.value = f"../{tmp_path.name}/rows.bin" if entry.key == "location" else entry.value
        onnx.save(model, path)
        assert number or onnxruntime.InferenceSession(path.read_bytes()).get_inputs()


def test_says_what_to_install(write_model, vocabulary, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ValueError, match=r"onnxruntime, .* is not installed; run: pip install onnxruntime"):
        onnx_encoder(write_model(), vocabulary)
