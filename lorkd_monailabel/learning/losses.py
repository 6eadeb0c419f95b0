"""Losses of the decomposition (LoRKD, Eqs. 6-9): task and transfer, of segmentation and of classification."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, kl_div, log_softmax, logsigmoid
from torch.special import entr

TRANSFER_FORMS = ("bernoulli", "sum")
"""Forms of the transfer loss: the divergence, and what the paper prints."""

# Segmentation


@dataclass(frozen=True)
class Objective:
    """What is minimised: the task loss plus ``beta`` times the transfer loss (LoRKD Eq. 9).

    Attributes:
        beta: weight of the transfer loss, where there is a teacher.
        transfer: its form, see ``transfer_loss``.
        balance: see ``task_loss``.

    Raises:
        ValueError: an unknown form.
    """

    beta: float = 0.1
    transfer: str = "bernoulli"
    balance: float = 0.0

    def __post_init__(self) -> None:
        """Checks the form."""
        check_transfer_form(self.transfer)


def task_loss(
    logits: Tensor, masks: Tensor, *, annotated: Tensor | None = None, balance: float = 0.0, smooth: float = 1.0
) -> Tensor:
    """Binary cross-entropy plus soft Dice (LoRKD Eq. 7, with the term ``(1 - s) log(1 - p)`` that its print lacks).

    Args:
        logits: ``(B, N, X, Y, Z)``.
        masks: zeros and ones, same shape.
        annotated: booleans ``(B, N)``; the structures that are false count nowhere, whatever their logits and masks
            hold. All are annotated if it is not given.
        balance: the voxels of a structure weigh ``(others / own)^balance`` in the cross-entropy; 0 is the paper's form.
            Small structures vanish in a short training without it: cross-entropy pushes their masks to zero before the
            network can tell them apart, and there Dice has no gradient left.
        smooth: voxels added to both sides of the Dice ratio, so that an absent structure has a gradient.

    Returns:
        A scalar: mean over the annotated structures; 0 if there are none.

    Raises:
        ValueError: ``annotated`` is of another shape or type.
    """
    if annotated is None:
        logits, masks = logits.flatten(0, 1), masks.flatten(0, 1)
    elif annotated.dtype == torch.bool and annotated.shape == logits.shape[:2]:
        logits, masks = logits[annotated], masks[annotated]  # by index, as a product with zero would keep a NaN
    else:
        raise ValueError(
            f"annotated is {annotated.dtype} {tuple(annotated.shape)}, expected torch.bool {tuple(logits.shape[:2])}; "
            "give one boolean for each image and structure"
        )
    if not len(logits):
        return logits.sum()
    probabilities = logits.sigmoid()
    own = masks.flatten(1).sum(dim=1)
    overlap = (probabilities * masks).flatten(1).sum(dim=1)
    size = probabilities.square().flatten(1).sum(dim=1) + own
    dice = (2 * overlap + smooth) / (size + smooth)
    others = masks[0].numel() - own
    weight = ((others + 1) / (own + 1)).clamp(min=1) ** balance
    entropy = binary_cross_entropy_with_logits(logits, masks, pos_weight=weight[:, None, None, None])
    return entropy + (1 - dice).mean()


def transfer_loss(logits: Tensor, probabilities: Tensor, *, form: str = "bernoulli") -> Tensor:
    """Divergence of the student's masks from the teacher's, the proper form of LoRKD Eq. 8.

    ``bernoulli`` is the Kullback-Leibler divergence of Bernoulli masks, with p the teacher and q the student
    ``p log(p / q) + (1 - p) log((1 - p) / (1 - q))``, mean over voxels and structures: never negative, zero at equality
    alone. It is computed as the cross-entropy of q less the entropy of p, so that masks of zeros and ones are as good
    as any: ``0 log 0`` is 0 and the gradient ``q - p`` always finite.

    ``sum`` is Eq. 8 as it is printed, for comparison: ``p log(p / q)`` summed over all voxels. It is no divergence: the
    background's term is missing, so it is negative wherever the student is surer of the structure than the teacher
    (q > p) and falls on to the smallest value at q = 1; at q = p it still has a gradient, towards more foreground. It
    also grows with the patch, so its beta is another one for every size.

    Args:
        logits: student, ``(B, N, X, Y, Z)``.
        probabilities: teacher, same shape, in 0..1; no gradient flows into it. A mask that is NaN in all voxels is of a
            structure that the teacher does not know, and counts nowhere.
        form: one of ``TRANSFER_FORMS``.

    Returns:
        A scalar; 0 if there is no structure to follow.

    Raises:
        ValueError: an unknown form.
    """
    check_transfer_form(form)
    teacher = probabilities.detach()
    known = ~teacher.flatten(2).isnan().all(dim=2)
    if not known.all():
        logits, teacher = logits[known], teacher[known]
    if not logits.numel():
        return logits.sum()
    teacher = teacher.clamp(0, 1)  # interpolation leaves 0..1 by a last digit, where there is no entropy
    if form == "sum":
        return -(entr(teacher) + teacher * logsigmoid(logits)).sum()
    entropy = entr(teacher) + entr(1 - teacher)
    return binary_cross_entropy_with_logits(logits, teacher) - entropy.mean()


def check_transfer_form(form: str) -> None:
    """Refuse a form of the transfer loss that there is not.

    Raises:
        ValueError: it is not one of ``TRANSFER_FORMS``.
    """
    if form not in TRANSFER_FORMS:
        raise ValueError(f"transfer form {form!r} is unknown; use one of {', '.join(TRANSFER_FORMS)}")


# Classification


def classification_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy, mean over the batch: the task's part of LoRKD's loss of classification, at temperature 1.

    Args:
        logits: ``(B, C)``; ``-inf`` for a class that the sample's department lacks.
        labels: class numbers ``(B,)``.
    """
    return cross_entropy(logits, labels)


def feature_transfer_loss(features: Tensor, teacher_features: Tensor, *, temperature: float = 10.0) -> Tensor:
    """Transfer loss of LoRKD for classification: ``alpha^2 KL(softmax(f_teacher / alpha) || softmax(f / alpha))``.

    The temperature alpha stands where the paper has it: it divides the features of both sides and its square multiplies
    the divergence, which keeps the size of the gradient; the cross-entropy has none. Mean over the batch, sum over
    features. The whole loss is ``classification_loss + beta * feature_transfer_loss``, alpha 10 and beta 1.

    Args:
        features: student, ``(B, F)``, projected to the teacher's width where the widths differ.
        teacher_features: ``(B, F)``; no gradient flows into it.
        temperature: alpha, above 0.

    Raises:
        ValueError: the widths differ, or the temperature is not above 0.
    """
    if features.shape != teacher_features.shape:
        raise ValueError(
            f"features {tuple(features.shape)} and the teacher's {tuple(teacher_features.shape)} differ in shape; "
            "project the student's to the teacher's width"
        )
    if not temperature > 0:
        raise ValueError(f"temperature {temperature} must be above 0; the paper's is 10")
    student = log_softmax(features / temperature, dim=1)
    teacher = log_softmax(teacher_features.detach() / temperature, dim=1)
    return temperature**2 * kl_div(student, teacher, reduction="batchmean", log_target=True)
