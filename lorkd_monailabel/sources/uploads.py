"""Volumes that clients send ahead of their requests, kept by the hash of their content until nobody has used them."""

import hashlib
import os
import re
import threading
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

KINDS = (".nii.gz", ".nii", ".nrrd", ".mha")
_HASH = re.compile(r"[0-9a-f]{64}")
_DRAFT = ".draft-"
_DRAFT_SECONDS = 3600.0


@dataclass(frozen=True)
class Kept:
    """A volume that is kept: its file, the SHA-256 of its content, its size, and when it goes unless it is used."""

    path: Path
    sha256: str
    bytes: int
    expires: int


class TooLarge(ValueError):
    """A volume is larger than is taken."""


class Uploads:
    """Volumes in a folder, each in a file named by its content; the folder alone says what there is.

    Each use puts its end off. Over the budgets, what was not used for longest goes.

    Args:
        folder: for the files; made when the first comes.
        expiry_s: seconds after its last use that a volume is kept.
        most_bytes: of all of them.
        most_files: of them.
        largest_bytes: of one.
    """

    def __init__(
        self,
        folder: Path,
        *,
        expiry_s: float = 3600.0,
        most_bytes: int = 16 << 30,
        most_files: int = 100,
        largest_bytes: int = 4 << 30,
    ) -> None:
        self.folder = folder
        self.expiry_s = expiry_s
        self.most_bytes = most_bytes
        self.most_files = most_files
        self.largest_bytes = min(largest_bytes, most_bytes)
        self._lock = threading.Lock()
        self._next: threading.Timer | None = None

    def tidy(self) -> None:
        """Removes what is over time or budget, now and whenever the next volume is."""
        with self._lock:
            self._tidy()

    def get(self, sha256: str) -> Kept:
        """Says what is kept under a hash, and puts its end off.

        Raises:
            FileNotFoundError: nothing is, or not any more.
            ValueError: the hash is none.
        """
        return self._about(self.path(sha256))

    def path(self, sha256: str) -> Path:
        """Gives the file of a volume and puts its end off. See ``get`` for errors."""
        if not isinstance(sha256, str) or not _HASH.fullmatch(sha256):
            raise ValueError(f"volume {str(sha256)[:80]!r} must be a SHA-256, 64 digits 0-9 a-f; send the volume first")
        with self._lock:
            self._tidy()
            for kind in KINDS:
                path = self.folder / f"{sha256}{kind}"
                if path.exists():
                    os.utime(path)
                    return path
        raise FileNotFoundError(f"volume {sha256[:12]}… is not here, or not any more; send it again")

    def _about(self, path: Path) -> Kept:
        found = path.stat()
        return Kept(path, path.name.partition(".")[0], found.st_size, int(found.st_mtime + self.expiry_s))

    def _tidy(self) -> None:
        """The same, with the lock held; drafts of processes that ended go too."""
        now, files = time.time(), []
        for path in list(self.folder.iterdir()) if self.folder.is_dir() else ():
            with suppress(FileNotFoundError):  # another server on the same folder was quicker
                found = path.stat()
                age = now - found.st_mtime
                draft = path.name.startswith(_DRAFT)
                if age > (_DRAFT_SECONDS if draft else self.expiry_s):
                    path.unlink()
                elif not draft:
                    files.append((found.st_mtime, found.st_size, path))
        files.sort(reverse=True)
        total = 0
        for number, (_, size, path) in enumerate(files, start=1):
            total += size
            if number > self.most_files or total > self.most_bytes:
                path.unlink(missing_ok=True)
        waiting = self._next is not None and self._next.is_alive() and self._next is not threading.current_thread()
        if files and not waiting:
            self._next = threading.Timer(max(1.0, files[-1][0] + self.expiry_s - now), self.tidy)
            self._next.daemon = True
            self._next.start()

    def _keep(self, draft: Path, name: str) -> Kept:
        with self._lock:
            os.replace(draft, self.folder / name)
            about = self._about(self.folder / name)
            self._tidy()
        return about


class Incoming:
    """A volume that is arriving, piece by piece; without ``keep`` nothing stays of it.

    Args:
        uploads: where it is to be kept.
        kind: the extension that its format has.

    Raises:
        ValueError: the kind is none of ``KINDS``.
    """

    def __init__(self, uploads: Uploads, kind: str) -> None:
        if kind not in KINDS:
            raise ValueError(f"extension {kind[:20]!r} must be one of {', '.join(KINDS)}; convert the volume first")
        self._uploads = uploads
        self._kind = kind
        uploads.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._draft = uploads.folder / f"{_DRAFT}{uuid.uuid4().hex}"
        self._file = self._draft.open("xb")
        self._hash = hashlib.sha256()
        self._size = 0

    def write(self, piece: bytes) -> None:
        """Takes the next piece.

        Raises:
            TooLarge: it is one too many.
        """
        self._size += len(piece)
        if self._size > self._uploads.largest_bytes:
            raise TooLarge(f"the volume has more than {self._uploads.largest_bytes} bytes; send a smaller one")
        self._hash.update(piece)
        self._file.write(piece)

    def keep(self) -> Kept:
        """Keeps what has arrived.

        Raises:
            ValueError: nothing has.
        """
        if not self._size:
            raise ValueError("the body is empty; send the volume's file as it is")
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._uploads._keep(self._draft, f"{self._hash.hexdigest()}{self._kind}")

    def close(self) -> None:
        """Removes what was not kept."""
        self._file.close()
        self._draft.unlink(missing_ok=True)


@lru_cache(maxsize=1)
def uploads() -> Uploads:
    """Gives the uploads of this server, beside the sessions of MONAI Label."""
    from monailabel.config import settings

    sessions = settings.MONAI_LABEL_SESSION_PATH.strip() or Path.home() / ".cache" / "monailabel" / "sessions"
    return Uploads(Path(sessions).absolute().with_name("volumes"), expiry_s=float(settings.MONAI_LABEL_SESSION_EXPIRY))


def with_volume(request: Mapping[str, Any]) -> dict[str, Any]:
    """Gives a request to infer; where it names a volume that was sent ahead, that is its image.

    Raises:
        FileNotFoundError: the volume is not here.
        ValueError: its name is no hash.
    """
    if request.get("volume") is None:
        return dict(request)
    return {**request, "image": str(uploads().path(request["volume"]))}
