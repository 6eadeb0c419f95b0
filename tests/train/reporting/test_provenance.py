"""Tests of what is written down of where a run comes from."""

import json
import os
import platform
import subprocess
import time
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

import lorkd_monailabel
from train.reporting.provenance import CHECKOUT, cores, git_state, portable, provenance, write_provenance
from train.settings import DataConfig, DecomposeConfig


@dataclass(frozen=True)
class Config:
    teacher: str = "/srv/models/foundation.safetensors"
    models: dict[str, str] = field(default_factory=lambda: {"ours": "~/store", "theirs": r"C:\weights\sat.pth"})
    lists: list[str] = field(default_factory=lambda: ["/data/a.jsonl", "b.jsonl", "../c.jsonl"])
    run: str = "runs/first"
    steps: int = 7


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout of one commit."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    (folder / "file").write_text("one\n", encoding="utf-8")
    identity = ("-c", "user.name=someone", "-c", "user.email=someone@example.org", "-c", "commit.gpgsign=false")
    for command in (("init", "-q"), ("add", "."), (*identity, "commit", "-q", "-m", "one")):
        subprocess.run(["git", "-C", str(folder), *command], check=True)
    return folder


def test_no_folder_of_the_machine_is_told() -> None:
    assert portable(Config()) == {
        "teacher": "foundation.safetensors",
        "models": {"ours": "store", "theirs": "sat.pth"},
        "lists": ["a.jsonl", "b.jsonl", "c.jsonl"],
        "run": "runs/first",
        "steps": 7,
    }


def test_what_is_published_tells_no_path() -> None:
    config = DecomposeConfig(data=DataConfig(cases="/a/b", cache="/c"), output="/d", store="/e", teacher="/f", rank=3)
    kept = portable(config)
    assert "/" not in json.dumps(kept)
    assert (kept["rank"], kept["data"]["spacing_mm"]) == (3, {"default": 3.0})


def test_a_run_tells_settings_versions_seed_and_machine(tmp_path: Path) -> None:
    config = DecomposeConfig(
        data=DataConfig(cases=str(tmp_path / "cases.jsonl"), patch=[8, 8, 4]), output=str(tmp_path), store="store"
    )
    told = write_provenance(tmp_path / "run", config, 3)
    assert json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8")) == told
    assert str(tmp_path) not in json.dumps(told)
    assert told["config"]["data"]["cases"] == "cases.jsonl"
    assert told["config"]["data"]["patch"] == [8, 8, 4]
    assert told["config"]["beta"] == config.beta
    assert (told["seed"], told["world_size"], told["cores"]) == (3, 1, cores())
    assert told["device"]
    assert told["versions"] == {
        "lorkd_monailabel": lorkd_monailabel.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        **{name: version(name) for name in ("monai", "numpy", "nibabel")},
    }


def test_the_same_run_is_told_the_same_but_for_the_date() -> None:
    first, second = (provenance(Config(), 0) for _ in range(2))
    assert {**first, "date": ""} == {**second, "date": ""}
    assert first["git"] == git_state(CHECKOUT)


def test_a_revision_and_whether_files_differ_from_it(checkout: Path) -> None:
    head = (checkout / ".git" / "HEAD").read_text(encoding="utf-8").removeprefix("ref: ").strip()
    revision = (checkout / ".git" / head).read_text(encoding="utf-8").strip()
    assert git_state(checkout) == {"revision": revision, "dirty": False}
    (checkout / "file").write_text("two\n", encoding="utf-8")
    assert git_state(checkout) == {"revision": revision, "dirty": True}


def test_a_package_within_another_checkout_has_no_revision(checkout: Path) -> None:
    installed = checkout / "site-packages"
    installed.mkdir()
    assert git_state(installed) is None


def test_variables_of_a_hook_do_not_lead_to_another_repository(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_DIR", str(checkout / ".git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(tmp_path))
    assert git_state(tmp_path) is None


def test_without_git_there_is_no_revision(checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    assert git_state(checkout) is None


def test_a_git_that_hangs_is_not_waited_for(checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git = tmp_path / "git"
    git.write_text("#!/bin/sh\nexec sleep 60\n", encoding="utf-8")
    git.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    began = time.monotonic()
    assert git_state(checkout, seconds=0.2) is None
    assert time.monotonic() - began < 10
