"""Audit log: who changed what, and when, as lines of JSON. It names no patient.

An image stands there as a reference, a keyed hash of its id: who has the key (the file beside the log) and the id can
find the lines of an image, nobody else can tell which image a line is about.
"""

import errno
import hashlib
import hmac
import json
import os
import secrets
import threading
import time
from collections import deque
from pathlib import Path
from typing import Any


class Audit:
    """The log of a server; every process that appends to it writes whole lines.

    Args:
        path: of the log; ``.key`` beside it holds the key of the references. Both are made at the first use.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._key: bytes | None = None
        self._lock = threading.Lock()

    def record(self, action: str, *, user: str = "", client: str = "", image: str = "", **what: Any) -> None:
        """Append a line.

        Args:
            action: what was done, such as ``publish`` or ``PUT /datastore/label``.
            user: whose token it was.
            client: id that the client gives itself.
            image: id of the image concerned, of which the reference alone is written.
            what: more that is worth knowing, as JSON; nothing that names a patient.

        Raises:
            OSError: the log can't be written.
        """
        line = {"time": _now(), "user": user, "client": client, "action": action}
        if image:
            line["image"] = self.reference(image)
        text = json.dumps({**line, **what}, ensure_ascii=True).encode() + b"\n"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        number = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            end = os.fstat(number).st_size
            if end and os.pread(number, 1, end - 1) != b"\n":  # a torn line, which must not take this one with it
                text = b"\n" + text
            if os.write(number, text) < len(text):
                raise OSError(errno.ENOSPC, "no space is left for a line of the audit log", str(self.path))
        finally:
            os.close(number)

    def reference(self, image: str) -> str:
        """Give what stands for an image in this log.

        Raises:
            OSError: the key can't be read or made.
        """
        return hmac.new(self._own_key(), image.encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()[:16]

    def lines(self, limit: int = 100, *, image: str = "") -> list[dict[str, Any]]:
        """Give the newest lines, the newest last; those about one image, if one is named. A torn line is left out."""
        if not self.path.exists():
            return []
        wanted = self.reference(image) if image else None
        found: deque[dict[str, Any]] = deque(maxlen=limit)
        with self.path.open(encoding="utf-8", errors="replace") as file:
            for text in file:
                try:
                    line = json.loads(text)
                except ValueError:  # a process was killed while it wrote
                    continue
                if wanted in (None, line.get("image")):
                    found.append(line)
        return list(found)

    def _own_key(self) -> bytes:
        with self._lock:
            if self._key is None:
                path = self.path.with_suffix(".key")
                path.parent.mkdir(parents=True, exist_ok=True)
                draft = path.with_name(f".{path.name}-{secrets.token_hex(8)}")
                try:
                    number = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
                    with os.fdopen(number, "wb") as file:
                        file.write(secrets.token_bytes(32))
                    os.link(draft, path)  # fails where another process was first
                except FileExistsError:
                    pass
                finally:
                    draft.unlink(missing_ok=True)
                self._key = path.read_bytes()
            return self._key


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
