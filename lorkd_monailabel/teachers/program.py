"""A TorchScript (``.ts``) or an exported program (``.pt2``) as a teacher, with a JSON file beside it.

**Both run the graph that they contain**: of TorchScript that is a language of its own, which can write files; so use
programs of those whom you trust. What we do refuse is more than a graph: an exported program with pickles, libraries or
calls of Python (see ``exported``), and archives that are no plain ones (see ``archives``). Nothing is run before that.

The JSON file, ``liver.pt2.json`` for ``liver.pt2``, says what the network expects and gives; see ``channels``.
"""

import json
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lorkd_monailabel.teachers.archives import archive_entries
from lorkd_monailabel.teachers.channels import ChannelTeacher, channels_of
from lorkd_monailabel.teachers.exported import check_exported

ENDINGS = (".ts", ".pt2")
MOST_JSON_BYTES = 4 * 1024**2


class ProgramTeacher(ChannelTeacher):
    """A TorchScript or an exported program and its JSON file.

    Args:
        path: of the program.
        intensities: that the students see.

    Raises:
        ValueError: program or JSON can't be read, or it needs what the students don't see.
    """

    def __init__(self, path: Path, *, intensities: str = "fixed") -> None:
        beside = json_beside(path)
        channels = channels_of(read_json(beside), str(beside))
        super().__init__(load_program(path), channels, name=str(path), intensities=intensities)


def json_beside(path: Path) -> Path:
    """Give the JSON file beside a teacher: its name with ``.json`` after it."""
    return path.with_name(f"{path.name}.json")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        ValueError: it is missing, large, or no JSON object.
    """
    try:
        if path.stat().st_size > MOST_JSON_BYTES:
            raise ValueError(f"it has more than {MOST_JSON_BYTES:,} bytes")
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} can't be read ({error}); write what the teacher expects there") from error
    if not isinstance(record, dict):
        raise ValueError(f"{path} holds no JSON object; write what the teacher expects there")
    return record


def load_program(path: Path) -> Callable[[Tensor], Any]:
    """Load a program, for the CPU, after the checks that the top of this file names.

    Raises:
        ValueError: it is missing, damaged, or more than a graph.
    """
    archive_entries(path)
    if path.suffix == ".pt2":
        check_exported(path)
        try:
            # Guards are Python source in the file; without them a patch of a wrong size fails in an operator instead.
            return torch.export.load(path).module(check_guards=False)
        except Exception as error:  # what torch raises for damaged files is of many types
            raise ValueError(
                f"{path} is no exported program of this torch ({_first(error)}); export it anew"
            ) from error
    with zipfile.ZipFile(path) as archive:
        if not any("/code/" in name for name in archive.namelist()):
            raise ValueError(f"{path} is no TorchScript, for it has no code; save it by torch.jit.save")
    with warnings.catch_warnings():
        # torch 2.10 and later advise torch.export where TorchScript is made or loaded; bundles still bring it.
        warnings.filterwarnings("ignore", message="`torch.jit", category=DeprecationWarning)
        try:
            return torch.jit.load(str(path), map_location="cpu").eval()
        except RuntimeError as error:
            raise ValueError(f"{path} is no TorchScript that can be read ({_first(error)}); save it anew") from error


def _first(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:120]}" if lines else type(error).__name__
