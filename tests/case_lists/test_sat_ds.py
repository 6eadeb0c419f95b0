"""Tests of lorkd_monailabel.case_lists.sat_ds: lines and arrays as SAT-DS's convert_to_npy.py leaves them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from lorkd_monailabel.case_lists.sat_ds import sat_ds

RAW = {
    "image": "data/nii/CHAOS/Train_Sets/MR/34/T1DUAL/DICOM_anon/OutPhase/701_.nii.gz",
    "mask": "data/nii/CHAOS/Train_Sets/MR/34/t1_label.nii.gz",
    "label": ["liver", "right kidney", "left kidney", "spleen", "kidney"],
    "modality": "MRI T1",
    "dataset": "CHAOS_MRI",
    "official_split": "unknown",
    "patient_id": "34",
}


def masks(labels: np.ndarray) -> dict[str, np.ndarray]:
    """Those of the raw line: the kidneys once more as one, and liver voxels that are right kidney too; no spleen."""
    liver = labels == 3
    liver[5:7, 2, 1] = True
    both = {"left kidney": labels == 1, "right kidney": labels == 2}
    return {"liver": liver, **both, "kidney": (labels == 1) | (labels == 2), "spleen": np.zeros(labels.shape, bool)}


@pytest.fixture
def write_lines(tmp_path: Path, labels: np.ndarray, ct: np.ndarray) -> Callable[..., Path]:
    """Write the arrays of one case beside the repository's data folder, and the list into it."""

    def write(**changed: Any) -> Path:
        image = tmp_path / "SAT-DS/preprocessed_npy/CHAOS_MRI/renorm_image/0.npy"
        folder = tmp_path / "SAT-DS/preprocessed_npy/CHAOS_MRI/renorm_segmentation/0"
        image.parent.mkdir(parents=True)
        folder.mkdir(parents=True)
        np.save(image, ct[None])
        boxes: list[Any] = []
        for name in RAW["label"]:
            mask = masks(labels)[name]
            where = np.argwhere(mask)
            boxes.append([*map(int, where.min(axis=0)), *map(int, where.max(axis=0) + 1)] if len(where) else False)
            if boxes[-1]:
                x, y, z, u, v, w = boxes[-1]
                np.save(folder / f"{name}.npy", mask[x:u, y:v, z:w])
        line = {
            **RAW,
            "sample_id": 0,
            "renorm_image": "preprocessed_npy/CHAOS_MRI/renorm_image/0.npy",
            "chwd": [1, *ct.shape],
            "roi_y1x1z1_y2x2z2": [1, 1, 1, 7, 6, 4],
            "renorm_segmentation_dir": "preprocessed_npy/CHAOS_MRI/renorm_segmentation/0",
            "renorm_y1x1z1_y2x2z2": boxes,
            **changed,
        }
        path = tmp_path / "SAT-DS/data/jsonl/CHAOS_MRI.jsonl"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(line) + "\n", encoding="utf-8")
        return path

    return write


def test_masks_become_one_label_volume_exactly(
    write_lines: Callable[..., Path], listed: Any, labels: np.ndarray, ct: np.ndarray
) -> None:
    (case,) = listed(sat_ds(write_lines()))
    values = np.asarray(nibabel.load(case.label).dataobj)
    assert set(case.structures) == {"liver", "left kidney", "right kidney", "spleen"}  # "kidney" is those two
    for name, own in case.structures.items():
        np.testing.assert_array_equal(np.isin(values, own), masks(labels)[name])
    assert len(case.structures["right kidney"]) == 2
    image = nibabel.load(case.image)
    np.testing.assert_array_equal(image.get_fdata(), ct)
    np.testing.assert_array_equal(image.affine, np.diag([1, 1, 3, 1]))
    assert (case.modality, case.source, case.subject) == ("mri", "CHAOS_MRI", "34")


@pytest.mark.parametrize(("official", "split"), [("train", "train"), ("test", "test"), ("val", "validation")])
def test_official_split_is_kept(write_lines: Callable[..., Path], listed: Any, official: str, split: str) -> None:
    (case,) = listed(sat_ds(write_lines(official_split=official)))
    assert case.split == split


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"renorm_image": "gone.npy"}, "1 of the 5 files .* missing, the first is .*gone.npy"),
        ({"renorm_y1x1z1_y2x2z2": [False]}, "has 5 labels and 1 boxes"),
        ({"renorm_y1x1z1_y2x2z2": [[1, 2], False, False, False, False]}, "of 'liver' in .* must be six numbers"),
        ({"dataset": None}, "line 1 has another kind of 'dataset'"),
    ],
)
def test_a_broken_line_is_refused(write_lines: Callable[..., Path], changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sat_ds(write_lines(**changed))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            json.dumps(RAW),
            "line 1 has no renorm_segmentation_dir, .*; run SAT-DS's convert_to_npy.py on the list first",
        ),
        ("{", "line 1 is not JSON"),
        ("[]", "line 1 must be an object in braces"),
        ("\n", "is empty"),
    ],
)
def test_what_is_no_list_of_arrays_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "raw.jsonl"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        sat_ds(path)


def test_a_mask_that_does_not_fit_leaves_nothing(write_lines: Callable[..., Path], listed: Any, tmp_path: Path) -> None:
    found = sat_ds(write_lines())
    np.save(tmp_path / "SAT-DS/preprocessed_npy/CHAOS_MRI/renorm_segmentation/0/kidney.npy", np.ones((1, 1, 1), bool))
    with pytest.raises(ValueError, match=r"the mask of 'kidney' has shape \(1, 1, 1\), its place \(6, 2, 2\)"):
        listed(found)
    assert [path.name for path in tmp_path.iterdir()] == ["SAT-DS"]
