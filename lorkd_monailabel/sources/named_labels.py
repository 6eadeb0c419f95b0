"""What a client says of the values of a label volume -> segments with names, codes and colours."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from lorkd_monailabel.case_lists.datastore import told_values
from lorkd_monailabel.departments import Structure, structures
from lorkd_monailabel.label_maps import Segment

MOST_VALUES = 1000
"""More different values than that are an image, not labels."""

_TISSUE = "85756007", "Tissue"  # SNOMED CT, for what the vocabulary lacks
_GREY = 128, 128, 128


def named_segments(array: np.ndarray, info: Mapping[str, Any]) -> list[Segment]:
    """Gives the segments of a label volume: all values that it holds or that were named, in their order.

    Args:
        array: whole numbers.
        info: as clients send it with a label: ``label_info``, a list of ``{"name", "idx"}``, or as a prediction has it:
            ``params.label_names``, a value for each name. What is of neither form names nothing.

    Raises:
        ValueError: a value is no label, or is named twice, or it is open which value a name stands for.
    """
    held = {int(value) for value in np.unique(array) if value}
    names = _names(info, held)
    values = sorted(held | set(names))
    if len(values) > MOST_VALUES or (values and not 1 <= values[0] <= values[-1] <= 65535):
        raise ValueError(f"the labels have {len(values)} different values, but 1..65535 are allowed and at most "
                         f"{MOST_VALUES} of them; send a label map")  # fmt: skip
    return [Segment(value, _structure(names.get(value, f"label {value}"))) for value in values]


def _names(info: Mapping[str, Any], held: set[int]) -> dict[int, str]:
    try:
        told = told_values(dict(info), held, "the label")
    except ValueError as error:
        raise ValueError(
            "it is open which values label_info names; send "
            '[{"name": "liver", "idx": 1}], idx being the value in the volume, and no background'
        ) from error
    pairs = [(value, name) for name, values in told.items() for value in values]
    if len(dict(pairs)) < len(pairs):
        raise ValueError("label_info names a value twice; give each structure its own value")
    return dict(pairs)


def _structure(name: str) -> Structure:
    known = structures().get(" ".join(name.replace("_", " ").split()))
    return known or Structure(name[:64] or "label", "", None, *_TISSUE, _GREY, ())
