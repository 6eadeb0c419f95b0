"""Names of SAT's and LoRKD's networks, and the numbers that their shapes tell."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lorkd_monailabel.networks.segmenter import SIZES, Segmenter, build_segmenter
from lorkd_monailabel.torch_files import AGAIN

HEADS = 8
"""Of SAT's attention; no shape tells it."""
WINDOW = (288, 288, 96)
SPACING_MM = (1.0, 1.0, 3.0)
"""What every network of SAT and LoRKD was trained on."""
TOKEN_STRIDE = 32
"""Voxels of the image for one token of theirs, along each axis, LoRKD-Nano's too, whose coarsest scale is 1/16."""


class Layout(NamedTuple):
    """What a network calls the blocks of a stage, and the convolution of a block."""

    blocks: str
    convolution: str


SAT = Layout("convs", "conv")
LORKD = Layout("stages", "conv.conv")

_PARTS = {
    "projection": "projection_layer",
    "query_decoder": "transformer_decoder",
    "mask_embedding": "mask_embed_proj",
}


def reference_name(name: str, layout: Layout) -> str:
    """Translate a name of ours, such as ``unet.encoder.0.1.conv.weight``.

    Raises:
        ValueError: SAT's networks have nothing of the kind.
    """
    match name.split("."):
        case ["unet", "encoder", stage, block, part, last]:
            inner = layout.convolution if part == "conv" else part
            return f"backbone.encoder.stages.{stage}.0.{layout.blocks}.{block}.{inner}.{last}"
        case ["unet", "decoder", stage, block, part, last]:
            inner = layout.convolution if part == "conv" else part
            return f"backbone.decoder.stages.{stage}.{layout.blocks}.{block}.{inner}.{last}"
        case ["unet", "upsample", stage, last]:
            return f"backbone.decoder.transpconvs.{stage}.{last}"
        case ["query_projection", ("0" | "2") as layer, last]:
            return f"query_proj.{layer}.{last}"
        case [part, *rest] if part in _PARTS:
            return ".".join((_PARTS[part], *rest))
    raise ValueError(f"SAT's networks have no place for {name}; only a network of their shape can become one")


def reference_shapes(segmenter: Segmenter, layout: Layout) -> dict[str, tuple[int, ...]]:
    """Give the shapes of a network's weights by their names in a layout.

    Raises:
        ValueError: the network is not of SAT's shape.
    """
    return {reference_name(name, layout): tuple(each.shape) for name, each in segmenter.state_dict().items()}


def network_numbers(found: Mapping[str, Tensor], layout: Layout, path: Path, *, what: str) -> dict[str, Any]:
    """Read the keyword numbers of ``build_segmenter`` off the shapes of a state.

    Raises:
        ValueError: a tensor that tells one is missing, or has too few axes or none of some length.
    """

    def length(name: str, axis: int, axes: int) -> int:
        shape = tuple(found[name].shape) if name in found else None
        if shape is None:
            raise ValueError(f"{path} is no {what}: it lacks {name}; {AGAIN}")
        if len(shape) != axes or min(shape) < 1:
            raise ValueError(f"{path} is no {what}: {name} has shape {shape}, not {axes} lengths above 0; {AGAIN}")
        return shape[axis]

    def convolution(stage: int, block: int) -> str:
        return f"backbone.encoder.stages.{stage}.0.{layout.blocks}.{block}.{layout.convolution}.weight"

    def count(names: Any) -> int:
        """How many of numbered names there are before the first gap; at least one, so that its lack is said."""
        number = 1
        while names(number) in found:
            number += 1
        return number

    stages = count(lambda stage: convolution(stage, 0))
    dim = length("transformer_decoder.norm.weight", 0, 1)
    if "query_proj.0.weight" in found:
        hidden = length("query_proj.0.weight", 0, 2)
        queries = {"query_dim": length("query_proj.0.weight", 1, 2), "query_hidden": hidden}
    else:
        queries = {"query_dim": dim}
    return {
        **queries,
        "widths": tuple(length(convolution(stage, 0), 0, 5) for stage in range(stages)),
        "in_channels": length(convolution(0, 0), 1, 5),
        "convs": count(lambda block: convolution(0, block)),
        "kernel_size": length(convolution(0, 0), 2, 5),
        "dim": dim,
        "layers": count(lambda layer: f"transformer_decoder.layers.{layer}.linear1.weight"),
        "heads": HEADS,
        "feedforward": length("transformer_decoder.layers.0.linear1.weight", 0, 2),
        "projection_hidden": length("projection_layer.0.weight", 0, 2),
        "mask_hidden": length("mask_embed_proj.0.weight", 0, 2),
        "token_stride": TOKEN_STRIDE,
    }


def empty_segmenter(numbers: Mapping[str, Any], path: Path, *, what: str) -> Segmenter:
    """Build a network without memory for its weights.

    Raises:
        ValueError: the numbers make none.
    """
    try:
        with torch.device("meta"):
            return build_segmenter(**numbers)
    except (ValueError, TypeError, RuntimeError, AssertionError, ZeroDivisionError, OverflowError) as error:
        reason = " ".join(str(error).split())[:120]
        raise ValueError(f"{path} is no {what}: its shapes make no network ({reason}); {AGAIN}") from error


def size_of(numbers: Mapping[str, Any]) -> str | None:
    """Name the size of ``SIZES`` that has these numbers, if any."""
    usual = {"convs": 2, "query_dim": 768, "dim": 768, "layers": 6, "feedforward": 2048, "projection_hidden": 768}
    usual |= {"kernel_size": 3, "heads": HEADS, "token_stride": TOKEN_STRIDE}
    own = {**usual, **numbers, "widths": tuple(numbers.get("widths", ()))}
    return next((size for size in ("nano", "pro", "sat_pro", "sat_huge") if own == {**usual, **SIZES[size]}), None)
