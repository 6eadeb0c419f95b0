"""Tests of lorkd_monailabel.case_lists.records."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lorkd_monailabel.case_lists.found import Found
from lorkd_monailabel.case_lists.naming import Choices
from lorkd_monailabel.case_lists.records import Settings, convert, records_of, split_of, splits_in
from lorkd_monailabel.case_lists.writing import merged


def found(subject: str = "one", **changed: Any) -> Found:
    return replace(Found(Path("i.nii"), Path("l.nii"), subject, "set", "CT", "", {"liver": (1,)}), **changed)


def test_splits_are_a_seeded_share_of_the_subjects() -> None:
    splits = {str(subject): split_of(str(subject), validation=0.2, seed=0) for subject in range(1000)}
    assert 160 < sum(split == "validation" for split in splits.values()) < 240
    assert all(split_of(subject, validation=0.2, seed=0) == split for subject, split in splits.items())
    assert splits != {subject: split_of(subject, validation=0.2, seed=1) for subject in splits}
    assert {split_of(subject, validation=0.0, seed=0) for subject in splits} == {"train"}
    assert {split_of(subject, validation=1.0, seed=0) for subject in splits} == {"validation"}
    with pytest.raises(ValueError, match=r"--validation 20.0 must be a share in 0..1"):
        split_of("one", validation=20.0, seed=0)


def test_a_subject_is_never_parted() -> None:
    cases = [found(str(number // 2), source=f"set {number % 2}") for number in range(40)]
    records = records_of(cases, Settings(validation=0.5))
    assert [record["split"] for record in records[::2]] == [record["split"] for record in records[1::2]]
    assert len({record["split"] for record in records}) == 2


def test_splits_of_a_file_come_first(write_json: Any) -> None:
    sat = splits_in(write_json("split.json", {"train": ["a", "b"], "test": ["c"]}), 0)
    assert [record["split"] for record in records_of([found("c"), found("a")], Settings(splits=sat))] == [
        "test",
        "train",
    ]
    with pytest.raises(ValueError, match="subject 'd' is in no split"):
        records_of([found("d")], Settings(splits=sat))
    folds = [{"train": ["a"], "val": ["b"]}, {"train": ["b"], "val": ["a"]}]
    assert splits_in(write_json("splits_final.json", folds), 1) == {"train": ["b"], "validation": ["a"]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "fold 0 is not one of the 0"),
        ({"train": "a"}, "must hold split -> list of subjects"),
        ({"train": ["a"], "test": ["a"]}, "subject 'a' is in several splits"),
    ],
)
def test_what_is_no_split_is_refused(write_json: Any, content: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        splits_in(write_json("split.json", content), 0)


def test_names_that_mean_the_same_share_their_values() -> None:
    choices = Choices({"cancer": ("liver", "spleen")})
    (record,) = records_of([found(labels={"cancer": (2,), "Liver": (1,)})], Settings(choices))
    assert record["structures"] == {
        "liver": {"values": [1, 2], "department": "abdomen"},
        "spleen": {"values": [2], "department": "abdomen"},
    }


def test_modality_must_be_known() -> None:
    with pytest.raises(ValueError, match="modality 'PET' is neither CT nor MRI; say --modality"):
        records_of([found(modality="PET")], Settings())
    assert records_of([found(modality="PET")], Settings(modality="mri"))[0]["modality"] == "mri"


def test_a_list_without_a_structure_is_refused() -> None:
    with pytest.raises(ValueError, match="none of 1 cases has a structure that is left; skip fewer names"):
        records_of([found()], Settings(Choices(skipped=frozenset({"liver"}))))


def test_paths_below_the_lists_folder_are_relative(tmp_path: Path) -> None:
    case = found(image=tmp_path / "a/i.nii", label=Path("/elsewhere/l.nii"))
    convert([case], Settings(), tmp_path / "cases.jsonl")
    record = json.loads((tmp_path / "cases.jsonl").read_text(encoding="utf-8"))
    assert (record["image"], record["label"]) == ("a/i.nii", "/elsewhere/l.nii")


def test_nothing_is_overwritten_unless_it_is_said(tmp_path: Path) -> None:
    output = tmp_path / "cases.jsonl"
    output.write_text("mine", encoding="utf-8")
    with pytest.raises(FileExistsError, match="exists already; name another file with --output, or add --overwrite"):
        convert([found()], Settings(), output)
    assert output.read_text(encoding="utf-8") == "mine"
    convert([found()], Settings(), output, overwrite=True)
    assert "liver" in output.read_text(encoding="utf-8")


def written(folder: Path) -> Found:
    (folder / "i.nii").write_text("new", encoding="utf-8")
    return found(image=folder / "i.nii")


def test_written_volumes_need_a_free_folder(tmp_path: Path) -> None:
    case, output, volumes = found(write=written), tmp_path / "cases.jsonl", tmp_path / "volumes"
    with pytest.raises(ValueError, match="name a folder for them: --volumes"):
        convert([case], Settings(), output)
    volumes.mkdir()
    (volumes / "i.nii").write_text("old", encoding="utf-8")
    with pytest.raises(FileExistsError, match="volumes exists already; name another folder"):
        convert([case], Settings(), output, volumes=volumes)
    assert (volumes / "i.nii").read_text(encoding="utf-8") == "old"
    convert([case], Settings(), output, volumes=volumes, overwrite=True)
    assert (volumes / "i.nii").read_text(encoding="utf-8") == "new"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cases.jsonl", "volumes"]


def test_an_error_leaves_nothing_behind(tmp_path: Path) -> None:
    def broken(folder: Path) -> Found:
        written(folder)
        raise ValueError("damaged")

    output = tmp_path / "cases.jsonl"
    with pytest.raises(ValueError, match="damaged"):
        convert([found(write=broken)], Settings(), output, volumes=tmp_path / "volumes")
    with pytest.raises(ValueError, match="stand for no structure"):
        convert([found(write=broken, labels={"x": ()})], Settings(), output, volumes=tmp_path / "volumes")
    assert list(tmp_path.iterdir()) == []


def test_merged_masks_come_apart_again() -> None:
    shape = (7, 6, 5)
    rng = np.random.default_rng(0)
    masks = {str(number): rng.random(shape) < 0.3 for number in range(5)}
    masks["none"] = np.zeros(shape, dtype=bool)
    masks["first again"] = masks["0"].copy()
    box = (slice(None), slice(None), slice(None))
    labels, values = merged(((name, box, mask) for name, mask in masks.items()), shape)
    for name, mask in masks.items():
        assert values[name]
        np.testing.assert_array_equal(np.isin(labels, values[name]), mask)
    assert values["first again"] == values["0"]
    used = {value for own in values.values() for value in own} - set(values["none"])
    assert set(np.unique(labels)) == {0, *used} == set(range(len(used) + 1))
