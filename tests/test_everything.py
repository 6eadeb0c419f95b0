"""Tests of lorkd_monailabel.everything."""

import pytest

from lorkd_monailabel.everything import understood
from lorkd_monailabel.prompts import resolve

KNOWN: dict[str, tuple[str, ...]] = {
    "abdomen": ("spleen", "liver"),
    "thorax": ("trachea",),
    "head_and_neck": ("left parotid gland", "unheard of"),
}


def known(department: str) -> tuple[str, ...]:
    return KNOWN.get(department, ())


def names(text: str, department: str = "auto") -> list[str]:
    targets, missed = understood(text, department, known)
    assert missed == []
    return [target.structure.name for target in targets]


@pytest.mark.parametrize(
    "text", ["everything", "all", "All.", "ALL structures", "every organ", "all the organs", "everything you know"]
)
def test_everything_is_what_experts_know_by_department(text):
    # in the order of the departments; a name that the vocabulary lacks could not be written into a file
    assert names(text) == ["left parotid gland", "trachea", "spleen", "liver"]


def test_a_department_bounds_it():
    assert names("everything", "abdomen") == ["spleen", "liver"]
    assert names("everything in the abdomen") == ["spleen", "liver"]
    assert names("all head and neck structures") == ["left parotid gland"]
    assert names("all organs of thorax and abdomen") == ["trachea", "spleen", "liver"]
    assert names("everything in the abdomen", "abdomen") == ["spleen", "liver"]


def test_what_is_named_comes_first_and_once():
    targets, missed = understood("liver, everything; trachea\nflux", "auto", known)
    assert [(target.phrase, target.structure.name) for target in targets] == [
        ("liver", "liver"),
        ("trachea", "trachea"),
        ("everything", "left parotid gland"),
        ("everything", "spleen"),
    ]
    assert [each.phrase for each in missed] == ["flux"]


@pytest.mark.parametrize(
    "text", ["all ribs", "liver", "kidney, left", "all lungs; trachea", "everythin", "the spleen", "all vertebrae, L3"]
)
def test_all_else_is_left_to_resolve(text):
    assert understood(text, "auto", known) == resolve(text)


def test_says_why_not():
    assert understood("everything", "spine", known)[1][0].message == (
        "there is no expert of spine (experts exist for: head_and_neck, thorax, abdomen); train one first"
    )
    (missed,) = understood("everything in the thorax", "abdomen", known)[1]
    assert missed.message == "'everything in the thorax' asks for thorax, not for abdomen; choose thorax or auto"
    assert understood("all", "auto", lambda name: ())[1][0].message == (
        "there is no expert of any department (experts exist for: no department); train one first"
    )


def test_of_several_departments_the_one_without_an_expert_is_named():
    targets, (missed,) = understood("everything in spine and abdomen", "auto", known)
    assert [target.structure.name for target in targets] == ["spleen", "liver"]
    assert (missed.phrase, missed.message) == (
        "everything in spine and abdomen",
        "there is no expert of spine (experts exist for: head_and_neck, thorax, abdomen); train one first",
    )


def test_refuses_what_resolve_refuses():
    with pytest.raises(ValueError, match="the prompt is empty"):
        understood("  ", "auto", known)
    with pytest.raises(ValueError, match="at most 4000"):
        understood("everything;" * 500, "auto", known)
    with pytest.raises(ValueError, match="department 'leg' is unknown"):
        understood("everything", "leg", known)
