"""Tests of `lorkd doctor`."""

import socket
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from lorkd_monailabel import __version__
from lorkd_monailabel.commands import doctor, surroundings
from lorkd_monailabel.experts import Base
from lorkd_monailabel.front_door.tokens import add
from lorkd_monailabel.store import ExpertStore
from lorkd_monailabel.text_encoder import QueryTable


@pytest.fixture(autouse=True)
def plenty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory and disk of this machine are enough, whatever they are."""
    monkeypatch.setattr(surroundings, "LEAST_MEMORY", 0)
    monkeypatch.setattr(surroundings, "LEAST_DISK", 0)
    monkeypatch.setattr(surroundings.shutil, "which", lambda name: None)


def problems(outcome) -> list[str]:
    """The lines that are not ok; the status must agree."""
    found = [line.removeprefix("problem  ") for line in outcome.out.splitlines() if line.startswith("problem  ")]
    assert outcome.status == (1 if found else 0)
    assert outcome.err == ""
    return found


def test_all_is_well(lorkd: Callable, store: ExpertStore) -> None:
    outcome = lorkd("doctor", "--store", store.folder)
    assert problems(outcome) == []
    lines = [line.removeprefix("ok       ") for line in outcome.out.splitlines()]
    assert lines[0].startswith(f"lorkd {__version__}, python 3.")
    assert f"torch {version('torch')}" in lines[1]
    assert "monailabel 0." in lines[2]
    assert lines[3].startswith("device c")
    assert lines[4].startswith("networks compute in ")
    assert lines[5].endswith(", the whole vocabulary")
    assert lines[6] == f"store {store.folder}: experts of 2 of 8 departments"
    assert lines[7].startswith("base 0001: ")
    assert lines[8:10] == [
        "thorax/0001: 2 structures at 3 mm, loads and fuses",
        "abdomen/0002: 3 structures at 3 mm, loads and fuses",
    ]
    assert lines[10].startswith("memory: ")
    assert lines[11].startswith(f"disk of the store ({store.folder}): ")
    assert lines[12].startswith("disk of the uploads (")
    assert lines[13] == "all is well"


def test_a_damaged_expert_and_the_way_back(lorkd: Callable, store: ExpertStore) -> None:
    for name in ("abdomen", "thorax"):
        path = store.path(name)
        path.write_bytes(path.read_bytes()[:-1])
    thorax, abdomen = problems(lorkd("doctor", "--store", store.folder))
    assert thorax.startswith(f"thorax/0001: {store.path('thorax')} is damaged (")
    assert "rollback" not in thorax
    assert abdomen.startswith(f"abdomen/0002: {store.path('abdomen')} is damaged (")
    command = abdomen.partition("or go back: lorkd ")[2]
    assert command == f"experts rollback abdomen 1 --store {store.folder}"
    assert lorkd(*command.split()).status == 0
    assert [line.partition(":")[0] for line in problems(lorkd("doctor", "--store", store.folder))] == ["thorax/0001"]


def test_a_damaged_base(lorkd: Callable, store: ExpertStore) -> None:
    path = store.path("base")
    path.write_bytes(path.read_bytes()[:-1])
    base, thorax, abdomen = problems(lorkd("doctor", "--store", store.folder))
    assert base.startswith(f"base: {path} is damaged")
    assert "go back" not in thorax + abdomen


def test_an_expert_of_weights_that_are_no_numbers(lorkd: Callable, store: ExpertStore, make_expert: Callable) -> None:
    factors = {name: (a * torch.nan, b) for name, (a, b) in make_expert().factors.items()}
    store.publish(make_expert(factors=factors))
    store.publish(make_expert("spine", structures=("L1 vertebra", "tail")))
    abdomen, spine = problems(lorkd("doctor", "--store", store.folder))
    assert abdomen.startswith("abdomen/0003: weight ")
    assert "holds NaN or infinity" in abdomen
    assert abdomen.endswith(f"; or go back: lorkd experts rollback abdomen 2 --store {store.folder}")
    assert spine == "spine/0001 was trained on tail, unknown here; update lorkd-monailabel"


def test_a_base_of_another_query_table(
    lorkd: Callable, tmp_path: Path, tiny_base: Base, make_expert: Callable, table: QueryTable
) -> None:
    store = ExpertStore(tmp_path / "other")
    store.publish_base(replace(tiny_base, query_space="another"))
    store.publish(make_expert(spacing_mm=(1, 1, 3)))
    (abdomen,) = problems(lorkd("doctor", "--store", store.folder))
    assert "abdomen/0001: query space 'another' of a base is neither that of the package's own table" in abdomen
    store.publish_queries(replace(table, space="another"))
    outcome = lorkd("doctor", "--store", store.folder)
    assert problems(outcome) == []
    assert "ok       abdomen/0001: 2 structures at 1 x 1 x 3 mm, loads and fuses" in outcome.out.splitlines()


def test_no_store_and_no_expert(lorkd: Callable, tmp_path: Path) -> None:
    assert problems(lorkd("doctor", "--store", tmp_path / "no")) == [
        f"store {tmp_path / 'no'} is not a folder that exists; check --store"
    ]
    (empty,) = problems(lorkd("doctor", "--store", tmp_path))
    assert empty.startswith(f"store {tmp_path} holds no expert; train one")


def test_a_query_table_that_lacks_names_or_is_damaged(
    lorkd: Callable, store: ExpertStore, tmp_path: Path, table: QueryTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "queries.safetensors"
    monkeypatch.setattr("lorkd_monailabel.shipped.QUERIES", path)
    replace(table, names=table.names[1:], vectors=table.vectors[1:]).save(path)
    (missing,) = problems(lorkd("doctor", "--store", store.folder))
    assert f"but none for {table.names[0]}; run: lorkd vocabulary embed --extend" in missing
    path.write_bytes(b"")
    (damaged,) = problems(lorkd("doctor", "--store", store.folder))
    assert damaged.startswith(f"query table {path} can't be read")


def test_a_package_that_is_missing(lorkd: Callable, store: ExpertStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "NEEDED", ("torch", "no-such-package-of-ours"))
    assert problems(lorkd("doctor", "--store", store.folder)) == [
        "no-such-package-of-ours is not installed; run: pip install lorkd-monailabel"
    ]


def test_what_is_around_the_store(lorkd: Callable, store: ExpertStore, tmp_path: Path, ct: Path) -> None:
    (tmp_path / "studies").mkdir()
    (tmp_path / "studies" / "a.nii.gz").write_bytes(b"")
    add(tmp_path / "tokens.json", "anna", "annotator")
    arguments = ("--store", store.folder, "--studies", tmp_path / "studies", "--tokens", tmp_path / "tokens.json")
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = other.getsockname()[1]
        (busy,) = problems(lorkd("doctor", *arguments, "--port", taken))
    assert busy.startswith(f"port {taken} of 127.0.0.1 can't be used")
    outcome = lorkd("doctor", *arguments, "--port", taken)
    assert problems(outcome) == []
    assert f"ok       studies {tmp_path / 'studies'}: 1 image files" in outcome.out
    assert f"ok       port {taken} of 127.0.0.1 is free" in outcome.out
    assert f"ok       tokens {tmp_path / 'tokens.json'}: 1 annotator" in outcome.out


def test_surroundings_that_will_not_do(
    lorkd: Callable, store: ExpertStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(surroundings, "LEAST_MEMORY", 2**60)
    monkeypatch.setattr(surroundings, "LEAST_DISK", 2**60)
    monkeypatch.setattr(surroundings.shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    monkeypatch.setattr(doctor, "MONAI_LABEL", "0.9")
    arguments = ("--store", store.folder, "--studies", "http://127.0.0.1:9/dicom-web", "--tokens", tmp_path / "no")
    found = problems(lorkd("doctor", *arguments))
    version, gpu, memory, store_disk, uploads, studies, tokens = found
    assert version.startswith("the front door is written for monailabel 0.9, not 0.8.5")
    assert gpu.startswith("a driver of NVIDIA is there, but torch can't use a GPU")
    assert "end other programs" in memory
    assert "make room" in store_disk
    assert "make room" in uploads
    assert studies.startswith("studies http://127.0.0.1:9/dicom-web can't be reached")
    assert tokens.endswith("make it: lorkd tokens add NAME --role ROLE")
