"""Tests of lorkd_monailabel.case_lists.bids: data sets in the layout of the BIDS specification."""

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from lorkd_monailabel.case_lists.bids import bids
from lorkd_monailabel.case_lists.records import Settings, convert

TABLE = """\
index\tname\tcolor
0\tBackground\t#000000
1\tKidney, left\t#ff0000
2\tright kidney\t#00ff00
3\tLiver\t#0000ff
"""


@pytest.fixture
def dataset(tmp_path: Path, write_volume: Any, write_json: Any, ct: np.ndarray, labels: np.ndarray) -> Path:
    """Two subjects with T1w and T2w, one of them in a session; manual segmentations of the T1w."""
    write_json("bids/dataset_description.json", {"Name": "Abdomen of two", "BIDSVersion": "1.8.0"})
    write_json(
        "bids/derivatives/manual/dataset_description.json",
        {"Name": "manual", "BIDSVersion": "1.8.0", "DatasetType": "derivative", "GeneratedBy": [{"Name": "Manual"}]},
    )
    (tmp_path / "bids/derivatives/manual/dseg.tsv").write_text(TABLE, encoding="utf-8")
    for folder, name in (("sub-01/anat", "sub-01"), ("sub-02/ses-a/anat", "sub-02_ses-a")):
        for suffix in ("T1w", "T2w"):
            write_volume(f"bids/{folder}/{name}_{suffix}.nii.gz", ct)
        write_volume(f"bids/derivatives/manual/{folder}/{name}_space-T1w_dseg.nii.gz", labels)
    return tmp_path / "bids"


def test_a_data_set_becomes_a_list(dataset: Path, listed: Any) -> None:
    cases = listed(bids(dataset))
    assert [(case.subject, case.image.name, case.label.name) for case in cases] == [
        ("01", "sub-01_T1w.nii.gz", "sub-01_space-T1w_dseg.nii.gz"),
        ("02", "sub-02_ses-a_T1w.nii.gz", "sub-02_ses-a_space-T1w_dseg.nii.gz"),
    ]
    assert cases[0].structures == {"left kidney": (1,), "right kidney": (2,), "liver": (3,)}
    assert (cases[0].modality, cases[0].source) == ("mri", "Abdomen of two")


def test_one_pipeline_finds_the_raw_images(dataset: Path) -> None:
    assert [case.image for case in bids(dataset / "derivatives/manual", only="*sub-01*")] == [
        dataset / "sub-01/anat/sub-01_T1w.nii.gz"
    ]


def test_the_nearest_table_counts(dataset: Path) -> None:
    near = dataset / "derivatives/manual/sub-01/anat/sub-01_space-T1w_dseg.tsv"
    near.write_text("index\tname\n3\tspleen\n", encoding="utf-8")
    assert next(dict(case.labels) for case in bids(dataset)) == {"spleen": (3,)}


def test_masks_of_an_image_are_merged(dataset: Path, listed: Any, write_volume: Any, labels: np.ndarray) -> None:
    folder = "bids/derivatives/masks/sub-01/anat/sub-01_space-T1w"
    write_volume(f"{folder}_label-liver_mask.nii.gz", (labels >= 2).astype(np.uint8))
    write_volume(f"{folder}_desc-spleen_mask.nii.gz", (labels == 3).astype(np.uint8))
    (case,) = listed(bids(dataset / "derivatives/masks"))
    values = np.asarray(nibabel.load(case.label).dataobj)
    np.testing.assert_array_equal(np.isin(values, case.structures["liver"]), labels >= 2)
    np.testing.assert_array_equal(np.isin(values, case.structures["spleen"]), labels == 3)


def test_one_mask_stays_where_it_is(
    dataset: Path, listed: Any, write_volume: Any, write_json: Any, labels: Any
) -> None:
    folder = "bids/derivatives/masks/sub-01/anat/sub-01_space-orig_desc-bet_mask"
    mask = write_volume(f"{folder}.nii.gz", (labels > 0).astype(np.uint8))
    write_json(f"{folder}.json", {"Type": "Brain", "RawSources": ["bids::sub-01/anat/sub-01_T2w.nii.gz"]})
    (case,) = listed(bids(dataset / "derivatives/masks", channel="T2w"))
    assert (case.label, case.structures, case.image.name) == (mask, {"brain": (1,)}, "sub-01_T2w.nii.gz")


def test_another_space_is_another_image(dataset: Path, write_volume: Any, ct: np.ndarray, labels: np.ndarray) -> None:
    folder = "bids/derivatives/manual/sub-01/anat/sub-01_space-MNI152NLin6Asym"
    write_volume(f"{folder}_dseg.nii.gz", labels)
    with pytest.raises(ValueError, match=r"no image of .*MNI152NLin6Asym_dseg.nii.gz .* with the same entities"):
        bids(dataset)
    image = write_volume(f"{folder}_desc-preproc_T1w.nii.gz", ct)
    assert [case.image for case in bids(dataset, only="*MNI*")] == [image]


def test_open_questions_are_asked(dataset: Path, write_volume: Any, labels: np.ndarray, tmp_path: Path) -> None:
    (dataset / "derivatives/manual/dseg.tsv").unlink()
    with pytest.raises(ValueError, match=r"has no dseg.tsv that names its values; add one, or say --label"):
        bids(dataset)
    assert bids(dataset, labels={"liver": (3,)})[0].labels == {"liver": (3,)}
    write_volume("bids/derivatives/other/sub-01/anat/sub-01_dseg.nii.gz", labels)
    with pytest.raises(ValueError, match=r"may be of sub-01_T1w.nii.gz, sub-01_T2w.nii.gz; choose .* --channel"):
        bids(dataset / "derivatives/other")
    with pytest.raises(ValueError, match=r"holds no \*_dseg.nii.gz"):
        bids(tmp_path / "nothing")


def test_a_segmentation_that_does_not_say_whose_it_is_is_named(
    dataset: Path, write_volume: Any, labels: np.ndarray
) -> None:
    write_volume("bids/derivatives/manual/sub-0.1_dseg.nii.gz", labels)
    with pytest.raises(ValueError, match=r"sub-0\.1_dseg\.nii\.gz does not say whose it is; "):
        bids(dataset)


def test_label_volumes_of_two_images_of_one_name_are_not_mixed_up(
    tmp_path: Path, write_volume: Any, ct: np.ndarray, labels: np.ndarray
) -> None:
    for pipeline in ("one", "two"):
        folder = f"bids/derivatives/{pipeline}/sub-01/anat/sub-01_space-MNI"
        write_volume(f"{folder}_T1w.nii.gz", ct)
        for value, name in enumerate(("liver", "spleen"), start=1):
            write_volume(f"{folder}_label-{name}_mask.nii.gz", (labels == value).astype(np.uint8))
    with pytest.raises(FileExistsError, match=r"sub-01_space-MNI_T1w_label\.nii\.gz would be written twice; "):
        convert(bids(tmp_path / "bids"), Settings(), tmp_path / "cases.jsonl", volumes=tmp_path / "volumes")
    assert not (tmp_path / "cases.jsonl").exists()
