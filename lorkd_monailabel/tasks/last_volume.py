"""The volume that was read last, kept for the next request: who looks at an image asks about it more than once."""

import threading
from collections.abc import Callable
from pathlib import Path

from lorkd_monailabel.volumes import Volume, read_volume

KEPT_BYTES = 512 * 1024**2
"""Size of the array of the largest volume that is kept."""

_Key = tuple[object, ...]


class LastVolume:
    """Reads volumes and keeps the last one for as long as its file stays what it was, and memory suffices."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: tuple[_Key, Volume] | None = None

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
        key = (path, modality, *_state(path))  # before it is read: what changes meanwhile is read again
        volume = self._give(key)
        try:
            check()
        except ValueError:
            if volume is None:
                raise
            volume = self._give(None)
            check()
        if volume is None:
            volume = read_volume(path, modality)
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
