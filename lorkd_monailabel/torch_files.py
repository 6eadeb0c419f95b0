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
_AGAIN = "give the file as its makers publish it, or download it again"


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
                f"{path} asks to run {asked[1][:80]}; nothing of it was run: a checkpoint holds plain tensors, {_AGAIN}"
            )
            raise ValueError(message) from error
        raise ValueError(f"checkpoint {path} can't be read ({type(error).__name__}); {_AGAIN}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, a checkpoint holds a dictionary; {_AGAIN}")
    return content


def checked_tensors(
    found: Mapping[Any, Any], shapes: Mapping[str, Iterable[int]], path: Path, *, what: str
) -> dict[str, Tensor]:
    """Take exactly the tensors of these names and shapes, in this order, as float32.

    A file of a few bytes can describe a tensor of any size, by strides of 0 or without data: such ones are refused.

    Args:
        found: of the checkpoint; stays as it is.
        shapes: by key.
        path: of the checkpoint.
        what: the file should be, named in errors.

    Raises:
        ValueError: naming the first key that is missing, differs, or is too many.
    """
    wanted = {name: tuple(shape) for name, shape in shapes.items()}
    room = path.stat().st_size
    for name, shape in wanted.items():
        tensor = found.get(name)
        if not isinstance(tensor, Tensor):
            raise ValueError(f"{path} is no {what}: it lacks {name}; {_AGAIN}")
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{path} is no {what}: {name} is {tuple(tensor.shape)}, expected {shape}; {_AGAIN}")
        dense = tensor.layout == torch.strided and tensor.device.type == "cpu" and tensor.is_contiguous()
        if not (dense and tensor.is_floating_point()):
            raise ValueError(f"{path} is no {what}: {name} is not made of plain floating-point numbers; {_AGAIN}")
        room -= tensor.nbytes
        if room < 0:
            raise ValueError(f"{path} is no {what}: {name} claims more numbers than the file holds; {_AGAIN}")
    extra = next((name for name in found if name not in wanted), None)
    if extra is not None:
        raise ValueError(f"{path} is no {what}: it has {str(extra)[:80]!r} besides what belongs there; {_AGAIN}")
    return {name: found[name].float() for name in wanted}


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
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise ValueError(
            f"{path} is no checkpoint of torch 1.6 or newer, or not all of it is there ({size:,} bytes); {_AGAIN}"
        ) from error
    packed = next((entry for entry in entries if entry.compress_type != zipfile.ZIP_STORED), None)
    if packed is not None:
        raise ValueError(f"{packed.filename[:80]!r} in {path} is packed, which torch never does; {_AGAIN}")
    index = sum(entry.file_size for entry in entries if entry.filename.endswith(".pkl"))
    if sum(entry.file_size for entry in entries) > size or index > PICKLE_LIMIT_BYTES:
        raise ValueError(f"{path} says of itself that it is larger than it is, or has an index too large; {_AGAIN}")
