"""The state of an unfinished run: written whole or not at all, read without executing anything."""

import os
from pathlib import Path
from typing import Any

import torch


def save_checkpoint(state: dict[str, Any], path: Path) -> None:
    """Write a state beside its place, flush it to the disk and move it there in one step.

    What a process leaves that is killed meanwhile, the next one overwrites.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.draft")
    try:
        with open(draft, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def load_checkpoint(path: Path) -> dict[str, Any] | None:
    """Read a state; None where there is none.

    Raises:
        ValueError: the file is no checkpoint.
    """
    if not path.exists():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(state, dict):
            raise TypeError(f"it holds a {type(state).__name__}")
    except OSError:
        raise
    except Exception as error:  # damaged bytes make the unpickler raise nearly anything
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise ValueError(f"checkpoint {path} can't be read ({reason}); remove it to start this run anew") from error
    return state
