"""Tests of lorkd_monailabel.store: what it refuses, each in one sentence that names the file or the hashes."""

import json
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from lorkd_monailabel.experts import Base, Expert
from lorkd_monailabel.store import ExpertStore

MakeExpert = Callable[..., Expert]


@pytest.fixture
def store(tmp_path: Path, tiny_base: Base, make_expert: MakeExpert) -> ExpertStore:
    """One base and one expert of the abdomen."""
    store = ExpertStore(tmp_path / "store")
    store.publish_base(tiny_base)
    store.publish(make_expert())
    return store


def refusal(question: Callable[[], object]) -> str:
    """The sentence of a ValueError: one line, of a length that can be read."""
    with pytest.raises(ValueError, match=r"[a-z]") as caught:
        question()
    sentence = str(caught.value)
    assert caught.type is ValueError
    assert "\n" not in sentence
    assert len(sentence) < 500
    return sentence


def rewrite(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Write a file again with another header."""
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    outer = json.loads(data[8 : 8 + length])
    header = json.loads(outer["__metadata__"]["header"])
    change(header)
    outer["__metadata__"]["header"] = json.dumps(header)
    text = json.dumps(outer).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])


def test_an_expert_of_another_base_names_both_hashes(
    store: ExpertStore, tiny_base: Base, make_expert: MakeExpert
) -> None:
    foreign = make_expert(base_sha256="f" * 64)
    for question in (lambda: store.publish(foreign), lambda: store.base("f" * 64)):
        sentence = refusal(question)
        assert "ffffffffffff" in sentence
        assert tiny_base.sha256[:12] in sentence
    assert store.revisions("abdomen") == (1,)


def test_what_is_not_there(store: ExpertStore, tmp_path: Path, make_expert: MakeExpert) -> None:
    assert "'spine' has no expert" in refusal(lambda: store.load("spine"))
    assert "(it has: abdomen); train one first" in refusal(lambda: store.header("spine"))
    assert "abdomen has no revision 2; it has 1 to 1" in refusal(lambda: store.load("abdomen", 2))
    assert "department '../abdomen' is unknown" in refusal(lambda: store.load("../abdomen"))
    empty = ExpertStore(tmp_path / "empty")
    assert "holds no base; publish a decomposition first" in refusal(empty.base)
    assert "has none" in refusal(lambda: empty.publish(make_expert()))
    assert not (tmp_path / "empty").exists()


def test_a_damaged_base_keeps_nobody_from_the_others(store: ExpertStore, tiny_base: Base, tmp_path: Path) -> None:
    other = replace(tiny_base, weights={name: tensor + 1 for name, tensor in tiny_base.weights.items()})
    number = store.publish_base(other)
    store.path("base", number).write_bytes(b"no")
    assert store.base(tiny_base.sha256).revision == 1
    assert store.publish(store.load("abdomen")) == 2
    sentence = refusal(lambda: store.base(other.sha256))
    assert other.sha256[:12] in sentence
    assert tiny_base.sha256[:12] in sentence
    assert f"{store.path('base', number)} is damaged" in sentence
    assert "is damaged" in refusal(store.base)  # the newest
    assert store.publish_base(other) == number + 1
    assert store.base(other.sha256).revision == number + 1


def test_a_truncated_file(store: ExpertStore) -> None:
    path = store.path("abdomen")
    data = path.read_bytes()
    for length in (0, 1, 7, 8, 9, 100, len(data) // 2, len(data) - 1):
        path.unlink()
        path.write_bytes(data[:length])
        for question in (store.load, store.header):
            sentence = refusal(lambda question=question: question("abdomen"))
            assert sentence.startswith(f"{path} is damaged (")
            assert "restore it from a backup" in sentence


@pytest.mark.parametrize(
    "data",
    [
        b"\xff" * 8 + b"{}",
        struct.pack("<Q", 1 << 40) + b"{}",
        struct.pack("<Q", 200_000_000) + b" " * 1000,
        struct.pack("<Q", 8) + b"not JSON",
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 60) + b'{"a":{"dtype":"F32","shape":[1e9],"data_offsets":[0,4]}}    ',
        b"PK\x03\x04" + b"\0" * 100,
        b"\x80\x04cos\nsystem\n(S'true'\ntR.",
        b"a text, not a store's file at all",
    ],
)
def test_bytes_that_are_no_such_file(store: ExpertStore, data: bytes) -> None:
    path = store.path("abdomen")
    path.write_bytes(data)
    assert str(path) in refusal(lambda: store.header("abdomen"))
    assert str(path) in refusal(lambda: store.load("abdomen"))


def test_a_folder_in_place_of_a_file(store: ExpertStore) -> None:
    path = store.path("abdomen")
    path.unlink()
    path.mkdir()
    assert str(path) in refusal(lambda: store.load("abdomen"))


@pytest.mark.parametrize(
    "metadata",
    [
        None,
        {"format": "lorkd/1"},
        {"format": "lorkd/2", "header": '{"kind": "expert"}'},
        {"format": "pt", "header": "{}"},
        {"format": "lorkd/1", "header": "not JSON"},
        {"format": "lorkd/1", "header": "[1, 2]"},
        {"format": "lorkd/1", "header": "null"},
        {"format": "lorkd/1", "header": "[" * 100_000},
        {"format": "lorkd/1", "header": '{"a":' * 50_000 + "1" + "}" * 50_000},
        {"format": "lorkd/1", "header": '{"kind": ' + "1" * 5000 + "}"},
        {"format": "lorkd/1", "header": '{"kind": ["expert"]}'},
        {"format": "lorkd/1", "header": '{"kind": "expert"}'},
    ],
)
def test_a_header_that_is_not_ours(store: ExpertStore, metadata: dict[str, str] | None) -> None:
    path = store.path("abdomen")
    save_file({"a": torch.zeros(1)}, path, metadata)
    assert str(path) in refusal(lambda: store.header("abdomen"))
    assert str(path) in refusal(lambda: store.load("abdomen"))


NO_SIZES = ([8, 8], [8, "8", 8], [8, 0, 8])
HOSTILE = (None, True, 5, "text", [], ["a", 1], {}, {"a": "b"}, {"a": None}, [[1]], float("nan"), *NO_SIZES)
EXPERT = {
    "department": [],
    "base_sha256": ["text"],
    "scales": [],  # even an empty one, as the ranks name other weights
    "ranks": [],
    "spacing_mm": [5],
    "structures": [[]],
    "revision": [5],
    "parent": [5],
    "metrics": [{}],
    "about": [{}, {"a": "b"}, {"a": None}],
}
BASE = {
    "sha256": [],
    "network": [{}, {"a": "b"}, {"a": None}],  # names no network; fusion says so
    "window": [5],
    "query_space": ["text"],
    "intensities": [],
    "revision": [5],
    "about": [{}, {"a": "b"}, {"a": None}],
}


@pytest.mark.parametrize(
    ("name", "field", "allowed"),
    [("abdomen", *item) for item in EXPERT.items()] + [("base", *item) for item in BASE.items()],
)
def test_a_header_of_wrong_types(store: ExpertStore, name: str, field: str, allowed: list[Any]) -> None:
    path = store.path(name)
    data = path.read_bytes()
    load = store.base if name == "base" else lambda: store.load(name)
    wrong = [value for value in HOSTILE if not any(type(value) is type(good) and value == good for good in allowed)]
    assert len(wrong) >= 8
    for value in wrong:
        path.unlink()
        path.write_bytes(data)
        rewrite(path, lambda header, value=value: header.update({field: value}))
        assert str(path) in refusal(load)
    path.write_bytes(data)
    rewrite(path, lambda header: header.pop(field))
    if field == "intensities":  # files written before do not name them
        assert store.base().intensities == "fixed"
    else:
        assert str(path) in refusal(load)


def test_an_expert_without_its_factors(store: ExpertStore) -> None:
    path = store.path("abdomen")
    for field in ("scales", "ranks"):
        rewrite(path, lambda header, field=field: header[field].update({"unet.other.weight": 1}))
    assert "lora_a.unet.other.weight" in refusal(lambda: store.load("abdomen"))


def test_a_file_in_the_wrong_place(store: ExpertStore) -> None:
    (store.folder / "spine").mkdir()
    stray = store.folder / "spine" / "0001.safetensors"
    stray.write_bytes(store.path("abdomen").read_bytes())
    sentence = refusal(lambda: store.load("spine"))
    assert sentence == f"{stray} holds an expert of abdomen, not of spine; move it to its folder"
    stray.write_bytes(store.path("base").read_bytes())
    assert refusal(lambda: store.load("spine")) == f"{stray} is of kind base, not expert; give the right file"
    expert_as_base = store.folder / "base" / "0002.safetensors"
    expert_as_base.write_bytes(store.path("abdomen").read_bytes())
    assert refusal(store.base) == f"{expert_as_base} is of kind expert, not base; give the right file"


def test_weights_that_are_not_those_of_the_header(store: ExpertStore, tiny_base: Base) -> None:
    path = store.path("base")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    assert refusal(store.base) == (f"{path} does not have the weights that its header names; restore it from a backup")


def test_a_missing_file(tmp_path: Path, tiny_base: Base) -> None:
    from lorkd_monailabel.store import load_base

    assert str(tmp_path / "none") in refusal(lambda: load_base(tmp_path / "none", "foundation"))


def test_department_of_an_expert_that_is_published_must_exist(store: ExpertStore, make_expert: MakeExpert) -> None:
    assert "'heart' is unknown" in refusal(lambda: store.publish(replace(make_expert(), department="heart")))


def test_what_could_not_be_read_again_is_not_published(store: ExpertStore, make_expert: MakeExpert) -> None:
    for changed in (
        {"metrics": {"liver": float("nan")}},
        {"spacing_mm": (3, 3, 10**31)},
        {"structures": (1,)},
        {"scales": {}},
    ):
        assert "can't have" in refusal(lambda changed=changed: store.publish(make_expert("spine", **changed)))
    assert not (store.folder / "spine").exists()
