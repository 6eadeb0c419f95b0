"""Tests of lorkd_monailabel.case_lists.naming."""

import pytest

from lorkd_monailabel.case_lists.found import modality_of
from lorkd_monailabel.case_lists.naming import Choices, choices_of, structures_of


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("kidney_left", "left kidney"),
        ("Left Kidney", "left kidney"),
        ("Parotid_L", "left parotid gland"),
        ("lumbar vertebrae 1", "L1 vertebra"),
        ("lumbar vertebrae 1 (l1)", "L1 vertebra"),
        ("heart_ventricle_left", "left ventricle cavity"),
        ("Brain stem", "brainstem"),
    ],
)
def test_names_of_other_data_sets_are_understood(theirs: str, ours: str) -> None:
    assert structures_of([theirs], Choices()) == {theirs: (ours,)}


def test_a_group_is_left_out_where_its_structures_have_names() -> None:
    names = ["right kidney", "kidney", "left kidney"]
    assert structures_of(names, Choices())["kidney"] == ()
    with pytest.raises(ValueError, match=r"'kidney' \(stands for 2: left kidney, right kidney\)"):
        structures_of(names[:2], Choices())


def test_what_is_not_understood_is_said_at_once_with_the_way_out() -> None:
    with pytest.raises(ValueError, match="stand for no structure") as refused:
        structures_of(["liver", "liver tumor", "PZ", "ignore"], Choices())
    assert str(refused.value) == (
        "3 of 4 names stand for no structure of the vocabulary: 'liver tumor' (like 'liver'), 'PZ', 'ignore' (marks "
        "voxels that nobody annotated; skipped, they count as background); for each add "
        '--map "liver tumor=STRUCTURE" or --skip "liver tumor", or leave out all of them with --skip-unknown'
    )


def test_choices_decide() -> None:
    choices = choices_of(["Tumor = spleen", "PZ=prostate", "PZ=bladder"], ["ignore"])
    found = structures_of(["Tumor", "PZ", "ignore", "liver"], choices)
    assert found == {"Tumor": ("spleen",), "PZ": ("prostate", "urinary bladder"), "ignore": (), "liver": ("liver",)}
    assert structures_of(["PZ", "liver"], choices_of([], [], skip_unknown=True)) == {"PZ": (), "liver": ("liver",)}


@pytest.mark.parametrize(
    ("maps", "skips", "message"),
    [
        (["PZ"], [], "--map 'PZ' must be \"THEIR NAME=STRUCTURE\""),
        (["PZ=livr"], [], r"--map 'PZ=livr': 'livr' \(like 'liver'"),
        (["TZ=prostate"], [], "'TZ' of --map or --skip is no label here; the labels are 'liver'"),
        ([], ["TZ"], "'TZ' of --map or --skip is no label here"),
    ],
)
def test_choices_that_decide_nothing_are_refused(maps: list[str], skips: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        structures_of(["liver"], choices_of(maps, skips))


@pytest.mark.parametrize(
    ("text", "modality"),
    [("CT", "ct"), ("MRI T1", "mri"), ("T2w", "mri"), ("ct", "ct"), ("PET", None), ("PET/CT MRI", None), ("", None)],
)
def test_modality(text: str, modality: str | None) -> None:
    assert modality_of(text) == modality
