"""Tests of lorkd_monailabel.case_lists.nnunet: raw folders of nnU-Net v2."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lorkd_monailabel.case_lists.nnunet import nnunet

CONTENT: dict[str, Any] = {
    "channel_names": {"0": "CT"},
    "labels": {"background": 0, "kidney_left": 1, "kidney_right": 2, "Liver": 3},
    "numTraining": 2,
    "file_ending": ".nii.gz",
}


@pytest.fixture
def dataset(write_volume: Any, write_json: Any, ct: np.ndarray, labels: np.ndarray) -> Callable[..., Path]:
    """Write a data set of two training cases with as many channels as are named, and one test case."""

    def write(**changed: Any) -> Path:
        content = {**CONTENT, **changed}
        for part, subject in (("Tr", "case_001"), ("Tr", "case_002"), ("Ts", "case_003")):
            for channel in range(len(content["channel_names"])):
                write_volume(f"Dataset001_Abdomen/images{part}/{subject}_{channel:04d}.nii.gz", ct)
            write_volume(f"Dataset001_Abdomen/labels{part}/{subject}.nii.gz", labels)
        path: Path = write_json("Dataset001_Abdomen/dataset.json", content)
        return path.parent

    return write


def test_a_data_set_becomes_a_list(dataset: Callable[..., Path], listed: Any, tmp_path: Path) -> None:
    cases = listed(nnunet(dataset()), validation=0.0)
    assert [(case.subject, case.split) for case in cases] == [
        ("case_001", "train"),
        ("case_002", "train"),
        ("case_003", "test"),
    ]
    assert cases[0].image == tmp_path / "Dataset001_Abdomen/imagesTr/case_001_0000.nii.gz"
    assert cases[0].label == tmp_path / "Dataset001_Abdomen/labelsTr/case_001.nii.gz"
    assert (cases[0].source, cases[0].modality) == ("Dataset001_Abdomen", "ct")
    assert cases[0].structures == {"left kidney": (1,), "right kidney": (2,), "liver": (3,)}


def test_regions_are_values_that_may_be_shared(dataset: Callable[..., Path], listed: Any) -> None:
    labels = {"background": 0, "kidney cortex": [1, 2], "liver": [2, 3]}
    found = nnunet(dataset(labels=labels, regions_class_order=[1, 3]))
    case = listed(found, mapped={"kidney cortex": ("left kidney",)})[0]
    assert case.structures == {"left kidney": (1, 2), "liver": (2, 3)}


@pytest.mark.parametrize("channel", ["flair", "1"])
def test_a_channel_of_several_is_chosen(dataset: Callable[..., Path], listed: Any, channel: str) -> None:
    case = listed(nnunet(dataset(channel_names={"0": "T1", "1": "FLAIR"}), channel=channel))[0]
    assert (case.image.name, case.modality) == ("case_001_0001.nii.gz", "mri")


def test_files_may_lie_elsewhere(dataset: Callable[..., Path], write_json: Any, tmp_path: Path) -> None:
    folder = dataset()
    files = {"images": ["imagesTr/case_002_0000.nii.gz"], "label": str(folder / "labelsTr/case_002.nii.gz")}
    write_json("Dataset001_Abdomen/dataset.json", {**CONTENT, "dataset": {"case_002": files}})
    assert [(case.subject, case.image.name) for case in nnunet(folder)] == [
        ("case_002", "case_002_0000.nii.gz"),
        ("case_003", "case_003_0000.nii.gz"),
    ]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"labels": {"liver": "one"}}, "label 'liver' of .* has the value 'one'; write a whole number or a list"),
        ({"labels": {"liver": []}}, r"has the value \[\]"),
        ({"file_ending": ".png"}, "file_ending '.png' .* must be one of"),
        ({"channel_names": {"0": "T1", "1": "T2"}}, "have 2 channels"),
    ],
)
def test_what_is_no_data_set_is_refused(dataset: Callable[..., Path], changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        nnunet(dataset(**changed))


def test_label_without_an_image_is_refused(dataset: Callable[..., Path]) -> None:
    folder = dataset()
    (folder / "imagesTr/case_002_0000.nii.gz").unlink()
    with pytest.raises(ValueError, match=r"1 of the 6 files .* missing, the first is .*case_002_0000.nii.gz; complete"):
        nnunet(folder)


def test_first_form_is_refused(write_json: Any) -> None:
    path = write_json("Task001/dataset.json", {"modality": {"0": "CT"}, "labels": {"0": "background"}})
    with pytest.raises(ValueError, match="use lorkd cases convert decathlon"):
        nnunet(path.parent)
