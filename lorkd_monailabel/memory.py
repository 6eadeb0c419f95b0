"""Memory: what a volume needs at least, what there is, and how to go on where it runs out.

What a volume needs is a lower bound, of what must be held at the same time whatever the network: who is refused by it
could not have been served. Whether a volume above it fits is found out by trying.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import nibabel
import numpy as np
import torch

from lorkd_monailabel.process import hand_back
from lorkd_monailabel.volume_files import UNREADABLE

_FLOAT_BYTES = 4
_MEMINFO = "/proc/meminfo"
_CGROUPS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory.stat"),
    (
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory/memory.usage_in_bytes",
        "/sys/fs/cgroup/memory/memory.stat",
    ),
)

_DAMAGED: tuple[type[Exception], ...] = (*UNREADABLE, RuntimeError, ArithmeticError)

# What torch's allocators say; only those of GPUs have an error type of their own.
_OUT_OF_MEMORY = ("DefaultCPUAllocator", "out of memory", "ALLOC_FAILED", "Seems to be OOM")

Size = tuple[int, int, int]
Network = TypeVar("Network", bound=torch.nn.Module)


@dataclass(frozen=True)
class Extent:
    """How large an image file says that it is: voxels and millimetres of a voxel along its axes."""

    shape: tuple[int, ...]
    spacing_mm: tuple[float, ...]

    @property
    def voxels(self) -> int:
        """How many voxels there are."""
        return math.prod(self.shape)

    @property
    def volume_mm3(self) -> float:
        """The size of the field of view."""
        return self.voxels * math.prod(self.spacing_mm)


def announced(path: Path) -> Extent | None:
    """Reads how large a volume is, without its voxels; None for a damaged file, and for a folder of slices."""
    try:
        if path.name.lower().endswith((".nii", ".nii.gz")):
            image: Any = nibabel.load(path)
            return _checked(image.shape, np.linalg.norm(image.affine[:3, :3], axis=0))
        return _announced_itk(path)
    except _DAMAGED:
        return None  # the reader of the whole file says what is wrong with it


def _checked(shape: Sequence[int], spacing_mm: Sequence[float] | np.ndarray) -> Extent:
    spacing = tuple(map(float, spacing_mm))
    if not all(math.isfinite(each) and each > 0 for each in spacing):
        raise ValueError(f"spacing {spacing} mm must be positive")
    return Extent(tuple(map(int, shape)), spacing)


def _announced_itk(path: Path) -> Extent:
    import SimpleITK as sitk

    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    return _checked(reader.GetSize(), reader.GetSpacing()[:3])


def least_bytes(extent: Extent, experts: Iterable[tuple[Sequence[float], int]]) -> int:
    """Gives the memory that a volume needs at least.

    The volume is held all the time: at first with its normalised copy, then with the image of the expert's spacing,
    the mask of each structure and the weights of the windows.

    Args:
        extent: of the volume.
        experts: the spacing in mm of each expert that is asked, and for how many structures.
    """
    volume = extent.voxels * _FLOAT_BYTES
    images = [
        extent.volume_mm3 / math.prod(spacing_mm) * (2 + structures) * _FLOAT_BYTES
        for spacing_mm, structures in experts
    ]
    return volume + max(volume, int(max(images, default=0)))


def check_memory(extent: Extent | None, experts: Iterable[tuple[Sequence[float], int]]) -> None:
    """Refuses a volume that cannot fit, before anything of it is read.

    Raises:
        ValueError: it needs more memory than is free.
    """
    free = free_bytes()
    if extent is None or free is None:
        return
    least = least_bytes(extent, experts)
    if least > free:
        hand_back()
        free = free_bytes() or free
    if least > free:
        voxels = " x ".join(map(str, extent.shape))
        spacing = " x ".join(f"{each:g}" for each in extent.spacing_mm)
        raise ValueError(
            f"a volume of {voxels} voxels of {spacing} mm needs at least {least / 1e9:.1f} GB of memory for this, "
            f"but {free / 1e9:.1f} GB are free; crop it, or name fewer structures"
        )


def free_bytes() -> int | None:
    """Gives the main memory that a process may still take, of the machine or its container; None where unknown."""
    limits = [int(match) * 1024 for match in _numbers(Path(_MEMINFO), "MemAvailable:")]
    for limit, used, stat in _CGROUPS:
        try:
            most, now = int(Path(limit).read_text(encoding="ascii")), int(Path(used).read_text(encoding="ascii"))
        except (OSError, ValueError):  # no such cgroup, or its limit is "max"
            continue
        limits.append(most - now + sum(_numbers(Path(stat), "inactive_file")))  # the last is given up when needed
    return min(limits, default=None)


def _numbers(path: Path, name: str) -> Iterator[int]:
    try:
        lines = path.read_text(encoding="ascii").splitlines()
    except OSError:
        return
    for line in lines:
        words = line.split()
        if words[:1] == [name]:
            yield int(words[1])


def is_out_of_memory(error: BaseException) -> bool:
    """Says whether an error is that memory ran out: that of a device, or the main memory."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _OUT_OF_MEMORY)


def on_cpu(network: Network) -> Network:
    """Gives a copy in main memory of a network that stays where it is."""
    tensors = (*network.parameters(), *network.buffers())
    moved = {id(tensor): torch.nn.Parameter(tensor.detach().cpu(), requires_grad=False) for tensor in tensors}
    return copy.deepcopy(network, moved)  # which copies none of what it finds there


def halved(window: Size, stride: int) -> Size:
    """Gives the window of half the lengths, multiples of a network's stride and at least that."""
    x, y, z = (max(stride, length // 2 // stride * stride) for length in window)
    return x, y, z


def attempts(device: torch.device, window: Size, stride: int) -> list[tuple[torch.device, Size]]:
    """Lists where and in which windows to compute, one after the other for as long as memory runs out."""
    devices = dict.fromkeys((device, torch.device("cpu")))
    sizes = dict.fromkeys((window, halved(window, stride)))
    return [(where, size) for where in devices for size in sizes]
