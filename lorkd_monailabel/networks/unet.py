"""The 3D U-Net of a segmenter: image in, feature maps of every scale out."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class ConvBlock(nn.Module):
    """Convolution, instance norm and leaky ReLU: normalisation is per sample, so departments never mix in it."""

    def __init__(self, in_channels: int, out_channels: int, *, kernel_size: int = 3, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv3d(in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2)
        self.norm = nn.InstanceNorm3d(out_channels, eps=1e-5, affine=True)
        nn.init.kaiming_normal_(self.conv.weight, a=0.01)
        nn.init.zeros_(self.conv.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, C, X, Y, Z)`` to ``(B, out_channels, X / stride, Y / stride, Z / stride)``."""
        return nn.functional.leaky_relu(self.norm(self.conv(x)), 0.01, inplace=True)


class UNet(nn.Module):
    """Plain convolutional U-Net in the shape of SAT's image encoder and pixel decoder.

    Args:
        in_channels: channels of the image.
        widths: channels of each scale, finest first.
        convs: convolutions in each stage of the encoder and of the decoder.
        kernel_size: of every convolution; odd.
    """

    def __init__(self, *, in_channels: int, widths: Sequence[int], convs: int = 2, kernel_size: int = 3) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.widths = tuple(widths)
        self.encoder = nn.ModuleList()
        before = in_channels
        for level, width in enumerate(widths):
            stage = [ConvBlock(before, width, kernel_size=kernel_size, stride=1 if level == 0 else 2)]
            stage += [ConvBlock(width, width, kernel_size=kernel_size) for _ in range(convs - 1)]
            self.encoder.append(nn.Sequential(*stage))
            before = width
        self.upsample = nn.ModuleList()
        self.decoder = nn.ModuleList()
        for below, width in zip(reversed(widths[1:]), reversed(widths[:-1]), strict=True):
            self.upsample.append(nn.ConvTranspose3d(below, width, kernel_size=2, stride=2))
            stage = [ConvBlock(2 * width, width, kernel_size=kernel_size)]
            stage += [ConvBlock(width, width, kernel_size=kernel_size) for _ in range(convs - 1)]
            self.decoder.append(nn.Sequential(*stage))

    @property
    def stride(self) -> int:
        """Voxels of the image for one voxel of the coarsest scale, along each axis."""
        return int(2 ** (len(self.widths) - 1))

    def low_rank_weights(self) -> dict[str, bool]:
        """Name every weight that a department's expert changes, and say whether it belongs to the decoder.

        The paper's choice: the convolutions of the encoder and decoder stages, not the transposed ones.
        """
        names = {}
        for part in ("encoder", "decoder"):
            for name, module in getattr(self, part).named_modules():
                if isinstance(module, nn.Conv3d):
                    names[f"{part}.{name}.weight"] = part == "decoder"
        return names

    def forward(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        """Run the encoder and the decoder.

        Args:
            x: image, ``(B, in_channels, X, Y, Z)``; X, Y and Z are multiples of ``stride``.

        Returns:
            The encoder's maps, finest first, ``(B, widths[i], X / 2^i, Y / 2^i, Z / 2^i)``, and the decoder's finest
            map ``(B, widths[0], X, Y, Z)``.
        """
        scales = []
        for stage in self.encoder:
            x = stage(x)
            scales.append(x)
        for upsample, stage, skip in zip(self.upsample, self.decoder, reversed(scales[:-1]), strict=True):
            x = stage(torch.cat((upsample(x), skip), dim=1))
        return scales, x
