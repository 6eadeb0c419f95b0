"""Pins: which revision of a department is served in place of the newest. They stand in a file of the store."""

from pathlib import Path

from filelock import FileLock

from lorkd_monailabel.json_files import read_json, write_json

PINS = "pins.json"


def pinned(folder: Path, department: str) -> int | None:
    """Give the pinned revision of a department; None where there is none.

    Raises:
        ValueError: the file is damaged: what is served must not change because of that.
    """
    path = folder / PINS
    revision = read_json(path).get(department)
    if revision is not None and type(revision) is not int:
        raise ValueError(f"{path} has {str(revision)[:40]!r} for {department}, which is no revision; pin it anew")
    return revision


def write_pin(folder: Path, department: str, revision: int | None) -> None:
    """Pin a revision, or none."""
    with FileLock(folder / f".{PINS}.lock"):
        pins = {name: number for name, number in read_json(folder / PINS).items() if name != department}
        write_json(folder / PINS, pins if revision is None else {**pins, department: revision})
