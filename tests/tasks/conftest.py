"""A store of the tiny base, a datastore of four labelled volumes, and what a training has around it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch

from lorkd_monailabel.audit import Audit
from lorkd_monailabel.experts import Base, Expert
from lorkd_monailabel.sources.catalogue import Catalogue
from lorkd_monailabel.store import ExpertStore
from lorkd_monailabel.tasks.training.options import TrainingOptions, options_of
from lorkd_monailabel.tasks.training.place import Place
from lorkd_monailabel.tasks.training.state import RunState, Teller

AFFINE = np.diag([3.0, 3.0, 3.0, 1.0])
NAMES = ("one", "two", "three", "four")
TOLD = {"label_info": [{"name": "liver", "idx": 1}, {"name": "spleen", "idx": 2}]}


@pytest.fixture
def store(tmp_path: Path, tiny_base: Base, make_expert: Callable[..., Expert]) -> ExpertStore:
    """One expert of the abdomen, one of the thorax."""
    store = ExpertStore(tmp_path / "store")
    store.publish_base(tiny_base)
    store.publish(make_expert())
    store.publish(make_expert("thorax", seed=1, structures=("heart", "trachea")))
    return store


@pytest.fixture
def audit(store: ExpertStore) -> Audit:
    """Of the store, as the server has it."""
    return Audit(store.folder / "audit.jsonl")


@pytest.fixture
def place(tmp_path: Path, store: ExpertStore, audit: Audit) -> Place:
    """Saves after every step."""
    return Place(
        store=store,
        folder=tmp_path / "training",
        device=torch.device("cpu"),
        reference=audit.reference,
        save_every_s=0.0,
    )


@pytest.fixture
def volume() -> Callable[[int], tuple[np.ndarray, np.ndarray]]:
    """Makes an image and its labels: 1 and 2 are brighter than what is around them."""

    def make(seed: int) -> tuple[np.ndarray, np.ndarray]:
        labels = np.zeros((10, 10, 10), np.int16)
        labels[2:5, 2:8, 3:6] = 1
        labels[6:9, 4:8, 3:8] = 2
        return labels * 200 + np.random.default_rng(seed).normal(0, 30, labels.shape).astype(np.int16), labels

    return make


@pytest.fixture
def studies(tmp_path: Path, volume: Callable[[int], tuple[np.ndarray, np.ndarray]]) -> Catalogue:
    """Four volumes with final labels of liver and spleen."""
    folder = tmp_path / "studies"
    folder.mkdir()
    made = {name: volume(seed) for seed, name in enumerate(NAMES)}
    for name, (image, _) in made.items():
        nibabel.save(nibabel.Nifti1Image(image.astype(np.int16), AFFINE), folder / f"{name}.nii.gz")
    studies = Catalogue(str(folder), extensions=("*.nii.gz",))
    for name, (_, labels) in made.items():
        save_label(studies, tmp_path, name, labels, TOLD)
    return studies


def save_label(
    studies: Catalogue, folder: Path, name: str, labels: np.ndarray, info: dict[str, Any], tag: str = "final"
) -> None:
    """Submit labels as a client does."""
    path = folder / "label.nii.gz"
    nibabel.save(nibabel.Nifti1Image(labels, AFFINE), path)
    studies.save_label(name, str(path), tag, {**info})


@pytest.fixture
def options() -> Callable[..., TrainingOptions]:
    """Makes options of a short training."""

    def make(**changed: Any) -> TrainingOptions:
        known = {name: field.default for name, field in TrainingOptions.__dataclass_fields__.items()}
        return options_of({"steps": 2, "batch_size": 2, "workers": 0, "augment": False, **changed}, known=known)

    return make


@pytest.fixture
def teller(place: Place) -> Teller:
    """Of a run."""
    return Teller(place.folder, RunState("run", "finetune_abdomen", state="running", began=1.0))
