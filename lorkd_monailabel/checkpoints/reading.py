"""The state of a checkpoint: its tensors by names without wrappers, checked before anything uses them.

Tensors stay in the file, mapped into memory, until they are used.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from lorkd_monailabel.torch_files import read_checkpoint

WRAPPERS = ("model.module.", "module.", "model.")
"""Prefixes that training wrappers put before every name; the longest is taken off."""
AGAIN = "give the file as its makers publish it, or download it again"


def read_state(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a checkpoint, of its ``model_state_dict`` where it has one.

    Raises:
        ValueError: there is no such file, it is damaged, asks to run code, or is no state of a network.
    """
    content = read_checkpoint(path)
    state = content.get("model_state_dict", content)
    if not isinstance(state, dict) or not state:
        raise ValueError(f"{path} holds no state of a network; {AGAIN}")
    found: dict[str, Tensor] = {}
    for key, tensor in state.items():
        if not isinstance(key, str):
            raise ValueError(f"{path} has a {type(key).__name__} in place of a tensor's name; {AGAIN}")
        if not isinstance(tensor, Tensor):
            raise ValueError(f"{key[:80]!r} in {path} is of type {type(tensor).__name__}, not a tensor; {AGAIN}")
        name = key.removeprefix(next((prefix for prefix in WRAPPERS if key.startswith(prefix)), ""))
        if name in found:
            raise ValueError(f"{name!r} stands in {path} twice, with and without a prefix; {AGAIN}")
        found[name] = tensor.detach()
    return found


def check_state(found: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]], path: Path, *, what: str) -> None:
    """Check that a state has exactly these names and shapes, in plain numbers that the file really holds.

    Args:
        found: what was read.
        shapes: by name, in the order in which they are looked at.
        path: named in errors.
        what: the file should be, named in errors.

    Raises:
        ValueError: naming the first that differs, with both shapes.
    """
    for name, shape in shapes.items():
        tensor = found.get(name)
        if tensor is None:
            raise ValueError(f"{path} is no {what}: it lacks {name} {tuple(shape)}; {AGAIN}")
        if tuple(tensor.shape) != tuple(shape):
            raise ValueError(
                f"{path} is no {what}: {name} has shape {tuple(tensor.shape)}, not {tuple(shape)}; {AGAIN}"
            )
    extra = next((name for name in found if name not in shapes), None)
    if extra is not None:
        shape = tuple(found[extra].shape)
        raise ValueError(f"{path} is no {what}: it has {extra[:80]!r} {shape}, which does not belong there; {AGAIN}")
    check_numbers(found, path, what=what)


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


def without(found: Mapping[str, Tensor], *prefixes: str) -> Iterator[tuple[str, Tensor]]:
    """Leave out the tensors whose names begin with one of the prefixes."""
    return ((name, tensor) for name, tensor in found.items() if not name.startswith(prefixes))
