"""A text-prompted segmenter as a teacher: our own foundations and SAT's."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lorkd_monailabel.networks.segmenter import Segmenter
from lorkd_monailabel.teachers.protocol import unknown_masks
from lorkd_monailabel.text_encoder import QueryTable


class NetworkTeacher:
    """A segmenter and the query table that it was trained with; knows what the table has.

    Args:
        segmenter: in evaluation mode; X, Y and Z of the patches are multiples of its ``stride``.
        table: of its query space.
    """

    def __init__(self, segmenter: Segmenter, table: QueryTable) -> None:
        self.segmenter = segmenter
        self.table = table

    def __call__(self, image: Tensor, prompts: Sequence[str], modality: str) -> Tensor:
        """See ``Teacher``."""
        rows = [row for row, name in enumerate(prompts) if name in self.table]
        if not rows or modality not in self.table.modality_vectors:
            return unknown_masks(len(prompts), image)
        queries = self.table.queries([prompts[row] for row in rows], modality).to(image.device)
        logits = self.segmenter(image[None].to(memory_format=torch.channels_last_3d), queries)[0]
        probabilities: Tensor = logits.float().sigmoid()
        if len(rows) == len(prompts):
            return probabilities
        masks = unknown_masks(len(prompts), image)
        masks[rows] = probabilities
        return masks
