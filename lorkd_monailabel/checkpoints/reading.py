"""The state of a checkpoint: its tensors by names without wrappers, checked before anything uses them.

Tensors stay in the file, mapped into memory, until they are used.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

from torch import Tensor

from lorkd_monailabel.torch_files import AGAIN, read_checkpoint

WRAPPERS = ("model.module.", "module.", "model.")
"""Prefixes that training wrappers put before every name; the longest is taken off."""


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


def without(found: Mapping[str, Tensor], *prefixes: str) -> Iterator[tuple[str, Tensor]]:
    """Leave out the tensors whose names begin with one of the prefixes."""
    return ((name, tensor) for name, tensor in found.items() if not name.startswith(prefixes))
