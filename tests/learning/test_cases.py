"""Tests of lorkd_monailabel.learning.cases."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lorkd_monailabel.learning.cases import Case, case_of, departments_of, read_cases
from tests.learning.patients import STRUCTURES, labels

WriteCase = Callable[..., dict[str, Any]]
WriteList = Callable[[list[Any]], Path]


def test_a_line_becomes_a_case(write_list: WriteList, tmp_path: Path) -> None:
    line = {
        "image": "a/image.nii.gz",
        "label": "/elsewhere/label.nii.gz",
        "modality": "mri",
        "source": "hospital",
        "subject": 7,
        "split": "train",
        "structures": {
            "liver": {"values": [1], "department": "abdomen"},
            "skull": {"values": [2, 5], "department": "head and neck"},
        },
    }
    (case,) = read_cases(write_list([line, "", "   "]))
    assert case == Case(
        image=tmp_path / "a/image.nii.gz",
        label=Path("/elsewhere/label.nii.gz"),
        modality="mri",
        source="hospital",
        subject="7",
        split="train",
        structures={"liver": (1,), "skull": (2, 5)},
        departments={"liver": "abdomen", "skull": "head_and_neck"},
    )
    assert case.of("head_and_neck") == ("skull",)
    assert case.of("brain") == ()
    other = replace(case, departments={"liver": "brain"})
    assert departments_of([case, other]) == ("abdomen", "brain", "head_and_neck")


def test_splits_and_sources_choose(write_case: WriteCase, write_list: WriteList) -> None:
    path = write_list(
        [
            write_case(labels(), STRUCTURES, split=split, source=source, subject=f"{split} {source}")
            for split in ("train", "validation")
            for source in ("one", "two")
        ]
    )

    def subjects(**chosen: list[str]) -> list[str]:
        return [case.subject for case in read_cases(path, **chosen)]

    assert subjects() == ["train one", "train two", "validation one", "validation two"]
    assert subjects(splits=["train"]) == ["train one", "train two"]
    assert subjects(sources=["two"]) == ["train two", "validation two"]
    assert subjects(splits=["validation"], sources=["one"]) == ["validation one"]
    with pytest.raises(ValueError, match=r"has no case of splits \['test'\] and sources \[\]; widen the choice"):
        read_cases(path, splits=["test"])


GOOD = {
    "image": "i",
    "label": "l",
    "modality": "ct",
    "source": "s",
    "subject": "p",
    "split": "train",
    "structures": {"liver": {"values": [1], "department": "abdomen"}},
}


@pytest.mark.parametrize(
    "line",
    [
        "not JSON",
        "[1, 2]",
        "null",
        "7",
        *({key: value for key, value in GOOD.items() if key != missing} for missing in GOOD),
        {**GOOD, "image": 5},
        {**GOOD, "structures": ["liver"]},
        {**GOOD, "structures": {"liver": 1}},
        {**GOOD, "structures": {"liver": {"values": 1, "department": "abdomen"}}},
        {**GOOD, "structures": {"liver": {"values": [1], "department": "heart ward"}}},
        {**GOOD, "structures": {"liver": {"values": [1], "department": None}}},
        {**GOOD, "structures": {"liver": {"values": [1]}}},
    ],
)
def test_a_bad_line_is_named_by_its_number(line: object, write_list: WriteList) -> None:
    path = write_list([GOOD, "", line, GOOD])
    with pytest.raises(ValueError, match=r"cases\.jsonl line 3 is not a case \(.*\); see the format in the README"):
        read_cases(path)


def test_a_list_that_can_not_be_read(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none\.jsonl can't be read"):
        read_cases(tmp_path / "none.jsonl")
    (tmp_path / "binary.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"binary\.jsonl can't be read"):
        read_cases(tmp_path / "binary.jsonl")


def test_the_lines_are_json(write_case: WriteCase) -> None:
    record = write_case(labels(), STRUCTURES)
    assert case_of(json.loads(json.dumps(record))).structures["spleen"] == (2, 3)
