"""Segments of what clients send as labels."""

import numpy as np
import pytest

from lorkd_monailabel.sources.named_labels import named_segments

ARRAY = np.array([0, 2, 5, 5])


def named(array, info):
    return [(each.value, each.structure.name, each.structure.snomed) for each in named_segments(array, info)]


def test_names_codes_and_what_has_none():
    info = {"label_info": [{"name": "Left_Kidney", "idx": 1}, {"name": "left kidney", "idx": 2}]}
    kidney, tissue = "64033007", "85756007"  # SNOMED CT
    assert named(ARRAY, info) == [(1, "Left_Kidney", tissue), (2, "left kidney", kidney), (5, "label 5", tissue)]


def test_names_of_a_prediction():
    assert [name for _, name, _ in named(ARRAY, {"params": {"label_names": {"liver": 2, "spleen": 5}}})] == [
        "liver",
        "spleen",
    ]


def test_without_names():
    assert [name for _, name, _ in named(ARRAY, {})] == ["label 2", "label 5"]
    assert [name for _, name, _ in named(ARRAY, {"label_info": "liver"})] == ["label 2", "label 5"]
    assert named(np.zeros(3, int), {}) == []


def test_position_counts_where_idx_does_not_fit():
    info = {"label_info": [{"name": "liver", "idx": 2}, {"name": "spleen", "idx": 3}]}
    assert [name for _, name, _ in named(np.array([0, 1, 2]), info)] == ["liver", "spleen"]


@pytest.mark.parametrize(
    "info",
    [
        {"label_info": ["liver"]},
        {"label_info": [{"name": "liver", "idx": "one"}]},
        {"params": {"label_names": {"liver": "one"}}},
        # idx 2, but first in the list: Slicer's plugin counts a background that it does not send
        {
            "label_info": [
                {"name": "liver", "idx": 2},
                {"name": "spleen", "idx": 5},
                *({"name": n, "idx": i} for i, n in enumerate("abc", 6)),
            ]
        },
    ],
)
def test_names_of_another_form(info):
    with pytest.raises(ValueError, match="it is open which values label_info names"):
        named_segments(ARRAY, info)


def test_value_with_two_names():
    with pytest.raises(ValueError, match="names a value twice"):
        named_segments(np.array([5]), {"label_info": [{"name": "liver", "idx": 5}, {"name": "spleen", "idx": 5}]})


@pytest.mark.parametrize("array", [np.array([-1, 1]), np.array([70000]), np.arange(2000)])
def test_what_is_no_label_map(array):
    with pytest.raises(ValueError, match=r"but 1\.\.65535 are allowed"):
        named_segments(array, {})
