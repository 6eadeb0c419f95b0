"""Checkpoints that others saved with torch: read as plain tensors, mapped into memory, nothing in them executed."""

import re
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

PICKLE_LIMIT_BYTES = 64 * 1024**2
"""Most that the index of a checkpoint may take; that of SAT-Pro with its optimizer takes less than one MiB."""
AGAIN = "give the file as its makers publish it, or download it again"
"""The way out of a file that is not as it should be."""


def read_checkpoint(path: Path) -> dict[Any, Any]:
    """Read the dictionary that ``torch.save`` wrote; its tensors stay in the file until they are used.

    Raises:
        ValueError: there is no such file, it is no checkpoint, it is damaged, or it asks to run code.
    """
    _check_archive(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of old or odd pickles torch warns, and what it makes of them is checked
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # what torch raises for damaged files is of many types
        asked = re.search(r"GLOBAL ([\w.]+)", str(error))
        if asked:
            message = (
                f"{path} asks to run {asked[1][:80]}; nothing of it was run: a checkpoint holds plain tensors, {AGAIN}"
            )
            raise ValueError(message) from error
        raise ValueError(f"checkpoint {path} can't be read ({type(error).__name__}); {AGAIN}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, a checkpoint holds a dictionary; {AGAIN}")
    return content


def checked_tensors(
    found: Mapping[Any, Any], shapes: Mapping[str, Iterable[int]], path: Path, *, what: str
) -> dict[str, Tensor]:
    """Take exactly the tensors of these names and shapes, in this order.

    Args:
        found: of the checkpoint; stays as it is.
        shapes: by name.
        path: of the checkpoint.
        what: the file should be, named in errors.

    Raises:
        ValueError: naming the first tensor that is missing, differs, is too many, or is not what it claims.
    """
    wanted = {name: tuple(shape) for name, shape in shapes.items()}
    for name, shape in wanted.items():
        tensor = found.get(name)
        if not isinstance(tensor, Tensor):
            raise ValueError(f"{path} is no {what}: it lacks {name} {shape}; {AGAIN}")
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{path} is no {what}: {name} has shape {tuple(tensor.shape)}, not {shape}; {AGAIN}")
    extra = next((name for name in found if name not in wanted), None)
    if extra is not None:
        shape = tuple(getattr(found[extra], "shape", ()))
        raise ValueError(
            f"{path} is no {what}: it has {str(extra)[:80]!r} {shape}, which does not belong there; {AGAIN}"
        )
    own = {name: found[name] for name in wanted}
    check_numbers(own, path, what=what)
    return own


def check_numbers(found: Mapping[str, Tensor], path: Path, *, what: str) -> None:
    """Check that tensors are dense floating-point numbers, no more of them than the file has room for.

    A file of a few bytes can describe a tensor of any size, by strides of 0 or without data.

    Raises:
        ValueError: naming the first that is not.
    """
    room = path.stat().st_size
    for name, tensor in found.items():
        plain = tensor.layout == torch.strided and tensor.device.type == "cpu" and tensor.is_floating_point()
        if not plain or not tensor.is_contiguous():
            raise ValueError(f"{path} is no {what}: {name} is not made of plain floating-point numbers; {AGAIN}")
        room -= tensor.nbytes
        if room < 0:
            raise ValueError(f"{path} is no {what}: {name} claims more numbers than the file holds; {AGAIN}")


def _check_archive(path: Path) -> None:
    """Check that the file is a zip as torch writes it: nothing packed, so that it can't grow when it is read."""
    if path.is_dir():
        raise ValueError(f"{path} is a folder; name the checkpoint in it")
    try:
        size = path.stat().st_size
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except OSError as error:
        raise ValueError(f"checkpoint {path} can't be read ({error.strerror}); check the path") from error
    except (zipfile.BadZipFile, ValueError, RuntimeError) as error:
        raise ValueError(
            f"{path} is no checkpoint of torch 1.6 or newer, or not all of it is there ({size:,} bytes); {AGAIN}"
        ) from error
    packed = next((entry for entry in entries if entry.compress_type != zipfile.ZIP_STORED), None)
    if packed is not None:
        raise ValueError(f"{packed.filename[:80]!r} in {path} is packed, which torch never does; {AGAIN}")
    index = sum(entry.file_size for entry in entries if entry.filename.endswith(".pkl"))
    if sum(entry.file_size for entry in entries) > size or index > PICKLE_LIMIT_BYTES:
        raise ValueError(f"{path} says of itself that it is larger than it is, or has an index too large; {AGAIN}")
