"""Tests of files that are written whole or not at all."""

import gzip
from io import BytesIO
from pathlib import Path

import pytest

from lorkd_monailabel.drafts import draft_of, packed, write_whole


def test_a_file_takes_its_place_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.txt"
    with draft_of(path) as draft:
        draft.write_bytes(b"whole")
        assert not path.exists()
    assert path.read_bytes() == b"whole"
    assert list(path.parent.iterdir()) == [path]


def test_what_stood_there_stays_if_the_writer_fails(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_bytes(b"before")
    with pytest.raises(TypeError), draft_of(path) as draft, draft.open("wb") as file:
        file.writelines([b"half", None])  # type: ignore[list-item]
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


def test_what_can_not_be_written_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "text"
    write_whole(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_whole(path, "\ud800")
    assert path.read_text(encoding="utf-8") == "old"
    assert [each.name for each in tmp_path.iterdir()] == ["text"]


def test_a_taken_place_is_kept_if_nothing_may_give_way(tmp_path: Path) -> None:
    path = tmp_path / "file.bin"
    with draft_of(path, over=False) as draft:
        draft.write_bytes(b"first")
    with pytest.raises(FileExistsError), draft_of(path, over=False) as draft:
        draft.write_bytes(b"second")
    assert path.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [path]


def test_a_draft_is_hidden_and_has_the_suffix_that_was_asked_for(tmp_path: Path) -> None:
    with draft_of(tmp_path / "ct.nii.gz", suffix=".nii.gz") as draft:
        draft.touch()
        assert (draft.parent, draft.name[0]) == (tmp_path, ".")
        assert draft.name.endswith(".nii.gz")


def test_what_is_packed_is_gzip_and_the_same_each_time() -> None:
    files = BytesIO(), BytesIO()
    for file in files:
        with packed(file) as stream:
            stream.write(b"liver" * 1000)
    assert files[0].getvalue() == files[1].getvalue()
    assert gzip.decompress(files[0].getvalue()) == b"liver" * 1000
