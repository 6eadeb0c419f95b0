"""Volumes that a converter has to write: masks that may overlap -> one label volume, and files that are whole."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

import nibabel
import numpy as np

Box = tuple[slice, slice, slice]

MOST_VALUES = 32767
"""Largest value that a label volume may have: prepared cases keep int16."""
_UNSAFE = re.compile(r"[^\w.-]+")


def merged(
    masks: Iterable[tuple[str, Box, np.ndarray]], shape: tuple[int, int, int]
) -> tuple[np.ndarray, dict[str, tuple[int, ...]]]:
    """Merge masks into one label volume without a loss: each set of structures that share a voxel has its own value.

    Args:
        masks: name, where it lies, and the boolean array of that size.
        shape: ``(X, Y, Z)`` of the volume.

    Returns:
        Values ``(X, Y, Z)`` int16, 0 where there is no mask; name -> its values, at least one, which no voxel has where
        the mask is empty.

    Raises:
        ValueError: a mask does not fit, or there are more sets than int16 has values.
    """
    labels = np.zeros(shape, dtype=np.int32)
    sets: list[frozenset[str]] = [frozenset()]
    values: dict[frozenset[str], int] = {frozenset(): 0}
    names: list[str] = []
    for name, box, mask in masks:
        names.append(name)
        part = labels[box]
        if part.shape != mask.shape:
            raise ValueError(f"the mask of {name!r} has shape {mask.shape}, its place {part.shape}; make it anew")
        for old in np.unique(part[mask]):
            own = sets[old] | {name}
            if own not in values:
                values[own] = len(sets)
                sets.append(own)
            part[mask & (part == old)] = -values[own]  # below 0, so that no voxel is met again under its new value
        np.abs(part, out=part)
    used = [int(value) for value in np.unique(labels) if value]
    if len(used) + len(names) > MOST_VALUES:
        raise ValueError(f"{len(names)} masks overlap in {len(used)} ways, at most {MOST_VALUES} fit; leave some out")
    compact = np.zeros(len(sets), dtype=np.int16)
    compact[used] = np.arange(1, len(used) + 1)
    own_values = {name: tuple(int(compact[value]) for value in used if name in sets[value]) for name in names}
    empty = [name for name, own in own_values.items() if not own]
    own_values.update({name: (len(used) + number,) for number, name in enumerate(empty, start=1)})
    return compact[labels], own_values


def save(array: np.ndarray, affine: np.ndarray, path: Path) -> None:
    """Write a NIfTI file, whole on the disk when this returns.

    Raises:
        OSError: it can't be written, or another case has a file of this name.
    """
    if path.exists():
        raise FileExistsError(f"{path.name} would be written twice; convert the cases with such names apart")
    image = nibabel.Nifti1Image(array, affine)
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1)
    nibabel.save(image, path)
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def file_name(*parts: str) -> str:
    """Make a file's name of what may hold slashes or spaces."""
    return "_".join(_UNSAFE.sub("-", part).strip("-.") for part in parts if part)
