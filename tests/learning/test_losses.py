"""Tests of lorkd_monailabel.learning.losses."""

import math

import pytest
import torch
from torch.distributions import Bernoulli, kl_divergence

from lorkd_monailabel.learning.losses import task_loss, transfer_loss


def logit(probability: float) -> float:
    return math.log(probability / (1 - probability))


def volume(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64).reshape(1, 1, -1, 1, 1)


def test_task_loss_by_hand() -> None:
    # p = 0.8, 0.5, 0.2, 0.5 on the masks 1, 1, 0, 0.
    logits, masks = volume(logit(0.8), 0.0, logit(0.2), 0.0), volume(1, 1, 0, 0)
    entropy = -(math.log(0.8) + math.log(0.5) + math.log(0.8) + math.log(0.5)) / 4
    # overlap 1.3; sum of squares 0.64 + 0.25 + 0.04 + 0.25 = 1.18; mask 2; one voxel on both sides
    dice = 1 - (2 * 1.3 + 1) / (1.18 + 2 + 1)
    assert task_loss(logits, masks).item() == pytest.approx(entropy + dice, rel=1e-9)
    # with smooth 0 the ratio is that of the voxels alone
    assert task_loss(logits, masks, smooth=0.0).item() == pytest.approx(entropy + 1 - 2.6 / 3.18, rel=1e-9)


def test_an_absent_structure_costs_what_is_claimed_of_it() -> None:
    masks = volume(0, 0)
    entropy = -(math.log(0.5) + math.log(0.9)) / 2
    dice = 1 - 1 / (0.25 + 0.01 + 1)
    logits = volume(0.0, logit(0.1)).requires_grad_()
    loss = task_loss(logits, masks)
    assert loss.item() == pytest.approx(entropy + dice, rel=1e-9)
    loss.backward()
    assert logits.grad is not None
    assert (logits.grad > 0).all()
    assert task_loss(volume(-50, -50), masks).item() == pytest.approx(0, abs=1e-9)


def test_task_loss_is_the_mean_over_structures_and_images() -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 4, 4, 2, dtype=torch.float64)
    masks = (torch.rand(2, 3, 4, 4, 2) > 0.7).double()
    for balance in (0.0, 0.5):
        alone = [
            task_loss(logits[b : b + 1, n : n + 1], masks[b : b + 1, n : n + 1], balance=balance)
            for b in range(2)
            for n in range(3)
        ]
        torch.testing.assert_close(task_loss(logits, masks, balance=balance), torch.stack(alone).mean())


def test_a_perfect_answer_costs_nothing() -> None:
    masks = volume(1, 0, 0, 1)
    assert task_loss(100 * (masks - 0.5), masks).item() == pytest.approx(0, abs=1e-9)


def test_balance_weighs_a_small_structure_more_and_a_large_one_never_less() -> None:
    logits = volume(*[0.0] * 8)
    small, large = volume(1, *[0] * 7), volume(*[1] * 7, 0)
    weight = ((7 + 1) / (1 + 1)) ** 0.5
    gained = task_loss(logits, small, balance=0.5) - task_loss(logits, small)
    assert gained.item() == pytest.approx((weight - 1) * math.log(2) / 8, rel=1e-9)
    assert task_loss(logits, large, balance=0.5).item() == task_loss(logits, large).item()


def test_transfer_loss_is_the_divergence_of_bernoulli_masks() -> None:
    torch.manual_seed(0)
    student, teacher = (3 * torch.randn(1, 2, 3, 3, 3, dtype=torch.float64) for _ in range(2))
    expected = kl_divergence(Bernoulli(logits=teacher), Bernoulli(logits=student)).mean()
    torch.testing.assert_close(transfer_loss(student, teacher), expected)
    assert transfer_loss(student, teacher) > 0
    # by hand: teacher 0.8, student 0.5
    value = 0.8 * math.log(0.8 / 0.5) + 0.2 * math.log(0.2 / 0.5)
    assert transfer_loss(volume(0.0), volume(logit(0.8))).item() == pytest.approx(value, rel=1e-9)


def test_transfer_loss_is_least_at_equality() -> None:
    teacher = torch.randn(1, 1, 4, 4, 4, dtype=torch.float64)
    student = teacher.clone().requires_grad_()
    loss = transfer_loss(student, teacher)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-12)
    assert student.grad is not None
    assert student.grad.abs().max() < 1e-12
    for shift in (-1.0, -0.1, 0.1, 1.0):
        assert transfer_loss(teacher + shift, teacher) > 1e-6


def test_sure_teachers_and_students_stay_finite() -> None:
    sure = torch.tensor([200.0, -200.0])
    assert transfer_loss(-sure, sure).item() == pytest.approx(200)
    assert transfer_loss(sure, sure).item() == 0


def test_no_gradient_reaches_the_teacher() -> None:
    student, teacher = (torch.randn(1, 1, 2, 2, 2, requires_grad=True) for _ in range(2))
    transfer_loss(student, teacher).backward()
    assert teacher.grad is None
    assert student.grad is not None
    assert student.grad.abs().max() > 0
