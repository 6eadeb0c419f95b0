"""What needs no Slicer: addresses, prompts, bodies of several parts."""

import importlib.util
import json
from pathlib import Path

import pytest

LIBRARY = Path(__file__).parents[2] / "slicer_module" / "LoRKD" / "LoRKDLib"


def load(name):
    spec = importlib.util.spec_from_file_location(f"pure_{name}", LIBRARY / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


address, prompt, multipart = load("address"), load("prompt"), load("multipart")


@pytest.mark.parametrize(
    ("typed", "url"),
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
def test_addresses_are_completed(typed, url):
    assert address.server_url(typed) == url


@pytest.mark.parametrize(
    "typed", ["ftp://host", "a b", "http://", "host:x", "host:99999", "https://me:secret@host", "x?y"]
)
def test_what_is_no_address_is_refused(typed):
    with pytest.raises(ValueError):  # noqa: PT011
        address.server_url(typed)


def test_phrases_are_split_trimmed_and_come_once():
    assert prompt.phrases(" left  kidney;liver\n\nLiver ; spleen, both;;") == ["left kidney", "liver", "spleen, both"]
    assert prompt.phrases(" ;\n ") == []


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
    assert prompt.typed_phrase(text, position) == found


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
    assert prompt.names(vocabulary, "auto") == ["both known", "hepar", "left kidney", "liver"]
    assert prompt.names(vocabulary, "brain") == []


def body(content=b"\r\n--x\x00\xff\r\n", name="a.seg.nrrd"):
    return multipart.composed({"params": json.dumps({"a": 1})}, {"image": multipart.Part(name, content)})


def test_a_form_goes_there_and_back():
    kind, content = body()
    assert multipart.parsed(kind, content) == ({"a": 1}, ("a.seg.nrrd", b"\r\n--x\x00\xff\r\n"))


def test_a_server_without_a_file_answers_with_json():
    assert multipart.parsed("application/json", b'{"a": 1}') == ({"a": 1}, None)


@pytest.mark.parametrize("length", [0, 10, 100, -1, -4])
def test_what_is_cut_off_is_refused(length):
    kind, content = body()
    with pytest.raises(ValueError, match="cut off"):
        multipart.parsed(kind, content[: length if length >= 0 else len(content) + length - 2])


def test_another_type_is_refused():
    with pytest.raises(ValueError, match="text/html"):
        multipart.parsed("text/html", b"<html>")


@pytest.mark.parametrize("name", ["../../etc/x.nii.gz", "C:\\temp\\x.nii.gz", "/x.nii.gz", "x\0.nii.gz"])
def test_a_server_cannot_choose_a_folder(name):
    assert "/" not in multipart.bare_name(name)
    assert multipart.bare_name(name).endswith(".nii.gz")
    assert "\\" not in multipart.bare_name(name)
    assert multipart.bare_name("..") == ""


def test_the_name_of_a_download():
    assert multipart.file_name('attachment; filename="../ct 1.nii.gz"') == "ct 1.nii.gz"
    assert multipart.file_name("attachment; filename*=utf-8''ct%201.nrrd") == "ct 1.nrrd"
    assert multipart.file_name("") == ""
