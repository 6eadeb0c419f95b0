"""Tests of lorkd_monailabel.learning.metrics."""

import numpy as np
import pytest

from lorkd_monailabel.learning.metrics import dice


@pytest.mark.parametrize(
    ("prediction", "reference", "expected"),
    [
        ([1, 1, 0, 0], [1, 0, 0, 0], 2 / 3),
        ([1, 1, 0, 0], [0, 1, 1, 1], 2 / 5),
        ([1, 1, 1, 0], [1, 1, 1, 0], 1.0),
        ([1, 1, 0, 0], [0, 0, 1, 1], 0.0),
        ([0, 0, 0, 0], [0, 0, 0, 0], 1.0),
        ([0, 0, 0, 0], [0, 1, 0, 0], 0.0),
        ([0, 1, 0, 0], [0, 0, 0, 0], 0.0),
    ],
)
def test_dice_by_hand(prediction: list[int], reference: list[int], expected: float) -> None:
    masks = [np.array(mask, dtype=bool).reshape(2, 2, 1) for mask in (prediction, reference)]
    assert dice(*masks) == pytest.approx(expected)
    assert dice(*reversed(masks)) == pytest.approx(expected)
