"""The volume that was read last, kept for the next request: who looks at an image asks about it more than once.

It is read ahead where a client has just been given an image, or has sent one: while somebody looks at it.
"""

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path
from typing import cast

from lorkd_monailabel.memory import announced
from lorkd_monailabel.volumes import Modality, Volume, read_volume

KEPT_BYTES = 512 * 1024**2
"""Size of the array of the largest volume that is kept."""

_LOG = logging.getLogger(__name__)
_Key = tuple[object, ...]


class LastVolume:
    """Reads volumes and keeps the last one for as long as its file stays what it was, and memory suffices."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: tuple[_Key, Volume] | None = None
        self._reader = ThreadPoolExecutor(1, "read ahead")
        self._coming: tuple[Path, Future[None]] | None = None

    def ahead(self, path: Path, check: Callable[[], None]) -> None:
        """Begin to read a volume that will be asked for, unless another one is being read, or it would not be kept.

        Args:
            path: see ``read``.
            check: see ``read``.
        """
        with self._lock:
            if self._coming is None or self._coming[1].done():
                self._coming = path, self._reader.submit(self._try, path, check)

    def read(self, path: Path, modality: str, check: Callable[[], None]) -> Volume:
        """Give the volume at a path, whose array is not to be changed.

        Args:
            path: see ``volumes.read_volume``.
            modality: see there.
            check: raises a ValueError where memory is too little; asked when no other volume is kept, and before this
                one is read.

        Raises:
            FileNotFoundError: there is nothing at the path.
            ValueError: the check said so twice, or see ``read_volume``.
        """
        with self._lock:
            coming = self._coming
        if coming is not None and coming[0] == path:
            wait([coming[1]])
        volume = self._read(path, check)
        return volume if modality == "auto" else replace(volume, modality=cast("Modality", modality))

    def _try(self, path: Path, check: Callable[[], None]) -> None:
        try:
            extent = announced(path)
            if extent is None or extent.voxels <= KEPT_BYTES:  # a voxel has a byte at least
                self._read(path, check)
        except (ValueError, OSError, MemoryError):
            _LOG.debug("an image could not be read ahead; the request for it will say why", exc_info=True)

    def _read(self, path: Path, check: Callable[[], None]) -> Volume:
        key = (path, *_state(path))  # before it is read: what changes meanwhile is read again
        volume = self._give(key)
        try:
            check()
        except ValueError:
            if volume is None:
                raise
            volume = self._give(None)
            check()
        if volume is None:
            volume = read_volume(path)
            if volume.array.nbytes <= KEPT_BYTES:
                with self._lock:
                    self._kept = key, volume
        return volume

    def _give(self, key: _Key | None) -> Volume | None:
        """Give the volume that is kept if it is the one; another is given up."""
        with self._lock:
            if self._kept is not None and self._kept[0] != key:
                self._kept = None
            return self._kept[1] if self._kept else None


def _state(path: Path) -> _Key:
    """What changes when a file does, or one of the files of a folder."""
    try:
        files = sorted(path.iterdir()) if path.is_dir() else [path]
        found = [(file.name, file.stat()) for file in files]
    except OSError:
        return (object(),)  # like nothing; the reader says what is wrong
    return tuple((name, each.st_ino, each.st_size, each.st_mtime_ns) for name, each in found)
