"""What tests of the commands share: a folder to be in, a store of two departments, a volume, a way to run."""

import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
import pytest

from lorkd_monailabel.cli import main
from lorkd_monailabel.experts import Base, Expert
from lorkd_monailabel.store import ExpertStore

AFFINE = np.diag([3.0, 3.0, 3.0, 1.0])


@dataclass(frozen=True)
class Outcome:
    """Exit status and what was written."""

    status: int
    out: str
    err: str

    def table(self) -> dict[str, list[str]]:
        """The standard output's lines by their first word, in words."""
        return {line.split()[0]: line.split()[1:] for line in self.out.splitlines() if line}


Lorkd = Callable[..., Outcome]


@pytest.fixture
def lorkd(capfd: pytest.CaptureFixture[str]) -> Lorkd:
    """Run a command in this process."""

    def run(*words: object) -> Outcome:
        capfd.readouterr()
        status = main([str(word) for word in words])
        written = capfd.readouterr()
        return Outcome(status, written.out, written.err)

    return run


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, empty."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def store(tmp_path: Path, tiny_base: Base, make_expert: Callable[..., Expert]) -> ExpertStore:
    """Two experts of the abdomen, one of the thorax."""
    store = ExpertStore(tmp_path / "store")
    store.publish_base(tiny_base)
    store.publish(make_expert(about={"sources": ["set one", "set two"], "cases": 7}, metrics={"liver": 0.9}))
    store.publish(make_expert(seed=1, rank=2, parent=1, structures=("liver", "spleen", "pancreas")))
    store.publish(make_expert("thorax", seed=2, structures=("heart", "trachea")))
    return store


@pytest.fixture
def write_volume(tmp_path: Path) -> Callable[[str, np.ndarray], Path]:
    """Write an array as NIfTI, outside the current folder."""

    def write(name: str, array: np.ndarray) -> Path:
        nibabel.save(nibabel.Nifti1Image(array.astype(np.float32), AFFINE), tmp_path / name)
        return tmp_path / name

    return write


@pytest.fixture
def noise() -> np.ndarray:
    """Random numbers of the size of Hounsfield units, 9 x 8 x 7."""
    return np.random.default_rng(0).normal(0, 300, (9, 8, 7))


@pytest.fixture
def ct(write_volume: Callable[[str, np.ndarray], Path], noise: np.ndarray) -> Path:
    """A volume of 9 x 8 x 7 voxels of 3 mm."""
    return write_volume("ct.nii.gz", noise)


@pytest.fixture
def port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        number = free.getsockname()[1]
    return number
