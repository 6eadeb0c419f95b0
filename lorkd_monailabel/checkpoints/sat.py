"""SAT's checkpoints: read as weights of ours, and written so that SAT's own loader takes them.

SAT's U-Net registers every convolution and norm twice, as ``conv`` and ``norm`` and as ``all_modules.0`` and ``.1``, so
its files have 280 keys for SAT-Nano and 368 for SAT-Pro, and 12 more with heads for deep supervision, which only
training uses. The names of a layer's ``norm1`` are there too, though no layer applies it.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lorkd_monailabel.checkpoints.keys import (
    HEADS,
    SAT,
    TOKEN_STRIDE,
    empty_segmenter,
    network_numbers,
    reference_name,
)
from lorkd_monailabel.checkpoints.keys import reference_shapes as shapes_of
from lorkd_monailabel.checkpoints.reading import read_state, without
from lorkd_monailabel.drafts import draft_of
from lorkd_monailabel.torch_files import AGAIN, check_numbers, checked_tensors

WHAT = "checkpoint of SAT"
_ALIAS = re.compile(r"(.*)\.all_modules\.([01])\.(weight|bias)")
_ALIASED = re.compile(r"(.*)\.(conv|norm)\.(weight|bias)")
_MEMBERS = ("conv", "norm")
_DEEP_SUPERVISION = "mid_mask_embed_proj."
SCALES = 6
"""SAT appends the coarsest scale to its tokens without pooling, which fits six scales only."""


def read_sat(path: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read a checkpoint of SAT-Nano, SAT-Pro, SAT's largest (UNET-H), or of another network of their kind.

    Args:
        path: of a ``.pth`` file; names may have prefixes, aliases and heads for deep supervision may be there or not.

    Returns:
        Keyword numbers of ``build_segmenter`` and the weights by our names, mapped into memory.

    Raises:
        ValueError: it is none, with the first name that differs.
    """
    path = Path(path)
    found = read_state(path)
    state = {name: tensor for name, tensor in without(found, _DEEP_SUPERVISION) if not _ALIAS.fullmatch(name)}
    numbers = network_numbers(state, SAT, path, what=WHAT)
    segmenter = empty_segmenter(numbers, path, what=WHAT)
    checked_tensors(state, shapes_of(segmenter, SAT), path, what=WHAT)
    _check_aliases(found, state, path)
    return numbers, {name: state[reference_name(name, SAT)] for name in segmenter.state_dict()}


def sat_state(network: Mapping[str, Any], weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give the state dict that SAT's own loader takes: its names, prefix and aliases; tensors are not copied.

    Args:
        network: keyword numbers of ``build_segmenter``.
        weights: by our names, of a plain network.

    Raises:
        ValueError: the network is not of SAT's shape.
    """
    scales = len(network.get("widths", ()))
    heads, signed = network.get("heads", HEADS), bool(network.get("signed_masks"))
    if (scales, heads, signed) != (SCALES, HEADS, False) or network.get("token_stride") not in (None, TOKEN_STRIDE):
        raise ValueError(
            f"SAT's networks have {SCALES} scales, {HEADS} heads and mask embeddings that end in a GELU, this one has "
            f"{scales}, {heads} and signed_masks={signed}; only a network of their shape can become one"
        )
    state: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        key = reference_name(name, SAT)
        state[f"module.{key}"] = tensor
        match = _ALIASED.fullmatch(key)
        if match and key.startswith("backbone."):
            state[f"module.{match[1]}.all_modules.{_MEMBERS.index(match[2])}.{match[3]}"] = tensor
    return state


def write_sat(path: str | Path, network: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
    """Write a checkpoint for SAT's own loader, whole or not at all; never over another.

    Raises:
        ValueError: the network is not of SAT's shape.
        FileExistsError: the path is taken.
    """
    path = Path(path)
    content = {"model_state_dict": sat_state(network, weights)}
    with draft_of(path, over=False) as draft, draft.open("wb") as file:
        torch.save(content, file)


def _check_aliases(found: Mapping[str, Tensor], state: Mapping[str, Tensor], path: Path) -> None:
    """Check that what is there twice is the same: which of two would be meant, nobody could say."""
    aliases = {name: tensor for name, tensor in found.items() if _ALIAS.fullmatch(name)}
    for name, tensor in aliases.items():
        match = _ALIAS.fullmatch(name)
        own = state.get(f"{match[1]}.{_MEMBERS[int(match[2])]}.{match[3]}") if match else None
        if own is None or tensor.shape != own.shape or tensor.dtype != own.dtype:
            shape = None if own is None else tuple(own.shape)
            raise ValueError(f"{path} is no {WHAT}: {name} has shape {tuple(tensor.shape)}, not {shape}; {AGAIN}")
        if tensor.data_ptr() != own.data_ptr():
            check_numbers({name: tensor}, path, what=WHAT)
            if not torch.equal(tensor, own):
                raise ValueError(f"{path} is no {WHAT}: {name} is not equal to what it stands for; {AGAIN}")
