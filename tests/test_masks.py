"""Tests of lorkd_monailabel.masks: a network that takes no large windows, and masks on their way back."""

import numpy as np
import pytest
import torch

from lorkd_monailabel import masks as masks_module
from lorkd_monailabel.masks import brought_back, masks_of, network_masks, windows_at_once
from lorkd_monailabel.resampling import resample
from lorkd_monailabel.sliding_window import Cancelled, sliding_window
from lorkd_monailabel.volumes import Grid, canonical_grid

CPU = torch.device("cpu")


def on(most: int, asked: list[tuple[int, ...]], error: Exception | None = None):
    """A network of any device that has no memory for windows longer than ``most``."""

    def forward(windows: torch.Tensor) -> torch.Tensor:
        asked.append(tuple(windows.shape[2:]))
        if max(windows.shape[2:]) > most:
            raise error or torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return torch.cat([windows.sigmoid(), windows.tanh() * windows.shape[2]], dim=1)

    return lambda device: forward


def segment(image: torch.Tensor, forward_on, progress=lambda done, total: True):
    return masks_of(image, forward_on, device=CPU, window=(16, 16, 16), stride=4, overlap=0.5, progress=progress)


def test_enough_memory_says_nothing():
    image, asked = torch.randn(1, 20, 20, 20), []
    found, fallback = segment(image, on(99, asked))
    assert fallback is None
    assert set(asked) == {(16, 16, 16)}
    expected = sliding_window(image, on(99, [])(CPU), window=(16, 16, 16))
    assert torch.allclose(found, expected)


def test_windows_of_air_are_not_computed():
    """The answer is that of a network which answers 0 there; the windows are counted as done all the same."""
    asked, told = [], []

    class Network:
        stride = 4

        def __call__(self, windows: torch.Tensor, queries: torch.Tensor) -> torch.Tensor:
            asked.append(windows)
            return torch.cat([windows] * len(queries), dim=1)

    image = torch.full((1, 40, 16, 16), -2.75)
    image[:, :20] = torch.randn(1, 20, 16, 16)
    found, fallback = network_masks(
        Network(),  # type: ignore[arg-type]
        image,
        torch.zeros(2, 3),
        device=CPU,
        window=(16, 16, 16),
        overlap=0.5,
        progress=lambda done, total: not told.append((done, total)),
    )
    assert fallback is None
    assert sum(map(len, asked)) == 3  # they begin at 0, 8 and 16; those at 24 see air alone
    assert told[-1] == (4, 4)

    def silent(windows: torch.Tensor) -> torch.Tensor:
        air = windows.amax(dim=(1, 2, 3, 4)) == windows.amin(dim=(1, 2, 3, 4))
        return torch.where(air[:, None, None, None, None], 0.0, windows.sigmoid())

    assert torch.allclose(found[0], sliding_window(image, silent, window=(16, 16, 16))[0], atol=1e-2)  # bfloat16
    assert (found[:, 32:] == 0).all()


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_smaller_windows_where_memory_runs_out(error):
    image, asked, told = torch.randn(1, 20, 20, 20), [], []
    found, fallback = segment(image, on(8, asked, error), lambda done, total: not told.append((done, total)))
    assert asked[0] == (16, 16, 16)
    assert set(asked[1:]) == {(8, 8, 8)}
    assert torch.allclose(found, sliding_window(image, on(8, [])(CPU), window=(8, 8, 8)), atol=1e-6)
    assert (
        fallback
        == "cpu has too little memory for windows of 16 x 16 x 16 voxels, so windows of 8 x 8 x 8 were used on cpu"
    )
    assert told[:2] == [(0, 8), (0, 64)]
    assert told[-1] == (64, 64)


def test_then_the_processor(monkeypatch):
    """``meta`` stands for a device without any memory."""
    monkeypatch.setattr(
        masks_module, "attempts", lambda device, window, stride: [(torch.device("meta"), window), (CPU, window)]
    )
    full, enough = on(0, []), on(99, [])
    image = torch.randn(1, 9, 9, 9)
    found, fallback = masks_of(
        image,
        lambda device: (full if device.type == "meta" else enough)(device),
        device=torch.device("meta"),
        window=(12, 12, 12),
        stride=4,
        overlap=0.5,
        progress=lambda done, total: True,
    )
    assert torch.allclose(found, sliding_window(image, enough(CPU), window=(12, 12, 12)), atol=1e-6)
    assert (
        fallback
        == "meta has too little memory for windows of 12 x 12 x 12 voxels, so windows of 12 x 12 x 12 were used on cpu"
    )


def test_a_network_that_does_not_fit_is_memory_that_runs_out():
    """Its copy in main memory, or its queries, may be what there is no room for."""

    def no_room(device):
        raise MemoryError

    with pytest.raises(ValueError, match="needs more memory than there is"):
        segment(torch.randn(1, 20, 20, 20), no_room)


def test_no_memory_at_all():
    with pytest.raises(
        ValueError,
        match=r"an image of 20 x 20 x 20 voxels needs more memory than there is, even in windows of 8 x 8 x 8; crop it",
    ):
        segment(torch.randn(1, 20, 20, 20), on(0, []))


def test_other_errors_and_cancel_pass():
    with pytest.raises(RuntimeError, match="shapes"):
        segment(torch.randn(1, 20, 20, 20), on(0, [], RuntimeError("shapes cannot be multiplied")))
    asked: list[tuple[int, ...]] = []
    with pytest.raises(Cancelled):
        segment(torch.randn(1, 20, 20, 36), on(99, asked), lambda done, total: done < 5)
    assert len(asked) == 2  # of four windows each, and the other eight of the sixteen are left out


@pytest.mark.parametrize(("window", "together"), [((8, 8, 8), 4), ((40, 40, 40), 4), ((48, 48, 48), 2), ((96,) * 3, 1)])
def test_small_windows_come_together(window, together):
    assert windows_at_once(window) == windows_at_once(window, 2) == together
    assert windows_at_once(window, 8) == (16 if together == 4 else together)
    assert windows_at_once(window, 128) == (32 if together == 4 else together)


@pytest.mark.parametrize(("fast", "length", "given"), [(False, 16, 2), (True, 16, 1), (False, 64, 1)])
def test_a_small_window_is_not_alone_in_float32(monkeypatch, fast, length, given):
    """The answer is the window's own; what came with it is dropped."""
    monkeypatch.setattr(masks_module, "has_fast_bf16", lambda device: fast)
    asked = []

    class Network:
        stride = 4

        def __call__(self, windows: torch.Tensor, queries: torch.Tensor) -> torch.Tensor:
            asked.append(len(windows))
            return windows.expand(-1, len(queries), -1, -1, -1)

    image = torch.randn(1, length, length, length)
    found, _ = network_masks(
        Network(),  # type: ignore[arg-type]
        image,
        torch.zeros(2, 3),
        device=CPU,
        window=(length, length, length),
        overlap=0.5,
        progress=lambda done, total: True,
    )
    assert asked == [given]
    assert torch.allclose(found, image.sigmoid().expand(2, -1, -1, -1), atol=1e-6)


@pytest.mark.parametrize("spacing", [0.8, 1.7, 4.0])
@pytest.mark.parametrize("seed", range(4))
def test_what_is_left_out_is_not_above_the_threshold(spacing, seed):
    directions = np.array([[2, -1, 2], [2, 2, -1], [-1, 2, 2]]) / 3
    affine = np.eye(4)
    affine[:3, :3] = directions[:, [2, 0, 1]] * np.array([-2.0, -0.9, 1.3])
    target = Grid((17, 34, 27), affine)
    source = canonical_grid(target, spacing)
    generator = np.random.default_rng(seed)
    mask = torch.from_numpy(generator.random(source.shape).astype(np.float32)) * 0.5
    starts = generator.integers(0, [max(1, length - 2) for length in source.shape])
    mask[tuple(slice(start, start + 2) for start in starts)] *= 2
    whole = resample(mask[None], source, target, "linear")[0].numpy()
    probability, part = brought_back(mask, source, target)
    assert probability.size < whole.size / 2
    np.testing.assert_allclose(probability, whole[part], rtol=3e-7)  # its axes are taken in another order
    assert probability.flags.f_contiguous
    expected = whole > 0.5
    expected[part] = False
    assert not expected.any()


def test_nothing_above_the_threshold_takes_no_memory():
    grid = Grid((5, 6, 7), np.eye(4))
    probability, part = brought_back(torch.full(grid.shape, 0.5), grid, grid)
    assert (probability.shape, np.zeros(grid.shape)[part].shape) == ((0, 0, 0), (0, 0, 0))
