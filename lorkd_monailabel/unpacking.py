"""Unpacking: the voxels of a NIfTI file, which is mostly a .nii.gz and then takes longer to unpack than all else."""

import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import rapidgzip
import torch
from isal import igzip
from nibabel.arrayproxy import ArrayProxy

KEPT = (np.dtype(np.int8), np.dtype(np.uint8), np.dtype(np.int16))
"""Types of voxels that are not made float32; uint16 is not among them, as torch can do little with it."""

_LOG = logging.getLogger(__name__)
_CHUNK_BYTES = 1 << 20
_MUCH_BYTES = 16 << 20
_UNPACKING_CORES = 4  # each holds some 20 MiB, of a file that was made to harm up to 150


def voxels(held: ArrayProxy, path: Path) -> np.ndarray:
    """Reads an image's voxels, scl_slope and scl_inter applied.

    ISA-L unpacks in half of nibabel's time. Where there is much to unpack, rapidgzip uses several cores; whatever it
    does not like is left to ISA-L, which says better what is wrong, if anything is. So is a file that holds more than
    its image: rapidgzip unpacks ahead, whatever comes there.
    """
    if path.suffix.lower() != ".gz":
        return _narrow(held)
    shape_and_place = held.shape, held.dtype, held.offset, held.slope, held.inter
    cores = min(torch.get_num_threads(), _UNPACKING_CORES)
    if cores > 1 and _MUCH_BYTES <= path.stat().st_size <= math.prod(held.shape) * held.dtype.itemsize:
        try:
            with rapidgzip.open(str(path), parallelization=cores) as unpacked:
                return _narrow(ArrayProxy(unpacked, shape_and_place, mmap=False))
        except (ValueError, RuntimeError, OSError, MemoryError) as error:  # one core needs less memory, too
            _LOG.info("%s is unpacked on one core: %s", path, error)
    with _Unpacking(str(path), "rb") as unpacked:
        return _narrow(ArrayProxy(unpacked, shape_and_place, mmap=False))


class _Unpacking(igzip.IGzipFile):
    """A gzip file that is unpacked where it is wanted; what it comes from makes a second volume of it, and copies."""

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer as far as the file goes; returns the bytes."""
        view, at = memoryview(buffer).cast("B"), 0
        while chunk := self.read(min(_CHUNK_BYTES, len(view) - at)):
            view[at : at + len(chunk)] = chunk
            at += len(chunk)
        return at


def _narrow(held: ArrayProxy) -> np.ndarray:
    if (held.slope, held.inter) == (1, 0) and held.dtype.newbyteorder("=") in KEPT:
        return np.asarray(held).astype(held.dtype.newbyteorder("="), copy=False)
    return np.asarray(held, dtype=np.float32)
