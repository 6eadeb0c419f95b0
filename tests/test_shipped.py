"""Tests of lorkd_monailabel.shipped."""

import pytest

from lorkd_monailabel import shipped
from lorkd_monailabel.shipped import store_of_app


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """A stand-in for the store that the package ships."""
    folder = tmp_path / "shipped"
    (folder / "abdomen").mkdir(parents=True)
    (folder / "abdomen" / "0001.safetensors").write_bytes(b"expert")
    monkeypatch.setattr(shipped, "STORE", folder)
    return folder


def test_shipped_store_is_copied_once(tmp_path, stand_in):
    folder = store_of_app(tmp_path / "app")
    assert folder == tmp_path / "app" / "model" / "store"
    assert (folder / "abdomen" / "0001.safetensors").read_bytes() == b"expert"
    assert [each.name for each in folder.parent.iterdir()] == ["store"]
    (folder / "abdomen" / "0001.safetensors").write_bytes(b"own")
    assert (store_of_app(tmp_path / "app") / "abdomen" / "0001.safetensors").read_bytes() == b"own"


def test_process_that_copies_second_takes_the_first_ones(tmp_path, stand_in, monkeypatch):
    rename = shipped.os.rename

    def late(source, target):
        (target / "abdomen").mkdir(parents=True)
        rename(source, target)

    monkeypatch.setattr(shipped.os, "rename", late)
    folder = store_of_app(tmp_path / "app")
    assert [each.name for each in folder.parent.iterdir()] == ["store"]
    assert list((folder / "abdomen").iterdir()) == []


def test_copy_that_fails_leaves_nothing(tmp_path, stand_in, monkeypatch):
    def full(source, target):
        raise OSError("no space left")

    monkeypatch.setattr(shipped.shutil, "copytree", full)
    with pytest.raises(OSError, match="no space left"):
        store_of_app(tmp_path / "app")
    assert list((tmp_path / "app" / "model").iterdir()) == []
