"""Tests of lorkd_monailabel.networks.classifier."""

import importlib
import math
import sys

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d

from lorkd_monailabel.learning.losses import classification_loss, feature_transfer_loss
from lorkd_monailabel.networks.classifier import (
    Classifier,
    ShuffleNetV2,
    ShuffleUnit,
    build_student,
    build_teacher,
    feature_projection,
)
from lorkd_monailabel.networks.low_rank import Factors, layer_ranks, layer_scales
from lorkd_monailabel.networks.mixed_batch import mixed_forward

CLASSES = {"breast": 2, "derma": 7, "organs": 4}


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def small() -> Classifier:
    """A student of the same make with few channels."""
    torch.manual_seed(0)
    return Classifier(ShuffleNetV2(widths=(4, 8, 12, 16), repeats=(2, 1)), 16, CLASSES)


def test_parameter_counts_are_the_papers() -> None:
    with torch.device("meta"):
        student = build_student({"imagenet": 1000})
    assert parameters(student.backbone) == 1_253_604  # 1.25 M deployed
    assert parameters(student) == 2_278_604
    # Weights that are trained on RadImageNet's 11 departments at rank 8, without heads: 2.21 M
    weights = dict(student.named_parameters())
    ranks = layer_ranks(student.low_rank_weights(), 8)
    expert = Factors(weights, ranks=ranks, scales=layer_scales(ranks))
    assert parameters(expert) == 8 * 10_827
    assert parameters(student.backbone) + 11 * parameters(expert) == 2_206_380


def test_experts_change_every_convolution_but_the_depthwise_ones() -> None:
    with torch.device("meta"):
        student = build_student({"imagenet": 1000})
    found = student.low_rank_weights()
    shapes = {name: tuple(tensor.shape) for name, tensor in student.named_parameters()}
    assert not any(found.values())
    assert shapes[next(iter(found))] == (24, 3, 3, 3)
    assert shapes[list(found)[-1]] == (1024, 464, 1, 1)
    # two in a unit of stride 1, three in one of stride 2, and the first and the last
    assert len(found) == 2 * (3 + 7 + 3) + 3 * 3 + 2
    others = {name: shape for name, shape in shapes.items() if len(shape) == 4 and name not in found}
    assert len(others) == 16 + 3
    assert all(shape[1:] == (1, 3, 3) for shape in others.values())


def test_sizes_through_the_network() -> None:
    backbone = ShuffleNetV2()
    x = backbone.first(torch.randn(1, 3, 64, 64))
    shapes = [tuple(x.shape[1:])]
    for stage in backbone.stages:
        x = stage(x)
        shapes.append(tuple(x.shape[1:]))
    assert shapes == [(24, 16, 16), (116, 8, 8), (232, 4, 4), (464, 2, 2)]
    assert backbone(torch.randn(2, 3, 28, 28)).shape == (2, 1024)


def norm(x: Tensor) -> Tensor:
    """Batch norm as it starts: mean 0 and variance 1 of each channel over the batch."""
    mean = x.mean(dim=(0, 2, 3), keepdim=True)
    return (x - mean) / ((x - mean).square().mean(dim=(0, 2, 3), keepdim=True) + 1e-5).sqrt()


@pytest.mark.parametrize("stride", [1, 2])
def test_unit_is_what_the_paper_draws(stride: int) -> None:
    torch.manual_seed(0)
    outputs = 6 if stride == 1 else 10
    half = outputs // 2
    unit = ShuffleUnit(6, outputs, stride=stride).double()
    w = [parameter for parameter in unit.main.parameters() if parameter.dim() == 4]
    x = torch.randn(3, 6, 5, 5, dtype=torch.float64)
    left, right = (x[:, :3], x[:, 3:]) if stride == 1 else (x, x)
    right = norm(conv2d(right, w[0])).relu()
    right = norm(conv2d(right, w[1], stride=stride, padding=1, groups=half))
    right = norm(conv2d(right, w[2])).relu()
    if stride == 2:
        v = [parameter for parameter in unit.shortcut.parameters() if parameter.dim() == 4]
        left = norm(conv2d(left, v[0], stride=2, padding=1, groups=6))
        left = norm(conv2d(left, v[1])).relu()
    expected = torch.empty(3, outputs, *right.shape[2:], dtype=torch.float64)
    expected[:, 0::2], expected[:, 1::2] = left, right  # shuffled: one channel of each branch in turn
    torch.testing.assert_close(unit(x.clone()), expected)


def test_each_sample_goes_to_its_own_departments_head() -> None:
    classifier = small()
    features = torch.randn(5, 16, requires_grad=True)
    departments = ["organs", "breast", "organs", "organs", "breast"]
    logits = classifier.classify(features, departments)
    assert logits.shape == (5, 7)
    for row, department in enumerate(departments):
        number = CLASSES[department]
        torch.testing.assert_close(logits[row, :number], classifier.heads[department](features[row]))
        assert (logits[row, number:] == -math.inf).all()
    classification_loss(logits, torch.tensor([3, 1, 0, 2, 0])).backward()
    assert features.grad is not None
    assert features.grad.isfinite().all()
    assert features.grad.abs().sum(dim=1).min() > 0
    for department, head in classifier.heads.items():
        gradients = [parameter.grad for parameter in head.parameters()]
        assert all((gradient is None) == (department == "derma") for gradient in gradients)


def test_the_loss_is_the_mean_of_the_samples_losses_whatever_their_number_of_classes() -> None:
    classifier = small()
    features, labels = torch.randn(3, 16), torch.tensor([1, 6, 0])
    departments = ["breast", "derma", "breast"]
    apart = [
        classification_loss(classifier.heads[name](features[row : row + 1]), labels[row : row + 1])
        for row, name in enumerate(departments)
    ]
    mixed = classification_loss(classifier.classify(features, departments), labels)
    torch.testing.assert_close(mixed, torch.stack(apart).mean())


def test_a_mixed_pass_takes_its_statistics_over_the_whole_batch() -> None:
    classifier = small()
    layers = classifier.low_rank_weights()
    weights = dict(classifier.named_parameters())
    ranks = layer_ranks(layers, 2)
    factors = {name: Factors(weights, ranks=ranks, scales=layer_scales(ranks)) for name in CLASSES}
    images = torch.randn(4, 3, 32, 32)
    departments = ["organs", "breast", "organs", "breast"]
    plain = classifier(images)
    after_one = {name: buffer.clone() for name, buffer in classifier.named_buffers()}
    # New experts are the base (lora_b is zero): the mixed pass is the plain one, order and statistics included.
    classifier.load_state_dict(small().state_dict())
    mixed = mixed_forward(classifier, images, departments, factors=factors)
    torch.testing.assert_close(mixed, plain, atol=1e-5, rtol=1e-4)
    for name, buffer in classifier.named_buffers():
        torch.testing.assert_close(buffer, after_one[name], atol=1e-5, rtol=1e-4)
    classification_loss(classifier.classify(mixed, departments), torch.tensor([3, 1, 0, 0])).backward()
    for department, own in factors.items():
        for _, b in own.pairs().values():
            assert (b.grad is None) == (department == "derma")


def test_the_projection_is_trained_and_the_teacher_is_not() -> None:
    """The reference's projection was random and cut off from every gradient."""
    student = small()
    teacher = Classifier(nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 20)), 20, CLASSES)
    projection = feature_projection(student, teacher)
    assert projection.weight.shape == (20, 16)
    trained = [*student.parameters(), *projection.parameters()]
    before = [parameter.detach().clone() for parameter in projection.parameters()]
    optimizer = torch.optim.SGD(trained, lr=0.05)
    images, departments = torch.randn(6, 3, 32, 32), list(CLASSES) * 2
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        features = student(images)
        transfer = feature_transfer_loss(projection(features), teacher(images), temperature=1.0)
        (classification_loss(student.classify(features, departments), torch.zeros(6).long()) + transfer).backward()
        optimizer.step()
        losses.append(transfer.item())
    assert all(parameter.grad is not None for parameter in projection.parameters())
    assert all(not torch.equal(new, old) for new, old in zip(projection.parameters(), before, strict=True))
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert losses[-1] < losses[0]


def test_teacher_is_a_resnet_50_and_needs_no_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    importlib.import_module("monai.networks.nets.resnet")  # first: MONAI remembers for good what it did not find
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with torch.device("meta"):
        teacher = build_teacher(CLASSES)
    assert parameters(teacher.backbone) == 23_508_032  # 25,557,032 of the usual one with its head of 1000 classes
    names = dict(teacher.backbone.named_parameters())
    assert names["conv1.weight"].shape == (64, 3, 7, 7)
    assert teacher.backbone.conv1.stride == (2, 2)
    assert names["layer4.2.conv3.weight"].shape == (2048, 512, 1, 1)
    assert "layer1.0.downsample.0.bias" not in names
    assert teacher(torch.empty(2, 3, 64, 64, device="meta")).shape == (2, 2048)
    assert feature_projection(build_student(CLASSES), teacher).weight.shape == (2048, 1024)


def test_bad_numbers_are_refused() -> None:
    for classes in ({}, {"breast": 1, "derma": 7}):
        with pytest.raises(ValueError, match="must name departments with at least 2 each; set them higher"):
            Classifier(nn.Identity(), 16, classes)
    classifier, features = small(), torch.randn(2, 16)
    with pytest.raises(ValueError, match="department 'chest' has no head; use one of breast, derma, organs"):
        classifier.classify(features, ["breast", "chest"])
    with pytest.raises(ValueError, match="1 departments for 2 samples; give one for each sample"):
        classifier.classify(features, ["breast"])
