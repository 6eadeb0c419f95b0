"""Streams of samples of volumes made by hand."""

from typing import Any

import numpy as np

from lorkd_monailabel.learning.prepared import PreparedCase
from lorkd_monailabel.learning.samples import Samples

ABDOMEN = {"liver": ("abdomen", (1,)), "spleen": ("abdomen", (2, 3)), "stomach": ("abdomen", (9,))}


def blocks(shape: tuple[int, int, int] = (20, 20, 20)) -> np.ndarray:
    """Values 1 to 4 in blocks; 4 is nobody's."""
    labels = np.zeros(shape, dtype=np.int16)
    for value in (1, 2, 3, 4):
        labels[3 + 3 * value : 6 + 3 * value, 5:12, 4:15] = value
    return labels


def stream(cases: dict[str, list[PreparedCase]], **changed: Any) -> Samples:
    settings: dict[str, Any] = {
        "weights": dict.fromkeys(cases, 1.0),
        "patch": 8,
        "stride": 4,
        "max_queries": 4,
        "augment": False,
        "seed": 3,
    }
    return Samples(cases, **{**settings, **changed})
