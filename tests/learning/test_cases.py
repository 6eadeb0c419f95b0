"""Tests of lorkd_monailabel.learning.cases."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lorkd_monailabel.learning import cases as cases_module
from lorkd_monailabel.learning.cases import Case, case_of, departments_of, prepare, read_cases
from lorkd_monailabel.volumes import normalise

WriteCase = Callable[..., dict[str, Any]]
WriteList = Callable[[list[Any]], Path]

STRUCTURES = {"liver": ("abdomen", [1]), "spleen": ("abdomen", [2, 3]), "heart": ("thorax", [4])}


def labels(shape: tuple[int, int, int] = (20, 16, 12)) -> np.ndarray:
    """Liver and spleen (of two values) in the middle, the heart in a corner."""
    array = np.zeros(shape, dtype=np.int16)
    array[6:9, 5:8, 4:7] = 1
    array[9:11, 5:8, 4:6] = 2
    array[11:12, 5:8, 4:6] = 3
    array[-3:, -3:, -3:] = 4
    return array


@pytest.fixture
def case(write_case: WriteCase, tmp_path: Path) -> Case:
    return case_of(write_case(labels(), STRUCTURES), folder=tmp_path)


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


def test_a_case_is_cut_around_the_departments_structures(case: Case, tmp_path: Path) -> None:
    prepared = prepare(case, department="abdomen", spacing_mm=3.0, margin_mm=7.0, cache=tmp_path / "cache")
    # 7 mm are three voxels of 3 mm; the structures span 6..11, 5..7, 4..6.
    cut = (slice(3, 15), slice(2, 11), slice(1, 10))
    assert np.array_equal(prepared.labels, labels()[cut])
    image = cases_module.read_volume(case.image, "ct").array
    np.testing.assert_allclose(prepared.image, normalise(image, "ct")[cut], atol=2e-3)
    assert (prepared.image.dtype, prepared.labels.dtype) == (np.float16, np.int16)
    assert set(prepared.centres) == {"liver", "spleen"}
    assert len(prepared.centres["liver"]) == 27
    assert len(prepared.centres["spleen"]) == 18
    for name, values in (("liver", {1}), ("spleen", {2, 3})):
        assert {int(prepared.labels[tuple(voxel)]) for voxel in prepared.centres[name]} == values
    assert (prepared.case, prepared.department) == (case, "abdomen")


def test_the_margin_ends_at_the_border(case: Case, tmp_path: Path) -> None:
    prepared = prepare(case, department="thorax", spacing_mm=3.0, margin_mm=12.0, cache=tmp_path / "cache")
    assert np.array_equal(prepared.labels, labels()[13:, 9:, 5:])


def test_a_listed_structure_without_a_voxel_is_absent(write_case: WriteCase, tmp_path: Path) -> None:
    record = write_case(labels(), {**STRUCTURES, "brain": ("brain", [9]), "stomach": ("abdomen", [8])})
    case = case_of(record, folder=tmp_path)
    prepared = prepare(case, department="abdomen", spacing_mm=3.0, margin_mm=3.0, cache=tmp_path / "cache")
    assert prepared.centres["stomach"].shape == (0, 3)
    whole = prepare(case, department="brain", spacing_mm=3.0, margin_mm=3.0, cache=tmp_path / "cache")
    assert whole.labels.shape == (20, 16, 12)  # nothing to cut around


def test_many_voxels_are_thinned(write_case: WriteCase, tmp_path: Path) -> None:
    array = np.zeros((20, 20, 20), dtype=np.int16)
    array[2:18, 2:18, 2:18] = 1
    case = case_of(write_case(array, {"liver": ("abdomen", [1])}), folder=tmp_path)
    centres = prepare(case, department="abdomen", spacing_mm=3.0, margin_mm=0.0, cache=tmp_path / "c").centres["liver"]
    assert centres.shape == (cases_module.CENTRES, 3)
    assert len(np.unique(centres, axis=0)) == cases_module.CENTRES


def test_oblique_flipped_volumes_come_to_the_canonical_grid(write_case: WriteCase, tmp_path: Path) -> None:
    # The same labels, stored with x and y exchanged and z from superior to inferior, turned by 15 degrees.
    turn = math.radians(15)
    rotation = np.array([[math.cos(turn), -math.sin(turn), 0], [math.sin(turn), math.cos(turn), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = 3 * rotation @ np.array([[0, 1, 0], [1, 0, 0], [0, 0, -1]])
    affine[:3, 3] = [5, 6, 7]
    array = np.ascontiguousarray(labels().transpose(1, 0, 2)[:, :, ::-1])
    case = case_of(write_case(array, STRUCTURES, affine=affine), folder=tmp_path)
    prepared = prepare(case, department="abdomen", spacing_mm=3.0, margin_mm=7.0, cache=tmp_path / "cache")
    assert np.array_equal(prepared.labels, labels()[3:15, 2:11, 1:10])
    assert np.corrcoef(prepared.image.ravel(), prepared.labels.ravel())[0, 1] > 0.95
    coarse = prepare(case, department="abdomen", spacing_mm=6.0, margin_mm=0.0, cache=tmp_path / "cache")
    assert max(abs(a - b / 2) for a, b in zip(coarse.labels.shape, (6, 3, 3), strict=True)) <= 1


def test_what_is_in_the_cache_is_read_from_there(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings: dict[str, Any] = {"department": "abdomen", "spacing_mm": 3.0, "margin_mm": 7.0}
    first = prepare(case, **settings, cache=tmp_path / "cache")
    entries = sorted((tmp_path / "cache").iterdir())
    assert len(entries) == 1

    def refuse(*arguments: object) -> None:
        raise AssertionError("read anew")

    with monkeypatch.context() as patch:
        patch.setattr(cases_module, "read_volume", refuse)
        second = prepare(case, **settings, cache=tmp_path / "cache")
        for other in ({"department": "thorax"}, {"spacing_mm": 2.0}, {"margin_mm": 6.0}):
            with pytest.raises(AssertionError, match="read anew"):
                prepare(case, **{**settings, **other}, cache=tmp_path / "cache")
        with pytest.raises(AssertionError, match="read anew"):
            prepare(replace(case, structures={**case.structures, "liver": (4,)}), **settings, cache=tmp_path / "cache")
    assert np.array_equal(first.image, second.image)
    assert all(np.array_equal(first.centres[name], second.centres[name]) for name in first.centres)
    assert sorted((tmp_path / "cache").iterdir()) == entries
    case.label.touch()
    case.image.touch()
    prepare(case, **settings, cache=tmp_path / "cache")
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_image_and_label_must_agree(write_case: WriteCase, tmp_path: Path) -> None:
    record = write_case(labels(), STRUCTURES, image=np.random.default_rng(0).normal(size=(20, 16, 11)))
    case = case_of(record, folder=tmp_path)
    with pytest.raises(ValueError, match=r"has shape \(20, 16, 12\), its image \(20, 16, 11\); they must agree"):
        prepare(case, department="abdomen", spacing_mm=3.0, margin_mm=3.0, cache=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_the_lines_are_json(write_case: WriteCase) -> None:
    record = write_case(labels(), STRUCTURES)
    assert case_of(json.loads(json.dumps(record))).structures["spleen"] == (2, 3)
