"""Tests of lorkd_monailabel.teachers.names."""

import pytest

from lorkd_monailabel.teachers.names import structure_named


@pytest.mark.parametrize(
    ("name", "structure"),
    [
        ("liver", "liver"),
        ("Left Kidney", "left kidney"),
        ("kidney_left", "left kidney"),
        ("vertebrae_L5", "L5 vertebra"),
        ("lung_upper_lobe_left", "left lung upper lobe"),
        ("kidneys", None),  # two of them
        ("lung", None),
        ("background", None),
        ("", None),
        ("liver; spleen", None),
        ("x" * 10_000, None),
    ],
)
def test_names_of_others(name: str, structure: str | None) -> None:
    assert structure_named(name) == structure


def test_names_of_the_case_come_first() -> None:
    assert structure_named("tumour_7", ["Tumour 7"]) == "Tumour 7"
    assert structure_named("tumour_7") is None
