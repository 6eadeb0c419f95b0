"""Experts: what a department adds to the base, the fusion of both into a plain network."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from statistics import multimode
from typing import Any

import torch
from torch import Tensor

from lorkd_monailabel.networks.low_rank import Factors, delta_weight
from lorkd_monailabel.networks.segmenter import Segmenter, build_segmenter
from lorkd_monailabel.volumes import three


@dataclass(frozen=True)
class Base:
    """The shared weights of a decomposed network.

    Attributes:
        network: the numbers that ``build_segmenter`` takes.
        weights: name -> tensor of the plain network.
        window: voxels that the network was trained on, along X, Y and Z; one number stands for three equal ones.
        query_space: ``QueryTable.space`` of the table it was trained with.
        revision: number in its store; 0 before publication.
        about: what else to write down: sources, training, licence.
        intensities: that it was trained on, ``fixed`` or ``sat``; see ``volumes.normalise``.
    """

    network: dict[str, Any]
    weights: dict[str, Tensor]
    window: tuple[int, int, int]
    query_space: str
    revision: int = 0
    about: dict[str, Any] = field(default_factory=dict)
    intensities: str = "fixed"

    def __post_init__(self) -> None:
        """Makes three numbers of one."""
        object.__setattr__(self, "window", three(self.window))

    @cached_property
    def sha256(self) -> str:
        """Hash of every weight's name, type, shape and bytes."""
        return tensors_sha256(self.weights)


@dataclass(frozen=True)
class Expert:
    """The low-rank factors and norms of one department, over one base.

    Attributes:
        department: id.
        base_sha256: of the base it was trained on.
        factors: weight name -> ``(lora_a, lora_b)``.
        scales: weight name -> scale of its delta.
        ranks: weight name -> rank.
        norms: weight name -> the department's own copy, in place of the base's.
        spacing_mm: of the grid it was trained on, along X, Y and Z; one number stands for three equal ones.
        structures: trained on, in display order.
        revision: number in its store; 0 before publication.
        parent: revision it was trained from; 0 for none.
        metrics: structure -> Dice at publication.
        about: what else to write down: sources, cases, training.
    """

    department: str
    base_sha256: str
    factors: dict[str, tuple[Tensor, Tensor]]
    scales: dict[str, float]
    ranks: dict[str, int]
    spacing_mm: tuple[float, float, float]
    structures: tuple[str, ...]
    norms: dict[str, Tensor] = field(default_factory=dict)
    revision: int = 0
    parent: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Makes three numbers of one."""
        x, y, z = three(self.spacing_mm)
        object.__setattr__(self, "spacing_mm", (float(x), float(y), float(z)))

    @property
    def rank(self) -> int:
        """Rank of most of its layers: a decoder has a multiple, one of few channels less; 0 without factors."""
        return min(multimode(self.ranks.values()), default=0)


def fuse(
    weights: Mapping[str, Tensor],
    factors: Mapping[str, tuple[Tensor, Tensor]],
    scales: Mapping[str, float],
    norms: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Add a department's low-rank deltas to the base's weights (LoRKD Eq. 5); pure and differentiable.

    Args:
        weights: of the base.
        factors: weight name -> ``(lora_a, lora_b)``.
        scales: weight name -> scale.
        norms: weight name -> tensor that takes the place of the base's.

    Returns:
        All weights of the department's plain network, of the types and on the device of the base's; those that no
        expert touches are the base's own tensors.

    Raises:
        ValueError: factors of a weight that the base lacks, or of another shape.
    """
    fused = dict(weights)
    for name, (lora_a, lora_b) in factors.items():
        if name not in weights:
            raise ValueError(f"the expert changes {name!r}, which the base lacks; it belongs to another network")
        weight = weights[name]
        pair = (*lora_a.shape, *lora_b.shape)
        if len(pair) != 4 or lora_a.dim() != 2 or pair[0] != pair[3] or pair[1] * pair[2] != weight.numel():
            raise ValueError(
                f"factors {tuple(lora_a.shape)} and {tuple(lora_b.shape)} do not make {name} {tuple(weight.shape)}; "
                "they belong to another network"
            )
        fused[name] = weight + delta_weight(lora_a, lora_b, weight.shape, scales[name]).to(weight)
    fused.update(norms or {})
    return fused


def fused_network(base: Base, expert: Expert) -> Segmenter:
    """Build the plain network of a department, in evaluation mode.

    Raises:
        ValueError: the expert was trained on another base.
    """
    if expert.base_sha256 != base.sha256:
        raise ValueError(
            f"expert {expert.department}/{expert.revision:04d} was trained on base {expert.base_sha256[:12]}, "
            f"this base is {base.sha256[:12]}; use the base it was published with"
        )
    weights, norms = as_float(base.weights), as_float(expert.norms)
    factors = {name: (a.float(), b.float()) for name, (a, b) in expert.factors.items()}
    with torch.no_grad():
        return plain_network(base.network, fuse(weights, factors, expert.scales, norms))


def plain_network(network: Mapping[str, Any], weights: Mapping[str, Tensor]) -> Segmenter:
    """Build a segmenter around weights, without copying them, in evaluation mode.

    Raises:
        ValueError: the numbers make no network, or the weights are not those of such a one.
    """
    try:
        with torch.device("meta"):
            segmenter = build_segmenter(**network)
    except (TypeError, RuntimeError, AssertionError, ZeroDivisionError) as error:
        raise ValueError(f"numbers {dict(network)} make no segmenter ({error}); use those it was saved with") from error
    try:
        segmenter.load_state_dict(dict(weights), assign=True)
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip()
        raise ValueError(f"the weights do not fit the network ({first}); use those it was saved with") from error
    return segmenter.requires_grad_(False).eval()


def extract(
    factors: Factors,
    *,
    department: str,
    base_sha256: str,
    spacing_mm: float | tuple[float, float, float],
    structures: Sequence[str],
    norms: Mapping[str, Tensor] | None = None,
    parent: int = 0,
    about: Mapping[str, Any] | None = None,
    dtype: torch.dtype = torch.float32,
) -> Expert:
    """Take a department's expert out of training: detached copies on the CPU.

    Args:
        factors: trained.
        department: id.
        base_sha256: of the base as it is stored.
        spacing_mm: of the grid; one number, or one for each axis.
        structures: trained on.
        norms: the department's own copies of the base's tensors.
        parent: revision that training started from; 0 for none.
        about: what else to write down.
        dtype: of the copies.
    """
    pairs = {
        name: (a.detach().cpu().to(dtype, copy=True), b.detach().cpu().to(dtype, copy=True))
        for name, (a, b) in factors.pairs().items()
    }
    return Expert(
        department=department,
        base_sha256=base_sha256,
        factors=pairs,
        scales=dict(factors.scales),
        ranks=dict(factors.ranks),
        spacing_mm=three(spacing_mm),
        structures=tuple(structures),
        norms=dict(norms or {}),
        parent=parent,
        about=dict(about or {}),
    )


def as_float(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give tensors in single precision; those that are already are not copied."""
    return {name: tensor.float() for name, tensor in tensors.items()}


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """Hash names, types, shapes and bytes of tensors, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)  # no copy: weights are large
    return digest.hexdigest()
