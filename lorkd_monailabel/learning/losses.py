"""Losses of the decomposition (LoRKD, Eqs. 6-9): task and transfer."""

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid


def task_loss(logits: Tensor, masks: Tensor, *, balance: float = 0.0, smooth: float = 1.0) -> Tensor:
    """Binary cross-entropy plus soft Dice (LoRKD Eq. 7, with the term ``(1 - s) log(1 - p)`` that its print lacks).

    Args:
        logits: ``(B, N, X, Y, Z)``.
        masks: zeros and ones, same shape.
        balance: the voxels of a structure weigh ``(others / own)^balance`` in the cross-entropy; 0 is the paper's form.
            Small structures vanish in a short training without it: cross-entropy pushes their masks to zero before the
            network can tell them apart, and there Dice has no gradient left.
        smooth: voxels added to both sides of the Dice ratio, so that an absent structure has a gradient.

    Returns:
        A scalar: mean over structures.
    """
    probabilities = logits.sigmoid()
    own = masks.flatten(2).sum(dim=2)
    overlap = (probabilities * masks).flatten(2).sum(dim=2)
    size = probabilities.square().flatten(2).sum(dim=2) + own
    dice = (2 * overlap + smooth) / (size + smooth)
    others = masks[0, 0].numel() - own
    weight = ((others + 1) / (own + 1)).clamp(min=1) ** balance
    entropy = binary_cross_entropy_with_logits(logits, masks, pos_weight=weight[..., None, None, None])
    return entropy + (1 - dice).mean()


def transfer_loss(logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Kullback-Leibler divergence of the Bernoulli masks of teacher and student, mean over voxels and structures.

    The proper form of LoRKD Eq. 8, ``p log(p / q) + (1 - p) log((1 - p) / (1 - q))`` with p the teacher: never
    negative, zero at equality alone.

    Args:
        logits: student, any shape.
        teacher_logits: same shape; no gradient flows into it.
    """
    teacher_logits = teacher_logits.detach()
    teacher = teacher_logits.sigmoid()
    positive = teacher * (logsigmoid(teacher_logits) - logsigmoid(logits))
    negative = (1 - teacher) * (logsigmoid(-teacher_logits) - logsigmoid(-logits))
    return torch.mean(positive + negative)
