"""Tests of lorkd_monailabel.teachers.archives."""

import stat
import zipfile
from pathlib import Path

import pytest

from lorkd_monailabel.teachers import archives
from lorkd_monailabel.teachers.archives import archive_entries


def archive(path: Path, *entries: tuple[str | zipfile.ZipInfo, bytes], packed: bool = False) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED) as file:
        for name, content in entries:
            file.writestr(name, content)
    return path


def test_plain_archives_pass(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.zip", ("b/", b""), ("b/c.json", b"{}"), packed=True)
    assert [entry.filename for entry in archive_entries(path)] == ["b/c.json"]


def test_hostile_archives_are_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = zipfile.ZipInfo("models/model.pt")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    for name, sentence in (
        ("../evil", "a path out of the archive"),
        ("a/../../evil", "a path out of the archive"),
        ("/etc/evil", "a path out of the archive"),
        ("C:/evil", "a path out of the archive"),
        (link, "holds the link 'models/model.pt'"),
    ):
        path = archive(tmp_path / "a.zip", (name, b"x"))
        with pytest.raises(ValueError, match=sentence):
            archive_entries(path)
    path = archive(tmp_path / "twice.zip", ("model.json", b"x"), ("MODEL.json", b"y"))
    with pytest.raises(ValueError, match=r"holds 'MODEL\.json' twice"):
        archive_entries(path)
    monkeypatch.setattr(archives, "SMALL_BYTES", 1000)
    bomb = archive(tmp_path / "bomb.zip", ("model.pt", bytes(100_000)), packed=True)
    with pytest.raises(ValueError, match=r"bomb\.zip has \d+ bytes but would unpack to 100,000"):
        archive_entries(bomb)


def test_what_is_no_archive_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.zip").touch()
    whole = archive(tmp_path / "whole.zip", ("a", bytes(1000)))
    (tmp_path / "cut.zip").write_bytes(whole.read_bytes()[:500])
    for name in ("none.zip", "empty.zip", "cut.zip", "."):
        with pytest.raises(ValueError, match="is no archive that can be read"):
            archive_entries(tmp_path / name)
