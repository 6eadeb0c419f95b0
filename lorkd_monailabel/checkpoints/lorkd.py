"""LoRKD's released checkpoints: a base and eight experts in one file.

The file holds the whole U-Net twice, as ``model.module.backbone.*`` and as ``unet.*``; 994 keys for LoRKD-Pro (which is
SAT-Nano's architecture) and 830 for LoRKD-Nano. Ranks are read off the shapes; the decoder's are twice the encoder's.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from lorkd_monailabel.checkpoints.keys import (
    LORKD,
    SPACING_MM,
    WINDOW,
    empty_segmenter,
    network_numbers,
    reference_name,
    reference_shapes,
)
from lorkd_monailabel.checkpoints.reading import read_state, without
from lorkd_monailabel.departments import department as find_department
from lorkd_monailabel.experts import Base, Expert
from lorkd_monailabel.networks.low_rank import factor_shapes, layer_ranks, layer_scales
from lorkd_monailabel.networks.segmenter import Segmenter
from lorkd_monailabel.text_encoder import QueryTable
from lorkd_monailabel.torch_files import AGAIN, checked_tensors

DEPARTMENTS = ("abdomen", "brain", "head_and_neck", "lower_limb", "pelvis", "spine", "thorax", "upper_limb")
"""In the order of LoRKD's task numbers."""
WHAT = "checkpoint of LoRKD"
ALPHA = 16.0
IMBALANCED_SCALE = 2.0
"""Of every layer, whatever its rank, where departments have ranks of their own."""
_COPY = "unet."


class Part(NamedTuple):
    """The factors of one department, each by the name of its weight."""

    factors: dict[str, tuple[Tensor, Tensor]]
    ranks: dict[str, int]
    scales: dict[str, float]


class Release(NamedTuple):
    """What a file holds: numbers of ``build_segmenter``, weights by our names, and the factors by department."""

    network: dict[str, Any]
    weights: dict[str, Tensor]
    parts: dict[str, Part]


def is_lorkd(names: Sequence[str]) -> bool:
    """Say whether names of a state are of LoRKD's kind."""
    return any(".lora_A_list." in name for name in names)


def read_lorkd(path: str | Path) -> Release:
    """Read a released checkpoint.

    Args:
        path: of a ``.pth`` file.

    Raises:
        ValueError: it is none, with the first name that differs.
    """
    path = Path(path)
    state = dict(without(read_state(path), _COPY))
    numbers = network_numbers(state, LORKD, path, what=WHAT)
    segmenter = empty_segmenter(numbers, path, what=WHAT)
    decomposed = segmenter.low_rank_weights()
    first = next(iter(decomposed))
    own = [
        _rank(state, _factor_names(first, task)[0], numbers["kernel_size"], path) for task in range(len(DEPARTMENTS))
    ]
    checked_tensors(state, release_shapes(segmenter, own), path, what=WHAT)
    parts = {}
    for task, department in enumerate(DEPARTMENTS):
        names = {name: _factor_names(name, task) for name in decomposed}
        per_layer = layer_ranks(decomposed, own[task])
        balanced = len(set(own)) == 1
        parts[department] = Part(
            {name: (state[lora_a], state[lora_b]) for name, (lora_a, lora_b) in names.items()},
            per_layer,
            layer_scales(per_layer, alpha=ALPHA) if balanced else dict.fromkeys(per_layer, IMBALANCED_SCALE),
        )
    weights = {name: state[reference_name(name, LORKD)] for name in segmenter.state_dict()}
    return Release(numbers, weights, parts)


def release_shapes(segmenter: Segmenter, ranks: Sequence[int]) -> dict[str, tuple[int, ...]]:
    """Give name -> shape of what a release of a network holds, but for the copy of the U-Net.

    Args:
        segmenter: plain.
        ranks: of the encoder's layers, of each department.
    """
    shapes = reference_shapes(segmenter, LORKD)
    decomposed = segmenter.low_rank_weights()
    for task, rank in enumerate(ranks):
        for name, per_layer in layer_ranks(decomposed, rank).items():
            own = factor_shapes(shapes[reference_name(name, LORKD)], per_layer)
            shapes |= dict(zip(_factor_names(name, task), own, strict=True))
    return shapes


def base_and_experts(release: Release, table: QueryTable, *, about: dict[str, Any]) -> tuple[Base, list[Expert]]:
    """Make a base and its experts of a release.

    Which structures a release knows, its file does not say: each expert gets those that our vocabulary has in its
    department and the table has a query of; ``about`` says that this is an assumption.

    Args:
        release: as it was read.
        table: of the text encoder that it was trained with.
        about: what else to write down in each file.
    """
    base = Base(
        network=release.network,
        weights=release.weights,
        window=WINDOW,
        query_space=table.space,
        about=about,
        intensities="sat",
    )
    assumed = "assumed: those of the vocabulary's department; the checkpoint does not name them"
    experts = [
        Expert(
            department=department,
            base_sha256=base.sha256,
            factors=part.factors,
            scales=part.scales,
            ranks=part.ranks,
            spacing_mm=SPACING_MM,
            structures=tuple(each.name for each in find_department(department).structures if each.name in table),
            about={**about, "structures": assumed},
        )
        for department, part in release.parts.items()
    ]
    return base, experts


def _factor_names(name: str, task: int) -> tuple[str, str]:
    layer = reference_name(name, LORKD).removesuffix(".conv.weight")
    return f"{layer}.lora_A_list.{task}", f"{layer}.lora_B_list.{task}"


def _rank(state: dict[str, Tensor], name: str, kernel_size: int, path: Path) -> int:
    """Read a department's rank off the first layer of the encoder: its lora_A has rank times kernel rows."""
    if name not in state:
        raise ValueError(f"{path} is no {WHAT}: it lacks {name}; {AGAIN}")
    rows = tuple(state[name].shape)[:1]
    if not rows or rows[0] < kernel_size or rows[0] % kernel_size:
        raise ValueError(f"{path} is no {WHAT}: {name} has shape {tuple(state[name].shape)}, not rank x {kernel_size}; "
                         f"{AGAIN}")  # fmt: skip
    return rows[0] // kernel_size
