"""Tests of lorkd_monailabel.json_files."""

import os
from pathlib import Path

import pytest

from lorkd_monailabel.json_files import read_json, write_json


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file.json"
    assert read_json(path) == {}
    write_json(path, {"a": [1, None]})
    write_json(path, {"b": "ü"}, flush=False)
    assert read_json(path) == {"b": "ü"}
    assert [each.name for each in path.parent.iterdir()] == ["file.json"]


def test_a_failure_leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file.json"
    write_json(path, {"a": 1})

    def full(descriptor: int) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space left"):
        write_json(path, {"a": 2})
    assert read_json(path) == {"a": 1}
    assert [each.name for each in tmp_path.iterdir()] == ["file.json"]


@pytest.mark.parametrize("text", ["{", "[1]", "null", "[" * 100_000])
def test_a_damaged_file_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "file.json").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"file\.json .*restore it from a backup or remove it"):
        read_json(tmp_path / "file.json")
