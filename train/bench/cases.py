"""What is measured: single layers, the 3D U-Net and the 2D classifier, with their mixed batches."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from torch import Tensor, nn

from lorkd_monailabel.networks.classifier import ShuffleNetV2
from lorkd_monailabel.networks.unet import UNet
from train.bench.problem import Problem, make_problem

RANK = 8
DEPARTMENTS = 8
TASKS = 11
"""Departments of the 2D cases."""

POINTWISE_WAYS = ("pointwise", "pointwise_factored")
LAYER_WAYS = (
    *("plain", "t_passes", "paper", "flora", "peft"),
    *("split", "stacked", "factored", *POINTWISE_WAYS, "single_pass"),
)
UNET_WAYS = ("plain", "t_passes", "paper", "flora", "peft", "single_pass", "departments")
CLASSIFIER_WAYS = ("plain", "paper", "flora", "peft", "single_pass")
"""Without those that run departments apart: batch norm takes its statistics over the mixed batch."""

POINTWISE = "left out, for it is a way for kernels of size 1"
FLORA_MEMORY = "left out, for its passes keep the activations of every rank: about eight times the floor's memory"

Conv = type[nn.Conv2d] | type[nn.Conv3d]


@dataclass(frozen=True)
class Case:
    """A mixed batch to measure, made when its turn comes.

    Attributes:
        name: in the tables.
        make: makes it.
        ways: keys of ``MAKERS``.
        notes: way -> why it is left out.
    """

    name: str
    make: Callable[[], Problem]
    ways: Sequence[str]
    notes: Mapping[str, str] = field(default_factory=dict)


def layer_cases(*, device: str, bf16: bool, quick: bool) -> list[Case]:
    """Single layers as they stand in the middle of a network: their inputs get gradients too, departments in order."""
    # convolution, channels in and out, kernel, stride, size of the image, samples, departments present and known
    table: list[tuple[Conv, int, int, int, int, int, int, int, int]] = [
        (nn.Conv3d, 32, 32, 3, 1, 64, 8, 8, DEPARTMENTS),
        (nn.Conv3d, 64, 64, 3, 1, 32, 8, 8, DEPARTMENTS),
        (nn.Conv3d, 128, 128, 3, 1, 16, 8, 8, DEPARTMENTS),
        (nn.Conv3d, 256, 256, 3, 1, 8, 8, 8, DEPARTMENTS),
        (nn.Conv3d, 256, 256, 3, 1, 8, 8, 4, DEPARTMENTS),
        (nn.Conv3d, 320, 320, 3, 1, 4, 8, 8, DEPARTMENTS),
        (nn.Conv3d, 512, 512, 3, 1, 4, 8, 8, DEPARTMENTS),
        (nn.Conv2d, 3, 24, 3, 2, 224, 64, TASKS, TASKS),
        (nn.Conv2d, 58, 58, 1, 1, 28, 64, TASKS, TASKS),
        (nn.Conv2d, 128, 128, 3, 1, 28, 64, TASKS, TASKS),
        (nn.Conv2d, 232, 232, 1, 1, 7, 64, TASKS, TASKS),
        (nn.Conv2d, 464, 1024, 1, 1, 7, 64, TASKS, TASKS),
    ]
    if quick:
        table = [(nn.Conv3d, 6, 4, 3, 1, 4, 4, 2, 3), (nn.Conv2d, 4, 6, 1, 1, 4, 4, 2, 3)]
    cases = []
    for conv, inputs, outputs, kernel, stride, size, batch, present, known in table:
        axes = 3 if conv is nn.Conv3d else 2
        names = department_names(known)
        network = partial(_layer, conv, inputs, outputs, kernel, stride)
        make = partial(
            _problem,
            network,
            (batch, inputs, *[size] * axes),
            sorted(names[sample % present] for sample in range(batch)),
            known=names,
            device=device,
            bf16=bf16,
            middle=True,
        )
        shape = f"{inputs}→{outputs} {'x'.join([str(kernel)] * axes)}{' stride 2' if stride == 2 else ''}"
        notes = {} if kernel == 1 else dict.fromkeys(POINTWISE_WAYS, POINTWISE)
        cases.append(Case(f"{shape} @ {side(size, axes)}, {of(batch, present, known)}", make, LAYER_WAYS, notes))
    return cases


def unet_cases(*, device: str, bf16: bool, quick: bool) -> list[Case]:
    """The whole 3D U-Net: 16.55 M shared parameters, and 6.18 M in 8 experts of rank 8 in encoder and decoder."""
    table = [(64, 4, 4), (32, 8, 8)]  # size, samples, departments present
    if device != "cpu":
        table.append((96, 8, 8))
    if quick:
        table = [(8, 4, 2)]
    cases = []
    for size, batch, present in table:
        # The department-by-department way of 64³ needs half a GiB, the floor two: FLoRA's would not fit most machines.
        notes = {"flora": FLORA_MEMORY} if size >= 64 else {}
        make = partial(unet_problem, size, batch, present, known=DEPARTMENTS, device=device, bf16=bf16, quick=quick)
        name = f"U-Net {side(size, 3)}, {of(batch, present, DEPARTMENTS)}"
        cases.append(Case(name, make, UNET_WAYS, notes))
    return cases


def classifier_cases(*, device: str, bf16: bool, quick: bool) -> list[Case]:
    """ShuffleNetV2 with batch norm in training mode: 64 images of 224 x 224, 11 tasks, features as the output."""
    size, batch, present, known = (32, 6, 2, 3) if quick else (224, 64, TASKS, TASKS)
    network = partial(ShuffleNetV2, widths=(8, 8, 16, 16, 32), repeats=(1, 1, 1)) if quick else ShuffleNetV2
    names = department_names(known)
    make = partial(
        _problem,
        network,
        (batch, 3, size, size),
        [names[sample % present] for sample in range(batch)],
        known=names,
        device=device,
        bf16=bf16,
    )
    return [Case(f"ShuffleNetV2 {side(size, 2)}, {of(batch, present, known)}", make, CLASSIFIER_WAYS)]


def unet_problem(size: int, batch: int, present: int, *, known: int, device: str, bf16: bool, quick: bool) -> Problem:
    """Make the U-Net's mixed batch.

    Args:
        size: voxels along each axis.
        batch: samples; their departments alternate.
        present: departments among them.
        known: all departments.
        device: a torch device.
        bf16: under autocast.
        quick: a tiny network.
    """
    names = department_names(known)
    widths = (4, 8) if quick else (32, 64, 128, 256, 320)
    departments = [names[sample % present] for sample in range(batch)]
    network = partial(Pixels, widths)
    return _problem(network, (batch, 1, *[size] * 3), departments, known=names, device=device, bf16=bf16)


class Pixels(nn.Module):
    """The U-Net's finest map alone: a benchmark needs one output.

    Args:
        widths: channels of each scale.
    """

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.unet = UNet(in_channels=1, widths=widths)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, 1, X, Y, Z)`` to ``(B, widths[0], X, Y, Z)``."""
        return self.unet(x)[1]


def department_names(number: int) -> tuple[str, ...]:
    """Name departments; in a benchmark there may be more than a hospital has."""
    return tuple(f"d{index:02d}" for index in range(number))


def low_rank_names(network: nn.Module) -> list[str]:
    """Name the weights with factors: every convolution of one group that is not transposed (the paper's choice)."""
    return [
        f"{name}.weight"
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv2d | nn.Conv3d) and module.groups == 1
    ]


def of(batch: int, present: int, known: int) -> str:
    """Describe a mixed batch."""
    return f"batch {batch}, {present} of {known}"


def side(size: int, axes: int) -> str:
    """Write the size of a square or cube."""
    return f"{size}{'²³'[axes - 2]}"


def _layer(conv: Conv, inputs: int, outputs: int, kernel: int, stride: int) -> nn.Module:
    return nn.Sequential(conv(inputs, outputs, kernel, stride, padding=kernel // 2))


def _problem(
    network: Callable[[], nn.Module],
    shape: Sequence[int],
    departments: Sequence[str],
    *,
    known: Sequence[str],
    device: str,
    bf16: bool,
    middle: bool = False,
) -> Problem:
    made = network()
    problem = make_problem(
        made, shape, departments, names=low_rank_names(made), known=known, rank=RANK, device=device, bf16=bf16
    )
    return replace(problem, inputs=problem.inputs.requires_grad_()) if middle else problem
