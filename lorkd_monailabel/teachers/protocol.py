"""What a teacher is: anything that gives the probability of each structure in a patch."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor


class Teacher(Protocol):
    """Gives the probabilities that a student's masks follow."""

    def __call__(self, image: Tensor, prompts: Sequence[str], modality: str) -> Tensor:
        """Say where structures are.

        Args:
            image: ``(1, X, Y, Z)``: a patch in canonical orientation with the base's intensities.
            prompts: canonical names of structures.
            modality: ``ct`` or ``mri``.

        Returns:
            Probabilities ``(N, X, Y, Z)``, a mask for each prompt; NaN in all of a mask for a prompt that the teacher
            does not know, from which nothing is learned.
        """
        ...


def unknown_masks(count: int, image: Tensor) -> Tensor:
    """Make masks ``(count, X, Y, Z)`` of NaN for an image ``(1, X, Y, Z)``: what a teacher says of what it ignores."""
    return torch.full((count, *image.shape[1:]), torch.nan, device=image.device)
