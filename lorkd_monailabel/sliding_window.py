"""Sliding window: a network over a volume that is larger than it can take at once, with progress and cancel."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch


class Cancelled(Exception):
    """The caller's progress function said not to go on."""


def sliding_window(
    image: torch.Tensor,
    network: Callable[[torch.Tensor], torch.Tensor],
    *,
    window: tuple[int, int, int],
    overlap: float = 0.5,
    batch_size: int = 1,
    progress: Callable[[int, int], bool] | None = None,
) -> torch.Tensor:
    """Applies a network window by window, without gradients, and blends what overlaps with Gaussian weights.

    An image smaller than the window is padded with its minimum (air, background) on both sides, and the result is
    cropped. The result is on the device of the image and has its dtype, wherever the network computes.

    Args:
        image: floating point (C, X, Y, Z).
        network: windows (B, C, *window) -> (B, N, *window), new at each call, as it is weighted in place; B is at most
            the batch size.
        window: size in voxels.
        overlap: share of a window that its neighbour covers too, from 0 to below 1.
        batch_size: windows in one call of the network.
        progress: called with windows done and their total, before the first window and after each call of the
            network; False ends the run.

    Returns:
        (N, X, Y, Z).

    Raises:
        Cancelled: progress returned False; the network was not called again.
        ValueError: a size is out of range, the image is not (C, X, Y, Z) or the network does not keep the window.
    """
    if image.ndim != 4 or 0 in image.shape or not image.is_floating_point():
        raise ValueError(
            f"image {tuple(image.shape)} {image.dtype} must be floating point (C, X, Y, Z), none of them 0"
        )
    if len(window) != 3 or min(window) < 1:
        raise ValueError(f"window {window} must be three lengths of at least 1; set it as the network was trained")
    if not 0 <= overlap < 1:
        raise ValueError(f"overlap {overlap} must be in [0, 1); 0.5 is usual")
    if batch_size < 1:
        raise ValueError(f"batch size {batch_size} must be at least 1; 1 needs least memory")
    # here, as the import of monai costs seconds, which reading volumes or label maps should not
    from monai.inferers.utils import sliding_window_inference

    total = math.prod(_windows(n, w, overlap) for n, w in zip(image.shape[1:], window, strict=True))
    done = 0

    def report() -> None:
        if progress is not None and not progress(done, total):
            raise Cancelled(f"cancelled after {done} of {total} windows")

    def counted(windows: torch.Tensor) -> torch.Tensor:
        nonlocal done
        result = network(windows)
        if result.shape[:1] + result.shape[2:] != windows.shape[:1] + windows.shape[2:]:
            raise ValueError(
                f"the network made {tuple(result.shape)} of {tuple(windows.shape)}, but must keep (B, X, Y, Z)"
            )
        done += len(windows)
        report()
        return result.to(windows)

    report()
    with torch.no_grad():
        blended = sliding_window_inference(
            image[None],
            window,
            batch_size,
            counted,
            overlap=overlap,
            mode="gaussian",
            cval=float(image.min()),
        )
    assert isinstance(blended, torch.Tensor)
    return blended[0]


def _windows(length: int, window: int, overlap: float) -> int:
    """How many windows monai lays along an axis: steps of its interval until the end of the image is covered."""
    interval = max(1, int(window * (1 - overlap)))
    return 1 + math.ceil(max(0, length - window) / interval)
