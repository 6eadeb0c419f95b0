"""Tests of lorkd_monailabel.sliding_window."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise

import pytest
import torch

from lorkd_monailabel.sliding_window import Cancelled, sliding_window

Size = tuple[int, int, int]


def plus_one(windows: torch.Tensor) -> torch.Tensor:
    return windows + 1


@pytest.mark.parametrize("window", [(8, 8, 8), (5, 7, 9), (16, 4, 12), (1, 1, 1)])
@pytest.mark.parametrize("shape", [(8, 8, 8), (9, 17, 8), (3, 20, 11), (2, 2, 2), (1, 13, 5)])
@pytest.mark.parametrize(("overlap", "batch_size"), [(0.5, 1), (0.0, 3), (0.25, 4), (0.7, 2)])
def test_constant_stays_constant_and_progress_reaches_the_total(
    shape: Size, window: Size, overlap: float, batch_size: int
) -> None:
    if window == (1, 1, 1):
        shape = (3, 2, 4)
    calls: list[tuple[int, int]] = []
    sizes: list[int] = []

    def network(windows: torch.Tensor) -> torch.Tensor:
        assert windows.shape[1:] == (2, *window)
        assert len(windows) <= batch_size
        sizes.append(len(windows))
        return windows + 1

    def progress(done: int, total: int) -> bool:
        calls.append((done, total))
        return True

    result = sliding_window(
        torch.full((2, *shape), 0.3),
        network,
        window=window,
        overlap=overlap,
        batch_size=batch_size,
        progress=progress,
    )
    assert result.shape == (2, *shape)
    torch.testing.assert_close(result, torch.full((2, *shape), 1.3))
    done = [count for count, _ in calls]
    totals = {total for _, total in calls}
    assert len(totals) == 1
    assert done[0] == 0
    assert done[-1] == sum(sizes) == totals.pop()
    assert [b - a for a, b in pairwise(done)] == sizes


@pytest.mark.parametrize("shape", [(20, 17, 9), (4, 30, 3)])
def test_each_voxel_comes_out_where_it_went_in(shape: Size) -> None:
    image = torch.randn(1, *shape)

    def network(windows: torch.Tensor) -> torch.Tensor:
        return torch.cat([windows, 2 * windows, -windows], dim=1)

    result = sliding_window(image, network, window=(8, 8, 8))
    torch.testing.assert_close(result, torch.cat([image, 2 * image, -image]))


def test_the_image_is_not_written_to() -> None:
    image = torch.randn(1, 12, 12, 12)
    before = image.clone()
    result = sliding_window(image, torch.clone, window=(8, 8, 8))
    assert torch.equal(image, before)
    torch.testing.assert_close(result, before)


def test_padding_is_the_minimum_of_the_image() -> None:
    seen: list[torch.Tensor] = []

    def network(windows: torch.Tensor) -> torch.Tensor:
        seen.append(windows.clone())
        return windows.clone()

    sliding_window(torch.arange(4.0).reshape(1, 4, 1, 1) - 9, network, window=(6, 1, 1))
    assert seen[0].flatten().tolist() == [-9, -9, -8, -7, -6, -9]


def test_result_has_dtype_of_the_image_and_no_gradient() -> None:
    weight = torch.ones(1, requires_grad=True)
    result = sliding_window(torch.ones(1, 8, 8, 8), lambda windows: (windows * weight).half(), window=(4, 4, 4))
    assert result.dtype == torch.float32
    assert not result.requires_grad
    assert weight.grad is None
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("after", [0, 1, 3])
def test_cancel_ends_the_run_at_once(after: int) -> None:
    calls = 0

    def network(windows: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return windows

    with pytest.raises(Cancelled, match=f"after {after} of 27 windows"):
        sliding_window(torch.zeros(1, 16, 16, 16), network, window=(8, 8, 8), progress=lambda done, total: done < after)
    assert calls == after


def test_an_exception_in_the_network_ends_the_run() -> None:
    class NetworkError(Exception):
        pass

    calls = 0

    def network(windows: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise NetworkError("at the second window")
        return windows

    with pytest.raises(NetworkError, match="at the second window"):
        sliding_window(torch.zeros(1, 16, 16, 16), network, window=(8, 8, 8))
    assert calls == 2


def test_refuses_what_cannot_be() -> None:
    image = torch.zeros(1, 8, 8, 8)
    with pytest.raises(ValueError, match="floating point"):
        sliding_window(image[0], plus_one, window=(4, 4, 4))
    with pytest.raises(ValueError, match="floating point"):
        sliding_window(image.int(), plus_one, window=(4, 4, 4))
    with pytest.raises(ValueError, match="floating point"):
        sliding_window(image[:, :0], plus_one, window=(4, 4, 4))
    with pytest.raises(ValueError, match="three lengths"):
        sliding_window(image, plus_one, window=(4, 4, 0))
    with pytest.raises(ValueError, match="overlap 1"):
        sliding_window(image, plus_one, window=(4, 4, 4), overlap=1.0)
    with pytest.raises(ValueError, match="batch size 0"):
        sliding_window(image, plus_one, window=(4, 4, 4), batch_size=0)
    with pytest.raises(ValueError, match="must keep"):
        sliding_window(image, lambda windows: windows[..., ::2], window=(4, 4, 4))


def test_import_leaves_monai_alone() -> None:
    code = "import sys, lorkd_monailabel.sliding_window; assert 'monai' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
