"""2D classification: the ShuffleNetV2 student and the ResNet-50 teacher, with a linear head for each department.

The backbone sees a batch of all departments at once and gives features, with batch norm's statistics over the whole of
it; only then does each sample go to its own department's head. So one mixed pass over the backbone is all that a
training step needs, and a department's fused network is a plain one.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import channel_shuffle, pad


class ShuffleUnit(nn.Module):
    """Unit of ShuffleNetV2 (Ma et al. 2018, Fig. 3 c and d), for stride 1 and 2.

    At stride 1 half of the channels pass untouched; at stride 2 both branches see all of them. The branches are joined
    and their channels interleaved.

    Args:
        in_channels: even, and as many as come out at stride 1.
        out_channels: even.
        stride: 1 or 2.
    """

    def __init__(self, in_channels: int, out_channels: int, *, stride: int) -> None:
        super().__init__()
        half = out_channels // 2
        self.split = stride == 1
        self.main = nn.Sequential(
            *convolution(in_channels // 2 if self.split else in_channels, half),
            *depthwise(half, stride=stride),
            *convolution(half, half),
        )
        self.shortcut = (
            nn.Identity()
            if self.split
            else nn.Sequential(*depthwise(in_channels, stride=stride), *convolution(in_channels, half))
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, in_channels, X, Y)`` to ``(B, out_channels, X / stride, Y / stride)``, rounded up."""
        kept, changed = x.chunk(2, dim=1) if self.split else (x, x)
        return channel_shuffle(torch.cat((self.shortcut(kept), self.main(changed)), dim=1), 2)


class ShuffleNetV2(nn.Module):
    """ShuffleNetV2 without its classifier; the default is the paper's x1.0 (Ma et al. 2018, Table 5).

    Args:
        in_channels: channels of the image.
        widths: of the first convolution, each stage and the last convolution.
        repeats: units in each stage.
    """

    def __init__(
        self,
        *,
        in_channels: int = 3,
        widths: Sequence[int] = (24, 116, 232, 464, 1024),
        repeats: Sequence[int] = (4, 8, 4),
    ) -> None:
        super().__init__()
        first, *stages, last = widths
        self.first = nn.Sequential(
            *convolution(in_channels, first, kernel_size=3, stride=2), nn.MaxPool2d(3, stride=2, padding=1)
        )
        self.stages = nn.ModuleList()
        for (before, width), units in zip(pairwise((first, *stages)), repeats, strict=True):
            rest = [ShuffleUnit(width, width, stride=1) for _ in range(units - 1)]
            self.stages.append(nn.Sequential(ShuffleUnit(before, width, stride=2), *rest))
        self.last = nn.Sequential(*convolution(stages[-1], last))

    def forward(self, images: Tensor) -> Tensor:
        """Map images ``(B, in_channels, X, Y)`` to features ``(B, widths[-1])``."""
        x = self.first(images)
        for stage in self.stages:
            x = stage(x)
        return self.last(x).mean(dim=(2, 3))


class Classifier(nn.Module):
    """A backbone that all departments share, and a linear head for each.

    Args:
        backbone: images ``(B, C, X, Y)`` to features ``(B, feature_dim)``.
        feature_dim: length of a feature vector.
        classes: department -> number of its classes.

    Raises:
        ValueError: no department, or one with fewer than two classes.
    """

    def __init__(self, backbone: nn.Module, feature_dim: int, classes: Mapping[str, int]) -> None:
        super().__init__()
        if not classes or min(classes.values()) < 2:
            raise ValueError(f"classes {dict(classes)} must name departments with at least 2 each; set them higher")
        self.backbone = backbone
        self.feature_dim = feature_dim
        self.most_classes = max(classes.values())
        self.heads = nn.ModuleDict({name: nn.Linear(feature_dim, number) for name, number in classes.items()})

    def low_rank_weights(self) -> dict[str, bool]:
        """Name every weight that a department's expert changes; none belongs to a decoder.

        The paper's choice: all convolutions, the first and the last too, but the depthwise ones.
        """
        return {
            f"backbone.{name}.weight": False
            for name, module in self.backbone.named_modules()
            if isinstance(module, nn.Conv2d) and module.groups == 1
        }

    def forward(self, images: Tensor) -> Tensor:
        """Map images ``(B, C, X, Y)`` of any departments to features ``(B, feature_dim)``."""
        return self.backbone(images)

    def classify(self, features: Tensor, departments: Sequence[str]) -> Tensor:
        """Send each sample's features to its own department's head; absent departments get no gradient.

        Args:
            features: ``(B, feature_dim)``, as ``forward`` gives them.
            departments: of each sample.

        Returns:
            Logits ``(B, most_classes)``, with ``-inf`` for classes that the sample's own department lacks: they have
            neither probability nor gradient.

        Raises:
            ValueError: a department without a head, or not one for each sample.
        """
        if len(departments) != len(features):
            raise ValueError(f"{len(departments)} departments for {len(features)} samples; give one for each sample")
        logits: list[Tensor] = []
        order: list[int] = []
        for department in dict.fromkeys(departments):
            if department not in self.heads:
                raise ValueError(f"department {department!r} has no head; use one of {', '.join(self.heads)}")
            rows = [row for row, name in enumerate(departments) if name == department]
            own = self.heads[department](features[rows])
            logits.append(pad(own, (0, self.most_classes - own.shape[1]), value=-math.inf))
            order += rows
        return torch.cat(logits)[torch.tensor(order, device=features.device).argsort()]


def build_student(classes: Mapping[str, int]) -> Classifier:
    """Build LoRKD's student: ShuffleNetV2 x1.0 on three-channel images, features of length 1024.

    Args:
        classes: department -> number of its classes.
    """
    return Classifier(ShuffleNetV2(), 1024, classes)


def build_teacher(classes: Mapping[str, int]) -> Classifier:
    """Build LoRKD's teacher: MONAI's ResNet-50 on three-channel images, features of length 2048, untrained.

    Its backbone has the usual names and shapes of an ImageNet ResNet-50, so that such weights load.

    Args:
        classes: department -> number of its classes.
    """
    from monai.networks.nets.resnet import resnet50

    backbone = resnet50(
        pretrained=False,
        spatial_dims=2,
        n_input_channels=3,
        conv1_t_stride=2,
        bias_downsample=False,
        feed_forward=False,
    )
    return Classifier(backbone, 2048, classes)


def feature_projection(student: Classifier, teacher: Classifier) -> nn.Linear:
    """Make the map from the student's features to the teacher's width, on which the transfer loss compares them.

    It stands on the student's side: the teacher's features are a fixed target, and a map behind them would be cut off
    from every gradient. Train its parameters with the student's; a deployed student has none of it.
    """
    return nn.Linear(student.feature_dim, teacher.feature_dim)


def convolution(
    in_channels: int, out_channels: int, *, kernel_size: int = 1, stride: int = 1
) -> tuple[nn.Conv2d, nn.BatchNorm2d, nn.ReLU]:
    """Make a convolution without bias, batch norm and ReLU; the image keeps its size at stride 1."""
    conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2, bias=False)
    return conv, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True)


def depthwise(channels: int, *, stride: int) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    """Make a 3 x 3 convolution of each channel by itself, without bias, and batch norm."""
    return nn.Conv2d(channels, channels, 3, stride, padding=1, groups=channels, bias=False), nn.BatchNorm2d(channels)
