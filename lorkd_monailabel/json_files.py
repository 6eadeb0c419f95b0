"""Small JSON files that other processes read while this one writes, or that a sudden end must leave whole."""

import json
from pathlib import Path
from typing import Any

from lorkd_monailabel.drafts import write_whole


def write_json(path: Path, value: Any, *, flush: bool = True) -> None:
    """Write a file so that whoever reads it finds the old content or the new one.

    Args:
        path: of the file; its folder is made.
        value: anything that JSON holds.
        flush: bring it to the disk before its place; what is written many times a minute can do without.
    """
    write_whole(path, json.dumps(value, indent=1), flush=flush)


def read_json(path: Path) -> dict[str, Any]:
    """Read an object; empty where there is no file.

    Raises:
        ValueError: the file is damaged.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} can't be read ({error}); restore it from a backup or remove it") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no object; restore it from a backup or remove it")
    return content
