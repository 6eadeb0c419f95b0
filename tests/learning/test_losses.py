"""Tests of lorkd_monailabel.learning.losses."""

import math

import pytest
import torch
from torch.distributions import Bernoulli, kl_divergence
from torch.nn.functional import logsigmoid

from lorkd_monailabel.learning.losses import (
    classification_loss,
    feature_transfer_loss,
    task_loss,
    transfer_loss,
)


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
    torch.testing.assert_close(transfer_loss(student, teacher.sigmoid()), expected)
    assert transfer_loss(student, teacher.sigmoid()) > 0
    # by hand: teacher 0.8, student 0.5
    value = 0.8 * math.log(0.8 / 0.5) + 0.2 * math.log(0.2 / 0.5)
    assert transfer_loss(volume(0.0), volume(0.8)).item() == pytest.approx(value, rel=1e-9)


def test_transfer_loss_is_least_at_equality() -> None:
    teacher = torch.randn(1, 1, 4, 4, 4, dtype=torch.float64)
    student = teacher.clone().requires_grad_()
    loss = transfer_loss(student, teacher.sigmoid())
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-12)
    assert student.grad is not None
    assert student.grad.abs().max() < 1e-12
    for shift in (-1.0, -0.1, 0.1, 1.0):
        assert transfer_loss(teacher + shift, teacher.sigmoid()) > 1e-6


def test_sure_teachers_and_students_stay_finite() -> None:
    sure, hard = volume(200.0, -200.0).float(), volume(1, 0).float()
    assert transfer_loss(-sure, hard).item() == pytest.approx(200)
    assert transfer_loss(sure, hard).item() == 0
    for sign, gradients in ((-1, [-0.5, 0.5]), (1, [0, 0])):  # (q - p) / 2 voxels
        student = (sign * sure).requires_grad_()
        transfer_loss(student, hard).backward()
        assert student.grad is not None
        assert student.grad.flatten().tolist() == pytest.approx(gradients)
    # a last digit beyond 1, as interpolation leaves it
    assert transfer_loss(sure, hard + torch.finfo(torch.float32).eps).isfinite()


@pytest.mark.parametrize("form", ["bernoulli", "sum"])
def test_probabilities_say_what_logits_said(form: str) -> None:
    torch.manual_seed(0)
    student, teacher = (6 * torch.randn(1, 3, 8, 8, 8) for _ in range(2))
    # p (log p - log q), as logits have it, and the same of what is outside
    former = teacher.sigmoid() * (logsigmoid(teacher) - logsigmoid(student))
    if form == "bernoulli":
        former = (former + (-teacher).sigmoid() * (logsigmoid(-teacher) - logsigmoid(-student))).mean()
    loss = transfer_loss(student, teacher.sigmoid(), form=form)
    torch.testing.assert_close(loss, former.sum(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("form", ["bernoulli", "sum"])
def test_what_the_teacher_does_not_know_is_not_followed(form: str) -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 3, 2, 2, 2, requires_grad=True), torch.rand(2, 3, 2, 2, 2)
    known = torch.tensor([[True, False, True], [False, True, True]])
    expected = transfer_loss(student[known][None], teacher[known][None], form=form)
    teacher[~known] = math.nan
    loss = transfer_loss(student, teacher, form=form)
    assert loss.item() == expected.item()
    loss.backward()
    assert student.grad is not None
    assert ((student.grad != 0).flatten(2).all(dim=2) == known).all()
    nothing = transfer_loss(student, torch.full_like(teacher, math.nan), form=form)
    assert nothing.item() == 0
    teacher[0, 0, 0, 0, 0] = math.nan  # a teacher that broke: the trainer must see it
    assert transfer_loss(student, teacher, form=form).isnan()


def test_no_gradient_reaches_the_teacher() -> None:
    student, teacher = (torch.randn(1, 1, 2, 2, 2, requires_grad=True) for _ in range(2))
    transfer_loss(student, teacher.sigmoid()).backward()
    assert teacher.grad is None
    assert student.grad is not None
    assert student.grad.abs().max() > 0


def test_the_sum_form_is_what_the_paper_prints() -> None:
    # teacher 0.8 and 0.3, student 0.5 and 0.6, over two structures: 0.8 log(0.8 / 0.5) + 0.3 log(0.3 / 0.6), twice
    teacher = torch.cat([volume(0.8, 0.3)] * 2, dim=1)
    student = torch.cat([volume(logit(0.5), logit(0.6))] * 2, dim=1)
    expected = 2 * (0.8 * math.log(0.8 / 0.5) + 0.3 * math.log(0.3 / 0.6))
    assert transfer_loss(student, teacher, form="sum").item() == pytest.approx(expected, rel=1e-9)


def test_the_sum_form_is_no_divergence() -> None:
    teacher = volume(logit(0.8), logit(0.3), logit(0.01))
    told = teacher.sigmoid()
    assert transfer_loss(teacher + 1, told, form="sum") < 0
    assert transfer_loss(teacher + 5, told, form="sum") < transfer_loss(teacher + 1, told, form="sum")
    assert transfer_loss(teacher + 1, told) > 0
    student = teacher.clone().requires_grad_()
    loss = transfer_loss(student, told, form="sum")
    assert loss.item() == pytest.approx(0, abs=1e-12)
    loss.backward()
    assert student.grad is not None
    assert (student.grad < 0).all()  # at equality it still asks for more foreground


def test_an_unknown_form_is_refused() -> None:
    with pytest.raises(ValueError, match="transfer form 'mse' is unknown; use one of bernoulli, sum"):
        transfer_loss(volume(0.0), volume(0.0), form="mse")


ANNOTATED = torch.tensor([[True, False, True], [False, False, True]])


@pytest.mark.parametrize("planted", [None, math.nan, math.inf, -math.inf])
def test_what_is_not_annotated_counts_nowhere(planted: float | None) -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 4, 3, 2, dtype=torch.float64)
    target = (torch.rand(2, 3, 4, 3, 2) > 0.6).double()
    # Apart: each annotated structure by itself.
    places = ((0, 0), (0, 2), (1, 2))
    alone = [logits[b, n][None, None].clone().requires_grad_() for b, n in places]
    own = [task_loss(x, target[place][None, None], balance=0.5) for x, place in zip(alone, places, strict=True)]
    expected = torch.stack(own).mean()
    expected.backward()
    if planted is not None:
        logits[~ANNOTATED] = planted
        target[~ANNOTATED] = planted
    logits.requires_grad_()
    loss = task_loss(logits, target, balance=0.5, annotated=ANNOTATED)
    loss.backward()
    torch.testing.assert_close(loss, expected)
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad[ANNOTATED], torch.cat([x.grad[0] for x in alone]))
    assert (logits.grad[~ANNOTATED] == 0).all()
    everything = torch.ones_like(ANNOTATED)
    if planted is None:
        torch.testing.assert_close(task_loss(logits, target, annotated=everything), task_loss(logits, target))


@pytest.mark.parametrize("planted", [0.5, math.nan, math.inf])
def test_nothing_annotated_costs_nothing(planted: float) -> None:
    logits = torch.full((1, 2, 2, 2, 2), planted, requires_grad=True)
    loss = task_loss(logits, torch.full_like(logits, planted), annotated=torch.zeros(1, 2, dtype=torch.bool))
    assert loss.item() == 0
    loss.backward()
    assert logits.grad is not None
    assert (logits.grad == 0).all()


@pytest.mark.parametrize(
    ("annotated", "said"),
    [
        (torch.ones(2, 3, dtype=torch.uint8), r"torch.uint8 \(2, 3\), expected torch.bool \(2, 3\); give one boolean"),
        (torch.ones(2, dtype=torch.bool), r"torch.bool \(2,\), expected torch.bool \(2, 3\); give one boolean"),
    ],
)
def test_annotated_of_another_kind_is_refused(annotated: torch.Tensor, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        task_loss(torch.zeros(2, 3, 1, 1, 1), torch.zeros(2, 3, 1, 1, 1), annotated=annotated)


def test_classification_loss_by_hand() -> None:
    # two classes in the first sample's department, three in the second's
    logits = torch.tensor([[0.0, math.log(3), -math.inf], [0.0, 0.0, math.log(2)]], dtype=torch.float64)
    logits.requires_grad_()
    loss = classification_loss(logits, torch.tensor([1, 0]))
    assert loss.item() == pytest.approx(-(math.log(3 / 4) + math.log(1 / 4)) / 2, rel=1e-9)
    loss.backward()
    # softmax minus one-hot, over two samples
    expected = torch.tensor([[0.25, -0.25, 0.0], [-0.75, 0.25, 0.5]], dtype=torch.float64) / 2
    torch.testing.assert_close(logits.grad, expected)


def test_feature_transfer_loss_by_hand() -> None:
    # At temperature 10: the teacher's softmax is (3/4, 1/4) and (1/2, 1/2), the student's (1/2, 1/2) and (1/3, 2/3).
    teacher = 10 * torch.tensor([[math.log(3), 0.0], [0.0, 0.0]], dtype=torch.float64)
    student = 10 * torch.tensor([[0.0, 0.0], [0.0, math.log(2)]], dtype=torch.float64)
    first = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    second = 0.5 * math.log(0.5 / (1 / 3)) + 0.5 * math.log(0.5 / (2 / 3))
    expected = 100 * (first + second) / 2
    assert feature_transfer_loss(student, teacher).item() == pytest.approx(expected, rel=1e-9)
    assert feature_transfer_loss(student / 10, teacher / 10, temperature=1).item() == pytest.approx(expected / 100)


def test_feature_transfer_loss_is_least_at_equality_and_leaves_the_teacher() -> None:
    teacher = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    student = teacher.detach().clone().requires_grad_()
    loss = feature_transfer_loss(student, teacher)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-12)
    assert teacher.grad is None
    assert student.grad is not None
    assert student.grad.abs().max() < 1e-12
    for _ in range(5):
        assert feature_transfer_loss(student + torch.randn(3, 5), teacher) > 1e-4


def test_features_that_cannot_be_compared_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(2, 3\) and the teacher's \(2, 4\) differ in shape; project the student's"):
        feature_transfer_loss(torch.zeros(2, 3), torch.zeros(2, 4))
    for temperature in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match=f"temperature {temperature} must be above 0"):
            feature_transfer_loss(torch.zeros(2, 3), torch.zeros(2, 3), temperature=temperature)
