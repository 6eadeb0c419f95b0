"""Masks: an image -> probabilities, window by window, and back onto the grid of the volume.

Where memory runs out, smaller windows are tried, then the processor.
"""

import logging
import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from lorkd_monailabel.cores import spread
from lorkd_monailabel.devices import has_fast_bf16
from lorkd_monailabel.label_maps import THRESHOLD
from lorkd_monailabel.memory import Size, attempts, is_out_of_memory, on_cpu
from lorkd_monailabel.networks.segmenter import Segmenter
from lorkd_monailabel.resampling import resample, within_reach
from lorkd_monailabel.sliding_window import sliding_window
from lorkd_monailabel.volumes import Box, Grid

MOST_AT_ONCE = 32
Forward = Callable[[Tensor], Tensor]

_LOG = logging.getLogger(__name__)


def network_masks(
    network: Segmenter,
    image: Tensor,
    queries: Tensor,
    *,
    device: torch.device,
    window: Size,
    overlap: float,
    progress: Callable[[int, int], bool],
) -> tuple[Tensor, str | None]:
    """Gives the probabilities that a network finds for queries in an image; 0 in windows of one value alone.

    Args:
        network: in evaluation mode, on the device.
        image: (1, X, Y, Z), on the device or in main memory.
        queries: (N, query_dim), one for each structure.
        device: see ``masks_of``.
        window: see ``masks_of``.
        overlap: see ``masks_of``.
        progress: see ``masks_of``.

    Returns:
        See ``masks_of``.

    Raises:
        Cancelled: see ``masks_of``.
        ValueError: see ``masks_of``.
    """

    def forward_on(where: torch.device) -> Forward:
        own = network if where == device else on_cpu(network)
        asked, fast = queries.to(where), has_fast_bf16(where)

        def probabilities(given: Tensor) -> Tensor:
            with torch.autocast(where.type, torch.bfloat16, enabled=fast):
                logits = own(given if fast else _in_pairs(given), asked)[: len(given)]
            return logits.float().sigmoid()

        def forward(windows: Tensor) -> Tensor:
            shown = that_show_something(windows)
            if not shown.any():
                return windows.new_zeros((len(windows), len(queries), *windows.shape[2:]))
            given = windows if shown.all() else windows[shown]
            found = spread(probabilities, given.to(where, memory_format=torch.channels_last_3d)).to(windows)
            if len(found) == len(windows):
                return found
            masks = windows.new_zeros((len(windows), *found.shape[1:]))
            masks[shown] = found
            return masks

        return forward

    return masks_of(
        image, forward_on, device=device, window=window, stride=network.stride, overlap=overlap, progress=progress
    )


def that_show_something(windows: Tensor) -> Tensor:
    """Says of windows (B, C, X, Y, Z) which have voxels that differ; in the air around a patient no network is asked.

    Returns:
        (B,) truth values.
    """
    each = windows.flatten(1)
    return each.amin(dim=1) < each.amax(dim=1)  # ``aminmax`` along an axis takes twenty times as long


def _in_pairs(windows: Tensor) -> Tensor:
    """Doubles a window that is small and alone.

    For one with few channels, float32 on a processor, torch has a convolution of its own, which takes twice as long as
    oneDNN's for two.
    """
    alone = len(windows) == 1 < windows_at_once(windows.shape[2:])
    return windows.expand(2, -1, -1, -1, -1) if alone else windows


def windows_at_once(window: Sequence[int], cores: int = 1) -> int:
    """Gives how many windows a network gets in one call: one, or a few small ones, which use a device better.

    Args:
        window: in voxels.
        cores: of a processor; each gets two of those that are small enough for four at once.
    """
    few = max(1, min(4, 64**3 // math.prod(window)))
    return few if few < 4 else max(few, min(2 * cores, MOST_AT_ONCE))


def masks_of(
    image: Tensor,
    forward_on: Callable[[torch.device], Forward],
    *,
    device: torch.device,
    window: Size,
    stride: int,
    overlap: float,
    progress: Callable[[int, int], bool],
) -> tuple[Tensor, str | None]:
    """Gives the probabilities of an image.

    Args:
        image: (1, X, Y, Z), on the device or in main memory.
        forward_on: gives, for a device, what makes probabilities (B, N, *window) of windows (B, 1, *window).
        device: to compute on while its memory is enough.
        window: the largest, in voxels; a smaller image is one window.
        stride: lengths of a window are multiples of it.
        overlap: see ``sliding_window``.
        progress: see ``sliding_window``; where memory runs out, it starts again.

    Returns:
        (N, X, Y, Z), and one sentence on what was done where memory ran out; None where it did not.

    Raises:
        Cancelled: ``progress`` said so.
        ValueError: memory ran out in small windows on the processor too.
    """
    x, y, z = (-(-min(most, size) // stride) * stride for most, size in zip(window, image.shape[1:], strict=True))
    for where, size in attempts(device, (x, y, z), stride):
        given = image if where == device else image.cpu()
        at_once = windows_at_once(size, torch.get_num_threads() if where.type == "cpu" else 1)
        try:
            found = sliding_window(
                given, forward_on(where), window=size, overlap=overlap, batch_size=at_once, progress=progress
            )
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            _LOG.warning("%s has too little memory for windows of %s: %s", where, _by(size), error)
        else:
            if (where, size) == (device, (x, y, z)):
                return found, None
            return found, (
                f"{device} has too little memory for windows of {_by((x, y, z))} voxels, "
                f"so windows of {_by(size)} were used on {where}"
            )
        if where.type == "cuda":  # here, where the exception and what it holds are gone
            torch.cuda.empty_cache()
    raise ValueError(
        f"an image of {_by(image.shape[1:])} voxels needs more memory than there is, even in windows of {_by(size)}; "
        "crop it, or name fewer structures"
    )


def brought_back(mask: Tensor, source: Grid, target: Grid) -> tuple[np.ndarray, Box | None]:
    """Resamples a mask (X, Y, Z) as far as it can be above the threshold on the target.

    Linear interpolation never exceeds the voxels that it draws from, so what is left out is not above it.

    Returns:
        The array (X, Y, Z), X innermost in memory as in files, of a part of the target, empty where nothing can be
        above the threshold, and the part.
    """
    box = _box_above_threshold(mask)
    part = None if box is None else within_reach(box, source, target)
    if part is None:
        return np.zeros((0, 0, 0), np.float32), (slice(0, 0), slice(0, 0), slice(0, 0))
    x, y, z = part
    turned = Grid((target.shape[2], target.shape[1], target.shape[0]), target.affine[:, [2, 1, 0, 3]])
    mask = mask.transpose(0, 2).contiguous().transpose(0, 2)[None]  # while it is small
    try:
        return resample(mask, source, turned, "linear", part=(z, y, x))[0].cpu().numpy().T, part
    except RuntimeError as error:
        if not mask.is_cuda or not is_out_of_memory(error):
            raise
    return resample(mask.cpu(), source, turned, "linear", part=(z, y, x))[0].numpy().T, part


def _box_above_threshold(mask: Tensor) -> Box | None:
    """The smallest box that holds all of a mask above the threshold; None where there is nothing."""
    above = mask > THRESHOLD
    box = []
    for axis in range(3):
        one, other = (each for each in range(3) if each != axis)
        found = above.any(dim=other).any(dim=one).nonzero()
        if len(found) == 0:
            return None
        box.append(slice(int(found[0]), int(found[-1]) + 1))
    return box[0], box[1], box[2]


def _by(lengths: Iterable[int]) -> str:
    return " x ".join(map(str, lengths))
