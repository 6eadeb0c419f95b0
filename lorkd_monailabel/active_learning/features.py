"""What an image looks like to the base: its tokens, pooled over the body.

Tokens are what the query decoder reads. They are the base's own, without any expert, so that they stay as they are
when an expert learns, and cases that were looked at once need not be looked at again.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn.functional import avg_pool3d, pad

from lorkd_monailabel.networks.segmenter import Segmenter
from lorkd_monailabel.sliding_window import Cancelled
from lorkd_monailabel.volumes import Box


@torch.no_grad()
def image_feature(
    network: Segmenter, image: Tensor, window: tuple[int, int, int], progress: Callable[[int, int], bool]
) -> Tensor:
    """Average the tokens of an image, where it is brighter than its mean: the body, without the air around it.

    Args:
        network: plain network of the base, in evaluation mode.
        image: ``(1, X, Y, Z)``, normalised.
        window: in voxels; windows lie side by side.
        progress: told windows done and in all; False ends it.

    Returns:
        ``(dim,)``, on the CPU.

    Raises:
        Cancelled: ``progress`` said so.
    """
    stride, level = network.stride, image.mean()
    sides = [-(-min(most, length) // stride) * stride for most, length in zip(window, image.shape[1:], strict=True)]
    missing = [max(0, side - length) for side, length in zip(sides, image.shape[1:], strict=True)]
    padded = pad(image, [part for each in reversed(missing) for part in (0, each)], value=image.min().item())
    boxes = list(_windows(tuple(padded.shape[1:]), sides))
    total, count = torch.zeros(1), 0
    for done, box in enumerate(boxes):
        if not progress(done, len(boxes)):
            raise Cancelled(f"cancelled after {done} of {len(boxes)} windows")
        part = padded[(slice(None), *box)]
        body = avg_pool3d(part, stride)[0] > level
        if body.any():
            found = tokens(network, part[None].to(next(network.parameters()).device))[0].float().cpu()
            total, count = total + found[:, body.cpu()].sum(dim=1), count + int(body.sum())
    return total / max(count, 1)


def tokens(network: Segmenter, image: Tensor) -> Tensor:
    """Give the tokens ``(B, dim, X / stride, Y / stride, Z / stride)`` of images ``(B, 1, X, Y, Z)``."""
    scale, coarse = image.expand(-1, network.unet.in_channels, -1, -1, -1), []
    for level, stage in enumerate(network.unet.encoder):
        scale = stage(scale)
        coarse.append(avg_pool3d(scale, network.stride >> level))
    pooled: Tensor = network.projection(torch.cat(coarse, dim=1).movedim(1, -1))
    return pooled.movedim(-1, 1)


def _windows(shape: tuple[int, ...], sides: list[int]) -> Iterator[Box]:
    """Lay windows side by side; the last one of a row lies within the image."""
    starts = [
        [min(start, length - side) for start in range(0, length, side)]
        for length, side in zip(shape, sides, strict=True)
    ]
    for x in starts[0]:
        for y in starts[1]:
            for z in starts[2]:
                yield slice(x, x + sides[0]), slice(y, y + sides[1]), slice(z, z + sides[2])
