"""Tests of lorkd_monailabel.case_lists.datastore: a folder that MONAI Label's own datastore has written."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from monailabel.datastore.local import LocalDatastore

from lorkd_monailabel.case_lists.datastore import datastore

INFO = [{"name": "left kidney", "idx": 1}, {"name": "right kidney", "idx": 2}, {"name": "liver", "idx": 3}]
SHIFTED = [{**each, "idx": each["idx"] + 1} for each in INFO]

Studies = Callable[..., Path]


@pytest.fixture
def studies(tmp_path: Path, write_volume: Any, ct: np.ndarray, labels: np.ndarray) -> Studies:
    """Write images "a" and "b"; "a" gets a label as the server saves it."""

    def write(info: dict[str, Any], *, tag: str = "final", label: np.ndarray = labels) -> Path:
        for name in ("a", "b"):
            write_volume(f"studies/{name}.nii.gz", ct)
        store = LocalDatastore(str(tmp_path / "studies"), auto_reload=False)
        store.save_label("a", str(write_volume("sent.nii.gz", label)), tag, info)
        assert json.loads((tmp_path / "studies/datastore_v2.json").read_text(encoding="utf-8"))["objects"]["a"][
            "labels"
        ]
        return tmp_path / "studies"

    return write


def test_a_submitted_label_becomes_a_case(studies: Studies, listed: Any, tmp_path: Path) -> None:
    (case,) = listed(datastore(studies({"label_info": INFO})), modality="auto")
    assert case.image == tmp_path / "studies/a.nii.gz"
    assert case.label == tmp_path / "studies/labels/final/a.nii.gz"
    assert case.structures == {"left kidney": (1,), "right kidney": (2,), "liver": (3,)}
    assert (case.modality, case.source, case.subject) == ("ct", "studies", "a")


def test_what_our_app_saves_becomes_a_case(studies: Studies, listed: Any) -> None:
    info = {"model": "lorkd", "params": {"label_names": {"liver": 3, "left kidney": 1}, "lorkd": {}}}
    (case,) = listed(datastore(studies(info, tag="original"), tag="original"), modality="ct")
    assert case.structures == {"liver": (3,), "left kidney": (1,)}


def test_the_stock_plugins_shifted_idx_is_seen(studies: Studies) -> None:
    (found,) = datastore(studies({"label_info": SHIFTED}))
    assert found.labels == {"left kidney": (1,), "right kidney": (2,), "liver": (3,)}


def test_idx_with_gaps_is_the_value(studies: Studies, labels: np.ndarray) -> None:
    info = [{"name": "liver", "idx": 3}, {"name": "spleen", "idx": 7}]
    (found,) = datastore(studies({"label_info": info}, label=labels * (labels == 3)))
    assert found.labels == {"liver": (3,)}  # nobody drew a spleen


def test_segments_of_one_name_are_one_structure(studies: Studies) -> None:
    info = [{"name": "liver", "idx": 1}, {"name": "spleen", "idx": 2}, {"name": "liver", "idx": 3}]
    assert datastore(studies({"label_info": info}))[0].labels == {"liver": (1, 3), "spleen": (2,)}


def test_what_stays_open_must_be_said(studies: Studies, labels: np.ndarray) -> None:
    folder = studies({"label_info": SHIFTED}, label=labels * (labels == 2))
    with pytest.raises(
        ValueError, match=r"idx \[2, 3, 4\], its volume has the values \[2\], .*; say it with --values-by"
    ):
        datastore(folder)
    assert datastore(folder, by="position")[0].labels["right kidney"] == (2,)
    assert datastore(folder, by="idx")[0].labels == {"left kidney": (2,)}


def test_names_may_be_said(studies: Studies) -> None:
    folder = studies({})
    with pytest.raises(ValueError, match=r"values of 1 labels mean, the first is that of 'a'; say it with --label"):
        datastore(folder)
    assert datastore(folder, labels={"liver": (3,)})[0].labels == {"liver": (3,)}


def test_other_tags_are_named(studies: Studies) -> None:
    with pytest.raises(ValueError, match=r"a label tagged 'final' \(tags: original\); choose another with --tag"):
        datastore(studies({"label_info": INFO}, tag="original"))


def test_missing_files_are_refused(studies: Studies, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"datastore_v2.json can't be read"):
        datastore(tmp_path)
    folder = studies({"label_info": INFO})
    (folder / "a.nii.gz").unlink()
    with pytest.raises(ValueError, match=r"1 of the 2 files that image 'a' .* needs are missing"):
        datastore(folder)
