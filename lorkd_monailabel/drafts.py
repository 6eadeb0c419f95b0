"""Files that are written whole or not at all: beside their place at first, moved there in one step at the end."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from isal import igzip

DRAFT = ".draft-"
"""What names of drafts begin with; those of a process that was killed are swept up by their age."""


@contextmanager
def draft_of(path: Path, *, over: bool = True, flush: bool = True, suffix: str = "") -> Iterator[Path]:
    """Give a path to write to; what is there at the end of the block takes the place of another path.

    Args:
        path: its folder is made; what stands there stays if the block fails.
        over: whether it gives way.
        flush: bring the file to the disk first; what is written many times a minute can do without.
        suffix: of the draft, for writers that choose a file's form by its name.

    Raises:
        FileExistsError: something stands there that does not give way.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{DRAFT}{uuid.uuid4().hex}{suffix}")
    try:
        yield draft
        if flush:
            with draft.open("rb+") as file:
                os.fsync(file.fileno())
        if over:
            os.replace(draft, path)
        else:
            os.link(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def write_whole(path: Path, text: str, *, flush: bool = True) -> None:
    """Write a text file through a draft."""
    with draft_of(path, flush=flush) as draft:
        draft.write_text(text, encoding="utf-8", newline="")


def packed(file: BinaryIO) -> igzip.IGzipFile:
    """Give a gzip stream into an open file: by ISA-L, as zlib takes ten times as long, and the same bytes each time."""
    return igzip.IGzipFile("", "wb", fileobj=file, mtime=0)
