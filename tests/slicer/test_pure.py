"""What needs no Slicer: addresses, prompts, bodies of several parts."""

import email
import importlib.util
import json
import re
from pathlib import Path

import pytest

LIBRARY = Path(__file__).parents[2] / "slicer_module" / "LoRKD" / "LoRKDLib"


def load(name):
    spec = importlib.util.spec_from_file_location(f"pure_{name}", LIBRARY / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


typed, multipart = load("typed"), load("multipart")


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("", "http://127.0.0.1:8000"),
        (":8001", "http://127.0.0.1:8001"),
        ("host", "http://host:8000"),
        ("host:9", "http://host:9"),
        (" host:9/ ", "http://host:9"),
        ("[::1]", "http://[::1]:8000"),
        ("host/lorkd", "http://host:8000/lorkd"),
        ("https://host/path/", "https://host/path"),
        ("http://host", "http://host"),
    ],
)
def test_addresses_are_completed(text, url):
    assert typed.server_url(text) == url


@pytest.mark.parametrize(
    "text", ["ftp://host", "a b", "http://", "host:x", "host:99999", "https://me:secret@host", "x?y"]
)
def test_what_is_no_address_is_refused(text):
    with pytest.raises(ValueError, match=re.escape(text)):
        typed.server_url(text)


def test_phrases_are_split_trimmed_and_come_once():
    assert typed.phrases(" left  kidney;liver\n\nLiver ; spleen, both;;") == ["left kidney", "liver", "spleen, both"]
    assert typed.phrases(" ;\n ") == []


@pytest.mark.parametrize(
    ("text", "position", "found"),
    [
        ("liver; le", 9, (7, "le")),
        ("liver\nspl", 9, (6, "spl")),
        ("liver; spleen", 3, (0, "liv")),
        ("liver; ", 7, (7, "")),
    ],
)
def test_the_phrase_at_the_cursor(text, position, found):
    assert typed.typed_phrase(text, position) == found


def test_names_are_those_that_experts_know():
    structures = [
        {"name": "liver", "synonyms": ["hepar"], "expert": True},
        {"name": "left kidney", "synonyms": [], "expert": True},
        {"name": "right kidney", "synonyms": [], "expert": False},
    ]
    vocabulary = {
        "departments": [{"id": "abdomen", "structures": structures}, {"id": "brain", "structures": []}],
        "groups": [
            {"name": "kidney", "structures": ["left kidney", "right kidney"]},
            {"name": "both known", "structures": ["liver", "left kidney"]},
        ],
    }
    assert typed.names(vocabulary, "auto") == ["both known", "hepar", "left kidney", "liver"]
    assert typed.names(vocabulary, "brain") == []


def body(content=b"\r\n--x\x00\xff\r\n", name="a.seg.nrrd"):
    return multipart.composed({"a": 1}, image=(name, content))[0]


def test_a_form_goes_there_and_back():
    assert multipart.parsed(body()) == ({"a": 1}, "a.seg.nrrd", b"\r\n--x\x00\xff\r\n")


def test_a_form_is_read_by_another_library():
    content, kind = multipart.composed({"a": 1}, label=('x"\r\n.nrrd', b"\r\n\xff"))
    message = email.message_from_bytes(f"Content-Type: {kind}\r\n\r\n".encode() + content)
    params, label = message.get_payload()
    assert json.loads(params.get_payload()) == {"a": 1}
    assert (label.get_filename(), label.get_payload(decode=True)) == ("x___.nrrd", b"\r\n\xff")


def test_a_server_without_a_file_answers_with_json():
    assert multipart.parsed(b'{"a": 1}') == ({"a": 1}, "", b"")
    assert multipart.parsed(b"null") == ({}, "", b"")


@pytest.mark.parametrize("length", [0, 10, 100, -3, -6])
def test_what_is_cut_off_is_refused(length):
    with pytest.raises(ValueError, match=r"cut off|Expecting value"):
        multipart.parsed(body()[:length])


def test_another_type_is_refused():
    with pytest.raises(ValueError, match="Expecting value"):
        multipart.parsed(b"<html>")


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("../../etc/x.nii.gz", ".nii.gz"),
        ("C:\\temp\\x.nii.gz", ".nii.gz"),
        ("x\0.nii.gz", ".nii.gz"),
        ("x.nrrd/../../y", ""),
        ("x.n/../y.nrrd", ".nrrd"),
        ("..", ""),
        ("", ""),
        ('attachment; filename="../ct 1.nii.gz"', ".nii.gz"),
        ("attachment; filename*=utf-8''ct%201.nrrd", ".nrrd"),
        ("ct.1.nii.gz", ".nii.gz"),
        ("result.seg.nrrd", ".seg.nrrd"),
    ],
)
def test_a_server_chooses_a_kind_of_file_and_no_folder(name, found):
    assert multipart.suffix(name) == found
