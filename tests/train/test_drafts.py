"""Tests of files that are written whole or not at all."""

from pathlib import Path

import pytest

from train.drafts import draft_of, write_whole


def test_a_file_takes_its_place_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.txt"
    with draft_of(path) as draft:
        draft.write(b"whole")
        assert not path.exists()
    assert path.read_bytes() == b"whole"
    assert list(path.parent.iterdir()) == [path]


def test_what_stood_there_stays_if_the_writer_fails(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_bytes(b"before")
    with pytest.raises(TypeError), draft_of(path) as draft:
        draft.writelines([b"half", None])  # type: ignore[list-item]
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


def test_what_can_not_be_written_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "text"
    write_whole(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_whole(path, "\ud800")
    assert path.read_text(encoding="utf-8") == "old"
    assert [each.name for each in tmp_path.iterdir()] == ["text"]
