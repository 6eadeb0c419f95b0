"""Tests of lorkd_monailabel.encoders.tokens."""

import json
import sys

import pytest
import torch

from lorkd_monailabel.encoders import tokens
from lorkd_monailabel.encoders.tokens import mean_of_tokens, read_tokenizer

NO_UNKNOWN = {
    "version": "1.0",
    "added_tokens": [],
    "model": {
        "type": "WordPiece",
        "unk_token": "[UNK]",
        "continuing_subword_prefix": "##",
        "max_input_chars_per_word": 100,
        "vocab": {"liver": 0},
    },
}
PIECES = ("[PAD]", "[UNK]", "liver", "tumo", "##ur", "e", "-")


def test_word_pieces_by_hand(tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join(PIECES) + "\n")
    for _ in range(2):
        tokenizer = read_tokenizer(path)
        encoding = tokenizer.encode("Liver-TUMOUR, É", add_special_tokens=False)
        assert encoding.tokens == ["liver", "-", "tumo", "##ur", "[UNK]", "e"]
        assert encoding.ids == [2, 6, 3, 4, 1, 5]
        path = tmp_path / "tokenizer.json"
        tokenizer.save(str(path))


def test_mean_of_tokens_by_hand():
    hidden = torch.tensor([[[1.0, 2.0], [3.0, 6.0], [9.0, 9.0]], [[4.0, 4.0], [9.0, 9.0], [9.0, 9.0]]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    assert mean_of_tokens(hidden, mask).tolist() == [[2.0, 4.0], [4.0, 4.0]]
    assert mean_of_tokens(hidden, mask.long()).tolist() == [[2.0, 4.0], [4.0, 4.0]]
    assert mean_of_tokens(hidden, mask & False).tolist() == [[0.0, 0.0], [0.0, 0.0]]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", b"", "can't be read"),
        ("tokenizer.json", b'{"version": "1.0", "model": {"type": "Word', "can't be read"),
        ("tokenizer.json", b"{}", "can't be read"),
        ("tokenizer.json", b"[1]", r"can't be read \(no table\)"),
        ("tokenizer.json", b"[" * 100_000, "can't be read"),
        ("tokenizer.json", json.dumps({"model": {"type": "WordPiece", "vocab": {"a": -1}}}).encode(), "can't be read"),
        ("tokenizer.json", json.dumps(NO_UNKNOWN).encode(), r"can't be read \(.*\[UNK\]"),
        ("vocab.txt", b"", r"has no line \[UNK\]"),
        ("vocab.txt", b"a\nb\n", r"has no line \[UNK\]"),
        ("vocab.txt", b"[UNK]\na\na\n", "has a line twice"),
        ("vocab.txt", b"[UNK]\n\xff\xfe\n", "is no text in UTF-8"),
        ("folder", None, "is a folder"),
        ("missing.json", None, r"can't be read \(No such file or directory\)"),
    ],
)
def test_refuses_what_is_no_tokenizer(tmp_path, name, content, message):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    elif name == "folder":
        path.mkdir()
    with pytest.raises(ValueError, match=f"{name}.*{message}") as caught:
        read_tokenizer(path)
    assert "\n" not in str(caught.value)


def test_refuses_a_file_too_large(tmp_path, monkeypatch):
    monkeypatch.setattr(tokens, "FILE_LIMIT_BYTES", 10)
    (tmp_path / "vocab.txt").write_text("[UNK]\nliver\n")
    with pytest.raises(ValueError, match="more than 10 bytes"):
        read_tokenizer(tmp_path / "vocab.txt")


def test_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ValueError, match="tokenizers is not installed; run: pip install tokenizers"):
        read_tokenizer(tmp_path / "vocab.txt")
