"""New folders, written whole or not at all."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Give a draft to write in, which becomes the folder when the block ends without an error, else is removed.

    Raises:
        FileExistsError: the path is taken.
        FileNotFoundError: its parent does not exist.
    """
    check_new(path)
    draft = Path(tempfile.mkdtemp(dir=path.parent, prefix=".draft-"))
    try:
        yield draft
        for each in (draft, *draft.rglob("*")):
            os.chmod(each, 0o755 if each.is_dir() else 0o644)
            _sync(each)
        try:
            path.mkdir()  # whoever makes it first has it; an empty folder gives way to one that is renamed
        except FileExistsError as error:
            raise _taken(path) from error
        try:
            os.replace(draft, path)
        except OSError:
            path.rmdir()
            raise
        _sync(path.parent)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def check_new(path: Path) -> None:
    """Check that a folder can be made there.

    Raises:
        FileExistsError: the path is taken.
        FileNotFoundError: its parent does not exist.
    """
    if not path.parent.is_dir():
        raise FileNotFoundError(f"folder {path.parent} of {path.name} does not exist; make it first")
    if path.exists() or path.is_symlink():
        raise _taken(path)


def _taken(path: Path) -> FileExistsError:
    return FileExistsError(f"{path} exists already; an export goes into a new folder, name another one")


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
