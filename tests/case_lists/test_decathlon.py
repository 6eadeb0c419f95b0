"""Tests of lorkd_monailabel.case_lists.decathlon: folders as medicaldecathlon.com gives them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from lorkd_monailabel.case_lists.decathlon import decathlon

# Task09_Spleen and Task05_Prostate, as their dataset.json has them, with one or two of their cases.
SPLEEN: dict[str, Any] = {
    "name": "Spleen",
    "description": "Spleen Segmentation",
    "reference": "Memorial Sloan Kettering Cancer Center",
    "licence": "CC-BY-SA 4.0",
    "release": "1.0 06/08/2018",
    "tensorImageSize": "3D",
    "modality": {"0": "CT"},
    "labels": {"0": "background", "1": "spleen"},
    "numTraining": 2,
    "numTest": 1,
    "training": [
        {"image": "./imagesTr/spleen_19.nii.gz", "label": "./labelsTr/spleen_19.nii.gz"},
        {"image": "./imagesTr/spleen_31.nii.gz", "label": "./labelsTr/spleen_31.nii.gz"},
    ],
    "test": ["./imagesTs/spleen_15.nii.gz"],
}
PROSTATE: dict[str, Any] = {
    **SPLEEN,
    "name": "PROSTATE",
    "tensorImageSize": "4D",
    "modality": {"0": "T2", "1": "ADC"},
    "labels": {"0": "background", "1": "PZ", "2": "TZ"},
    "training": [{"image": "./imagesTr/prostate_16.nii.gz", "label": "./labelsTr/prostate_16.nii.gz"}],
    "test": [],
}


@pytest.fixture
def task(write_volume: Any, write_json: Any, ct: np.ndarray, labels: np.ndarray) -> Callable[..., Path]:
    """Write a task; images of several sequences lie along a fourth axis."""

    def write(content: dict[str, Any]) -> Path:
        several = len(content["modality"])
        image = np.stack([ct + 100 * number for number in range(several)], axis=3) if several > 1 else ct
        for pair in content["training"]:
            write_volume(f"Task/{pair['image']}", image)
            write_volume(f"Task/{pair['label']}", np.minimum(labels, len(content["labels"]) - 1))
        path: Path = write_json("Task/dataset.json", content)
        return path.parent

    return write


def test_a_task_becomes_a_list(task: Callable[..., Path], listed: Any, tmp_path: Path) -> None:
    cases = listed(decathlon(task(SPLEEN)), validation=0.0)
    assert [(case.image, case.label) for case in cases] == [
        (tmp_path / f"Task/imagesTr/{name}.nii.gz", tmp_path / f"Task/labelsTr/{name}.nii.gz")
        for name in ("spleen_19", "spleen_31")
    ]
    (case, _) = cases
    assert (case.modality, case.source, case.subject, case.split) == ("ct", "Spleen", "spleen_19", "train")
    assert (case.structures, case.departments) == ({"spleen": (1,)}, {"spleen": "abdomen"})


def test_a_sequence_of_several_is_written(task: Callable[..., Path], listed: Any, ct: np.ndarray) -> None:
    mapped = {"PZ": ("prostate",), "TZ": ("prostate",)}
    (case,) = listed(decathlon(task(PROSTATE), channel="adc"), mapped=mapped)
    np.testing.assert_array_equal(nibabel.load(case.image).get_fdata(), ct + 100)
    assert (case.modality, case.structures) == ("mri", {"prostate": (1, 2)})


def test_a_written_image_may_tell_the_modality(task: Callable[..., Path], listed: Any) -> None:
    mapped = {"PZ": ("prostate",), "TZ": ("prostate",)}
    (case,) = listed(decathlon(task(PROSTATE), channel="0"), mapped=mapped, modality="auto")
    assert case.modality == "ct"  # the noise of these tests is as wide as Hounsfield units


def test_which_sequence_must_be_said(task: Callable[..., Path]) -> None:
    with pytest.raises(ValueError, match=r"have 2 channels \(0 'T2', 1 'ADC'\); choose one with --channel"):
        decathlon(task(PROSTATE))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": ["spleen"]}, "has another kind of 'labels'"),
        ({"labels": {"one": "spleen"}}, "label 'spleen' of .* has the value 'one'"),
        ({"training": ["imagesTr/spleen_19.nii.gz"]}, "training case 1 of .* is 'imagesTr/spleen_19.nii.gz', not an"),
        ({"training": [{"image": "imagesTr/gone.nii.gz", "label": "gone.nii.gz"}]}, "2 of the 2 files .* are missing"),
        ({"channel_names": {"0": "CT"}}, "nnU-Net's second form; use lorkd cases convert nnunet"),
    ],
)
def test_what_is_no_task_is_refused(
    task: Callable[..., Path], write_json: Any, change: dict[str, Any], message: str
) -> None:
    folder = task(SPLEEN)
    write_json("Task/dataset.json", {**SPLEEN, **change})
    with pytest.raises(ValueError, match=message):
        decathlon(folder)


def test_missing_or_broken_json_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"dataset.json can't be read \(No such file or directory\); name the folder"):
        decathlon(tmp_path)
    (tmp_path / "dataset.json").write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match=r"dataset.json is not JSON \(Expecting property name"):
        decathlon(tmp_path)
