"""Options that several commands share, and what stands behind them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from lorkd_monailabel import shipped

if TYPE_CHECKING:
    from lorkd_monailabel.store import ExpertStore

Subparsers: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

APP = Path(__file__).resolve().parents[1]
SERVERS_STORE = APP / "model" / "store"
"""Where a server keeps its store that was told none: at first a copy of the shipped one."""


def add_store(parser: argparse.ArgumentParser) -> None:
    """Add ``--store``."""
    parser.add_argument(
        "--store", type=Path, metavar="FOLDER", help="folder of bases and experts (default: the shipped store)"
    )


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add ``--device``."""
    parser.add_argument("--device", help="torch device, such as cuda:1 (default: cuda where there is one, else cpu)")


def opened_store(folder: Path | None) -> ExpertStore:
    """Open the store that was named, else the shipped one.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    from lorkd_monailabel.store import ExpertStore

    return ExpertStore(store_folder(folder))


def store_folder(folder: Path | None) -> Path:
    """Give the folder that was named, else that of the shipped store.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    if folder is None:
        if not shipped.STORE.is_dir():
            raise FileNotFoundError(f"no store is shipped at {shipped.STORE}; name one with --store FOLDER")
        return shipped.STORE
    if not folder.is_dir():
        raise FileNotFoundError(f"store {folder} is not a folder that exists; check --store")
    return folder


def check_free(path: Path, *, force: bool) -> None:
    """Check, before the work, that a file may be written.

    Raises:
        OSError: its folder does not exist, or the path is taken.
    """
    if not path.parent.is_dir():
        raise FileNotFoundError(f"folder {path.parent} of {path.name} does not exist; make it first")
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; name a file in it")
    if path.exists() and not force:
        raise FileExistsError(f"{path} exists already; name another file with --output, or overwrite it with --force")
