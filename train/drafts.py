"""Files that are written whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def draft_of(path: Path) -> Iterator[BinaryIO]:
    """Open a draft beside a file; at the end it is flushed to the disk and takes the file's place in one step.

    Args:
        path: its folder is made if it is missing; what stands there stays if the block fails.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(draft, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def write_whole(path: Path, text: str) -> None:
    """Write a text file through a draft."""
    with draft_of(path) as draft:
        draft.write(text.encode())
