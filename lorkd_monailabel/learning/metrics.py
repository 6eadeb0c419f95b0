"""How well a mask agrees with a reference."""

import numpy as np


def dice(prediction: np.ndarray, reference: np.ndarray) -> float:
    """Compute the Dice coefficient of two masks of one shape.

    Both empty gives 1, one empty gives 0 (the convention of SAT and LoRKD).
    """
    total = int(np.count_nonzero(prediction)) + int(np.count_nonzero(reference))
    if total == 0:
        return 1.0
    return 2 * int(np.count_nonzero(prediction & reference)) / total
