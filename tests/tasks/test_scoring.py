"""Tests of lorkd_monailabel.tasks.scoring and readiness: what the labels of a datastore say."""

from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest

from lorkd_monailabel.audit import Audit
from lorkd_monailabel.departments import department
from lorkd_monailabel.sources.catalogue import Catalogue
from lorkd_monailabel.tasks.readiness import readiness
from lorkd_monailabel.tasks.scoring import Agreement
from lorkd_monailabel.tasks.train import FinetuneTask
from lorkd_monailabel.tasks.training import cases
from lorkd_monailabel.tasks.training.place import Place
from tests.tasks.conftest import AFFINE, TOLD, save_label


def test_agreement_is_the_mean_dice_of_structures_by_their_names(
    tmp_path: Path, studies: Catalogue, audit: Audit, volume: Callable
) -> None:
    _, labels = volume(0)
    drawn = np.zeros_like(labels)
    drawn[2:5, 2:8, 3:6] = 2  # the liver of 54 voxels, here with the value 2
    drawn[2:5, 2:8, 6:7] = 2  # and 18 more
    save_label(studies, tmp_path, "one", drawn, {"label_info": [{"name": "liver", "idx": 2}]})
    nibabel.save(nibabel.Nifti1Image(labels, AFFINE), tmp_path / "original.nii.gz")
    made = {"params": {"label_names": {"liver": 1, "spleen": 2}}}
    for image in ("one", "two"):
        studies.save_label(image, str(tmp_path / "original.nii.gz"), "original", made)
    found = Agreement(audit.reference)({}, studies)
    assert found == {"one": pytest.approx((2 * 54 / (54 + 72) + 0) / 2), "two": 1.0}
    assert studies.get_image_info("two")["dice"] == 1.0


def test_labels_that_can_not_be_compared_are_left_out(
    tmp_path: Path, studies: Catalogue, audit: Audit, caplog: pytest.LogCaptureFixture
) -> None:
    nibabel.save(nibabel.Nifti1Image(np.ones((3, 4, 5), np.uint8), AFFINE), tmp_path / "small.nii.gz")
    studies.save_label("one", str(tmp_path / "small.nii.gz"), "original", TOLD)
    assert Agreement(audit.reference)({}, studies) == {}
    assert "of different shapes" in caplog.text
    assert "one" not in caplog.text.replace(audit.reference("one"), "").split()


def test_what_is_missing_to_train_is_said_for_each_department(
    tmp_path: Path, studies: Catalogue, place: Place, audit: Audit, volume: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = [FinetuneTask(department(name), place, audit) for name in ("abdomen", "thorax", "brain")]
    _, labels = volume(0)
    save_label(studies, tmp_path, "one", labels, {"label_info": [{"name": "heart", "idx": 1}]})
    save_label(studies, tmp_path, "two", np.where(labels == 1, labels, 0).astype(np.int16), TOLD)
    abdomen, thorax, brain = readiness(tasks, studies, place.reference)
    assert (abdomen.labels, abdomen.structures) == (3, {"liver": 3, "spleen": 2})
    assert (abdomen.trainable, abdomen.reason) == (True, "")
    assert (thorax.labels, thorax.structures, thorax.trainable) == (1, {"heart": 1}, False)
    assert thorax.reason == (
        "one case of thorax is labelled, but one to train on and one to validate on are needed; label one"
    )
    assert brain.reason.startswith("brain has no expert to retrain")
    assert not (place.store.folder / cases.SPLITS).exists()  # nobody was parted by being looked at
    monkeypatch.setattr(cases, "read_labels", None)  # the second time no file is read
    assert readiness(tasks, studies, place.reference) == [abdomen, thorax, brain]
