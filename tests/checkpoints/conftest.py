"""Files in the layouts of SAT and LoRKD, by names and shapes written down here anew, with random weights."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

Shapes = dict[str, tuple[int, ...]]
TINY: dict[str, Any] = {"widths": (2, 3, 4, 5, 6, 7), "dim": 24, "hidden": 10, "mask": 6, "layers": 2, "forward": 12}
NANO = {"widths": (64, 64, 128, 256, 512, 768), "hidden": 768, "mask": 256}
PRO = {"widths": (128, 128, 256, 512, 1024, 1536), "convs": 3, "hidden": 1536, "mask": 384}
LORKD_NANO = {"widths": (32, 64, 128, 256, 512), "hidden": 768, "mask": 256}


def blocks(widths: tuple[int, ...], convs: int) -> Iterator[tuple[str, int, int]]:
    """Name of each convolution's block, with {} for what the layouts call it, and its channels."""
    before = 3
    for stage, width in enumerate(widths):
        for block in range(convs):
            yield f"encoder.stages.{stage}.0.{{}}.{block}", before, width
            before = width
    for stage, width in enumerate(reversed(widths[:-1])):
        for block in range(convs):
            yield f"decoder.stages.{stage}.{{}}.{block}", width if block else 2 * width, width


def dense(name: str, outputs: int, inputs: int) -> Shapes:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def around(
    widths: tuple[int, ...], *, dim: int = 768, hidden: int, mask: int, layers: int = 6, forward: int = 2048
) -> Shapes:
    """All but the stages."""
    found: Shapes = {}
    for stage, (below, width) in enumerate(zip(widths[:0:-1], widths[-2::-1], strict=True)):
        name = f"backbone.decoder.transpconvs.{stage}"
        found |= {f"{name}.weight": (below, width, 2, 2, 2), f"{name}.bias": (width,)}
    found |= dense("projection_layer.0", hidden, sum(widths)) | dense("projection_layer.2", dim, hidden)
    for layer in range(layers):
        name = f"transformer_decoder.layers.{layer}"
        found |= {f"{name}.multihead_attn.in_proj_weight": (3 * dim, dim)}
        found |= {f"{name}.multihead_attn.in_proj_bias": (3 * dim,)}
        found |= dense(f"{name}.multihead_attn.out_proj", dim, dim)
        found |= dense(f"{name}.linear1", forward, dim) | dense(f"{name}.linear2", dim, forward)
        for number in (1, 2, 3):
            found |= {f"{name}.norm{number}.{last}": (dim,) for last in ("weight", "bias")}
    found |= {f"transformer_decoder.norm.{last}": (dim,) for last in ("weight", "bias")}
    return found | dense("mask_embed_proj.0", mask, dim) | dense("mask_embed_proj.2", widths[0], mask)


def sat(*, widths: tuple[int, ...], convs: int = 2, deep: bool = False, **numbers: int) -> Shapes:
    """Names and shapes of SAT's own state, with ``module.``."""
    found: Shapes = {}
    for block, inputs, outputs in blocks(widths, convs):
        for first, second in (("conv", "norm"), ("all_modules.0", "all_modules.1")):
            name = f"backbone.{block.format('convs')}"
            found |= {f"{name}.{first}.weight": (outputs, inputs, 3, 3, 3), f"{name}.{first}.bias": (outputs,)}
            found |= {f"{name}.{second}.{last}": (outputs,) for last in ("weight", "bias")}
    found |= around(widths, **numbers)
    if deep:
        for head in range(3):
            found |= dense(f"mid_mask_embed_proj.{head}.0", 8, numbers.get("dim", 768))
            found |= dense(f"mid_mask_embed_proj.{head}.2", widths[head + 1], 8)
    return {f"module.{name}": shape for name, shape in found.items()}


def lorkd(*, widths: tuple[int, ...], convs: int = 2, ranks: tuple[int, ...] = (8,) * 8, **numbers: int) -> Shapes:
    """Names and shapes of LoRKD's own state: ``model.module.``, and the U-Net once more as ``unet.``."""
    unet: Shapes = {}
    for block, inputs, outputs in blocks(widths, convs):
        name = block.format("stages")
        unet |= {f"{name}.conv.conv.weight": (outputs, inputs, 3, 3, 3), f"{name}.conv.conv.bias": (outputs,)}
        unet |= {f"{name}.norm.{last}": (outputs,) for last in ("weight", "bias")}
        for task, rank in enumerate(ranks):
            rank = 2 * rank if name.startswith("decoder") else rank
            unet[f"{name}.conv.lora_A_list.{task}"] = (3 * rank, 9 * inputs)
            unet[f"{name}.conv.lora_B_list.{task}"] = (3 * outputs, 3 * rank)
    rest = around(widths, **numbers)
    copied = {name.removeprefix("backbone."): shape for name, shape in rest.items() if "transpconvs" in name}
    found = {f"model.module.backbone.{name}": shape for name, shape in unet.items()}
    found |= {f"model.module.{name}": shape for name, shape in rest.items()}
    return found | {f"unet.{name}": shape for name, shape in {**unet, **copied}.items()}


def filled(shapes: Shapes, seed: int = 0) -> dict[str, Tensor]:
    """Random weights; what the layouts have twice is one tensor."""
    generator = torch.Generator().manual_seed(seed)
    state: dict[str, Tensor] = {}
    for name, shape in shapes.items():
        first = name.replace("all_modules.0.", "conv.").replace("all_modules.1.", "norm.")
        if name.startswith("unet."):
            first = f"model.module.backbone.{name.removeprefix('unet.')}"
        if first != name:
            state[name] = state[first]
            continue
        fan = torch.Size(shape[1:]).numel()
        state[name] = torch.randn(shape, generator=generator) * (2 / fan) ** 0.5
    return state


@pytest.fixture(scope="session")
def shapes() -> Callable[..., Shapes]:
    """Names and shapes of a size: ``tiny`` ``nano`` ``pro`` in SAT's layout, ``lorkd_…`` in LoRKD's."""
    sizes = {"nano": (sat, NANO), "pro": (sat, PRO), "tiny": (sat, TINY)}
    sizes |= {"lorkd_nano": (lorkd, LORKD_NANO), "lorkd_pro": (lorkd, NANO), "lorkd_tiny": (lorkd, TINY)}

    def make(size: str, **more: Any) -> Shapes:
        layout, numbers = sizes[size]
        return layout(**{**numbers, **more})

    return make


@pytest.fixture(scope="session")
def state(shapes: Callable[..., Shapes]) -> Callable[..., dict[str, Tensor]]:
    """Random weights of a size."""
    return lambda size, **more: filled(shapes(size, **more))


@pytest.fixture
def file(tmp_path: Path) -> Callable[..., Path]:
    """Write a checkpoint as training writes it."""

    def write(state: object, name: str = "file.pth") -> Path:
        path = tmp_path / name
        torch.save({"step": 1, "model_state_dict": state, "optimizer_state_dict": {}}, path)
        return path

    return write
