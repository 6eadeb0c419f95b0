"""Tests of lorkd_monailabel.case_lists.check: a clean list has no finding, a planted fault exactly one."""

import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lorkd_monailabel.case_lists.check import check

AFFINE = np.diag([3.0, 3.0, 3.0, 1.0])

List = Any  # see conftest


def mirrored(labels: np.ndarray) -> np.ndarray:
    swapped = labels.copy()
    swapped[labels == 1], swapped[labels == 2] = 2, 1
    return swapped


def test_a_clean_list_has_no_finding(cases: List) -> None:
    assert cases.findings() == []


def missing(cases: List) -> None:
    cases.record["image"] = "gone.nii.gz"


def damaged(cases: List) -> None:
    path = cases.folder / "3_image.nii.gz"
    path.write_bytes(path.read_bytes()[:200])


def other_shape(cases: List) -> None:
    cases.label(cases.labels[:, :, :-1])


def other_place(cases: List) -> None:
    moved = AFFINE.copy()
    moved[1, 3] = 12
    cases.label(cases.labels, moved)


def unknown_structure(cases: List) -> None:
    cases.record["structures"]["livr"] = cases.record["structures"].pop("liver")


def wrong_department(cases: List) -> None:
    cases.record["structures"]["liver"]["department"] = "thorax"


def empty_label(cases: List) -> None:
    cases.label(np.zeros_like(cases.labels))


def absent_everywhere(cases: List) -> None:
    cases.record["structures"]["spleen"] = {"values": [9], "department": "abdomen"}


def flipped(cases: List) -> None:
    cases.label(mirrored(cases.labels))
    cases.record["structures"]["liver"]["values"] = [1, 3]


def all_flipped(cases: List) -> None:
    for number in range(1, len(cases.records) + 1):
        cases.label(cases.labels[::-1], number=number)


def in_two_splits(cases: List) -> None:
    cases.record["subject"] = "6"


def twice(cases: List) -> None:
    cases.records.append({**cases.record, "subject": "seven"})


def copied(cases: List) -> None:
    cases.image(cases.noise(1))


def tiny_spacing(cases: List) -> None:
    cases.both(np.diag([0.003, 0.003, 0.003, 1]))


def no_spacing(cases: List) -> None:
    path = cases.folder / "3_image.nii.gz"
    content = bytearray(gzip.decompress(path.read_bytes()))
    content[312:328] = bytes(16)  # srow_z of the header, which nibabel would not write
    path.write_bytes(gzip.compress(content))


def skewed(cases: List) -> None:
    affine = AFFINE.copy()
    affine[0, 1] = 1
    cases.both(affine)


def flat(cases: List) -> None:
    cases.image(cases.noise(3)[:, :, 0])


def four_axes(cases: List) -> None:
    cases.image(np.stack([cases.noise(3)] * 2, axis=3))


def not_a_number(cases: List) -> None:
    image = cases.noise(3)
    image[0, 0, 0] = np.nan
    cases.image(image)


def no_offset(cases: List) -> None:
    cases.image(np.abs(cases.noise(3)))


def no_air(cases: List) -> None:
    cases.image(cases.noise(3).clip(-100, 500))


def mistaken(cases: List) -> None:
    cases.record["modality"] = "mri"


def no_modality(cases: List) -> None:
    cases.record["modality"] = "pet"


def fractions(cases: List) -> None:
    cases.label(cases.labels * np.float32(0.5))


def too_large(cases: List) -> None:
    cases.label(np.where(cases.labels == 3, 65539, cases.labels).astype(np.int32))


def no_label(cases: List) -> None:
    del cases.record["label"]


def background_value(cases: List) -> None:
    cases.record["structures"]["liver"]["values"] = [0, 3]


@pytest.mark.parametrize(
    ("plant", "message"),
    [
        (missing, "image: .*gone.nii.gz does not exist; check the path"),
        (damaged, "image: .*3_image.nii.gz cannot be read as an image"),
        (other_shape, r"the label volume has shape \(8, 6, 4\), its image \(8, 6, 5\); export it on the image's grid"),
        (other_place, "the label volume lies up to 12.00 mm from where its image does; export it on the image's grid"),
        (
            unknown_structure,
            "'livr' is no structure of the vocabulary, so no prompt would find it; did you mean 'liver'",
        ),
        (
            wrong_department,
            "'liver' is a structure of abdomen, not of thorax, where no prompt would look; write abdomen",
        ),
        (empty_label, "no voxel of left kidney, right kidney, liver, it is empty; correct values, or drop it"),
        (absent_everywhere, "'spleen' has no voxel in any of the 1 cases that list it; correct its values, or drop it"),
        (flipped, "left lies right of right in 1 of 1 pairs, such as 'left kidney'; swap left and right in the list"),
        (tiny_spacing, "a spacing of 0.003 x 0.003 x 0.003 mm is outside 0.05 to 20 mm; correct the header"),
        (no_spacing, "image: .*: the affine is singular"),
        (skewed, "the axes are 18.4° from right angles to each other; resample"),
        (flat, r"image: .* is 2D"),
        (four_axes, r"image: .* has 4 axes"),
        (not_a_number, "image: .* holds NaN or infinite values"),
        (no_offset, "values from 1.* are no Hounsfield units; take 1024 off, or write mri"),
        (no_air, r"a CT from -100 to 500 has no air \(below -200\)"),
        (mistaken, "are no MRI but Hounsfield units; write ct"),
        (no_modality, "modality 'pet' must be ct or mri"),
        (fractions, "label: .* values that are no whole numbers"),
        (too_large, "the label volume has values from 0 to 65539, but 0 to 32767 are kept; number them anew"),
        (no_label, "it lacks 'label'; see the format"),
        (background_value, r"the values \[0, 3\] of liver must be whole numbers in 1..32767"),
    ],
)
def test_a_planted_fault_is_found_once(cases: List, plant: Callable[[List], None], message: str) -> None:
    plant(cases)
    (found,) = cases.findings()
    assert (found.fault, found.lines) == (True, (3,))
    assert re.search(message, str(found))


@pytest.mark.parametrize(
    ("plant", "lines", "message"),
    [
        (all_flipped, (1, 2, 3, 4, 5, 6), "in all 6 cases of hospital that have both sides; swap left and right"),
        (in_two_splits, (3, 6), r"\(subject '6' of hospital\): one subject is in the splits train and validation"),
        (twice, (3, 7), r"the same image comes 2 times \(subjects '3', 'seven'\); leave one of them"),
        (copied, (1, 3), r"the same image comes 2 times \(subjects '1', '3'\)"),
    ],
)
def test_a_planted_fault_between_cases_is_found_once(
    cases: List, plant: Callable[[List], None], lines: tuple[int, ...], message: str
) -> None:
    plant(cases)
    (found,) = cases.findings()
    assert (found.fault, found.lines) == (True, lines)
    assert re.search(message, str(found))


def test_values_of_no_structure_are_a_warning(cases: List) -> None:
    for record in cases.records[:2]:
        record["structures"]["liver"]["values"] = [2]
    (found,) = cases.findings()
    assert (found.fault, found.lines) == (False, (1, 2))
    assert "value 3 in label volumes of hospital is no structure's" in found.message


def test_a_volume_unlike_the_others_is_a_warning(cases: List) -> None:
    labels = cases.labels * (cases.labels != 1)
    labels[1, 1, 1] = 1
    for number in range(1, len(cases.records) + 1):
        large = cases.labels.copy()
        large[0:3, 0:4, 1:4] = 1  # 36 voxels, the third case has one
        cases.label(labels if number == 3 else large, number=number)
    (found,) = cases.findings()
    assert (found.fault, found.lines) == (False, (3,))
    assert found.message == "'left kidney' has 0.027 ml, the median case 0.972 ml; look at it"


def test_a_ct_of_sat_ds_is_a_warning(cases: List) -> None:
    image = cases.noise(3)
    cases.image((image - image.mean()) / image.std())
    (found,) = cases.findings()
    assert (found.fault, found.lines) == (False, (3,))
    assert "train with data.intensities = sat" in found.message


def test_further_structures_of_an_image_are_no_repetition(cases: List) -> None:
    cases.records.append({**cases.record, "structures": {"spleen": {"values": [3], "department": "abdomen"}}})
    cases.record["structures"].pop("liver")
    assert [each for each in cases.findings() if each.fault] == []


def test_lines_that_are_no_json_hide_no_others(cases: List) -> None:
    unknown_structure(cases)
    path = cases.folder / "cases.jsonl"
    path.write_text("{\n\n[]\n" + json.dumps(cases.record) + "\n", encoding="utf-8")
    lines, found = check(path)
    assert [line.number for line in lines] == [4]
    assert [each.lines for each in found] == [(1,), (3,), (4,)]


def test_no_list_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="can't be read"):
        check(tmp_path / "gone.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n", encoding="utf-8")
    with pytest.raises(ValueError, match="has no line"):
        check(tmp_path / "empty.jsonl")
    with pytest.raises(ValueError, match="--workers 0 must be at least 1"):
        check(tmp_path / "empty.jsonl", workers=0)
