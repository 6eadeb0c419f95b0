"""A patient made by hand: two organs of the abdomen and one of the thorax."""

import numpy as np

STRUCTURES = {"liver": ("abdomen", [1]), "spleen": ("abdomen", [2, 3]), "heart": ("thorax", [4])}


def labels(shape: tuple[int, int, int] = (20, 16, 12)) -> np.ndarray:
    """Liver and spleen (of two values) in the middle, the heart in a corner."""
    array = np.zeros(shape, dtype=np.int16)
    array[6:9, 5:8, 4:7] = 1
    array[9:11, 5:8, 4:6] = 2
    array[11:12, 5:8, 4:6] = 3
    array[-3:, -3:, -3:] = 4
    return array
