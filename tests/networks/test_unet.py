"""Tests of lorkd_monailabel.networks.unet."""

from itertools import pairwise

import pytest
import torch
from torch.nn.functional import conv3d, conv_transpose3d, leaky_relu

from lorkd_monailabel.networks.unet import ConvBlock, UNet


def conv_parameters(inputs: int, outputs: int) -> int:
    """Of a 3 x 3 x 3 convolution with bias and an affine norm."""
    return outputs * (27 * inputs + 1) + 2 * outputs


@pytest.mark.parametrize(
    ("widths", "convs"), [((32, 64, 128, 256, 512), 2), ((64, 64, 128, 256, 512, 768), 2), ((4, 8, 16), 3)]
)
def test_parameter_count_follows_from_the_widths(widths: tuple[int, ...], convs: int) -> None:
    with torch.device("meta"):
        unet = UNet(in_channels=3, widths=widths, convs=convs)
    expected = 0
    for before, width in pairwise((3, *widths)):
        expected += conv_parameters(before, width) + (convs - 1) * conv_parameters(width, width)
    for width, below in pairwise(widths):
        expected += below * width * 8 + width  # transposed convolution
        expected += conv_parameters(2 * width, width) + (convs - 1) * conv_parameters(width, width)
    assert sum(parameter.numel() for parameter in unet.parameters()) == expected


def test_maps_halve_at_each_scale_and_the_decoder_comes_back_to_full_size() -> None:
    unet = UNet(in_channels=2, widths=(3, 5, 7), convs=2)
    scales, pixels = unet(torch.randn(2, 2, 8, 12, 4))
    assert [tuple(scale.shape) for scale in scales] == [(2, 3, 8, 12, 4), (2, 5, 4, 6, 2), (2, 7, 2, 3, 1)]
    assert pixels.shape == (2, 3, 8, 12, 4)
    assert unet.stride == 4


@pytest.mark.parametrize("stride", [1, 2])
def test_block_is_convolution_norm_and_leaky_relu(stride: int) -> None:
    block = ConvBlock(2, 3, stride=stride).double()
    torch.nn.init.normal_(block.conv.bias)
    torch.nn.init.normal_(block.norm.weight)
    torch.nn.init.normal_(block.norm.bias)
    image = torch.randn(2, 2, 6, 4, 8, dtype=torch.float64)
    x = conv3d(image, block.conv.weight, block.conv.bias, stride=stride, padding=1)
    mean = x.mean(dim=(2, 3, 4), keepdim=True)
    variance = (x - mean).square().mean(dim=(2, 3, 4), keepdim=True)
    x = (x - mean) / (variance + 1e-5).sqrt()
    x = x * block.norm.weight[:, None, None, None] + block.norm.bias[:, None, None, None]
    expected = torch.where(x > 0, x, 0.01 * x)
    torch.testing.assert_close(block(image), expected)


def test_wiring_of_two_scales() -> None:
    unet = UNet(in_channels=1, widths=(2, 3), convs=1).double()
    w = unet.state_dict()
    image = torch.randn(1, 1, 4, 6, 4, dtype=torch.float64)

    def block(x: torch.Tensor, name: str, stride: int) -> torch.Tensor:
        x = conv3d(x, w[f"{name}.conv.weight"], w[f"{name}.conv.bias"], stride=stride, padding=1)
        return leaky_relu(torch.nn.functional.instance_norm(x), 0.01)

    fine = block(image, "encoder.0.0", 1)
    coarse = block(fine, "encoder.1.0", 2)
    up = conv_transpose3d(coarse, w["upsample.0.weight"], w["upsample.0.bias"], stride=2)
    expected = block(torch.cat((up, fine), dim=1), "decoder.0.0", 1)
    scales, pixels = unet(image)
    torch.testing.assert_close(scales[0], fine)
    torch.testing.assert_close(scales[1], coarse)
    torch.testing.assert_close(pixels, expected)


def test_a_sample_does_not_depend_on_its_batch() -> None:
    unet = UNet(in_channels=1, widths=(2, 4))
    images = torch.randn(3, 1, 4, 4, 4)
    together = unet(images)[1]
    for index in range(3):
        torch.testing.assert_close(together[index : index + 1], unet(images[index : index + 1])[1])


def test_low_rank_weights_are_the_stages_convolutions_alone() -> None:
    unet = UNet(in_channels=1, widths=(2, 4, 8), convs=2)
    found = unet.low_rank_weights()
    assert found == {
        **{f"encoder.{level}.{conv}.conv.weight": False for level in range(3) for conv in range(2)},
        **{f"decoder.{level}.{conv}.conv.weight": True for level in range(2) for conv in range(2)},
    }
    assert set(found) <= set(unet.state_dict())
