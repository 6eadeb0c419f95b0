"""Dice of experts on the validation cases, all measured on the same volumes in one pass."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
import torch
from torch import Tensor

from lorkd_monailabel.experts import Base, Expert, fused_network
from lorkd_monailabel.label_maps import THRESHOLD
from lorkd_monailabel.learning.cases import Case
from lorkd_monailabel.learning.metrics import dice
from lorkd_monailabel.learning.training import Interrupted
from lorkd_monailabel.masks import brought_back, network_masks
from lorkd_monailabel.networks.segmenter import Segmenter
from lorkd_monailabel.predictor import OVERLAP
from lorkd_monailabel.sliding_window import Cancelled
from lorkd_monailabel.text_encoder import QueryTable
from lorkd_monailabel.volumes import Grid, Volume, canonical_image, read_labels, read_volume, same_grid

SLACK = 1e-6
"""What a Dice may be lower and still be no worse: sums of floating-point numbers."""

Scores = dict[str, float]
"""Structure -> mean Dice over the cases in which it is annotated."""


@dataclass(frozen=True)
class Model:
    """An expert with all that its use needs.

    Attributes:
        network: in evaluation mode, on the device to compute on.
        expert: whose network it is.
        base: under it.
        queries: table of query vectors.
    """

    network: Segmenter
    expert: Expert
    base: Base
    queries: QueryTable


@dataclass(frozen=True)
class Verdict:
    """Whether an expert may take the place of another.

    Attributes:
        better: it is no worse.
        new: mean Dice over the structures that both know; of all its own where there is no other expert.
        current: likewise of the other; None without one.
        message: one sentence.
    """

    better: bool
    new: float | None
    current: float | None
    message: str


def model(base: Base, expert: Expert, queries: QueryTable, device: torch.device) -> Model:
    """Fuse an expert to be measured."""
    return Model(fused_network(base, expert).to(device), expert, base, queries)


def measured(
    models: Sequence[Model],
    cases: Sequence[Case],
    *,
    device: torch.device,
    stop: Callable[[], bool],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Scores]:
    """Measure models of one department, in the order given.

    A structure counts in the cases in which it is annotated; where it is annotated nowhere, it has no score.

    Args:
        models: to compare.
        cases: to measure on, whole volumes on their own grids.
        device: to compute on.
        stop: asked all the time.
        progress: told the cases done and in all.

    Raises:
        Interrupted: ``stop`` said so.
        ValueError: a volume can't be read, or image and label are on different grids.
    """
    found: list[dict[str, list[float]]] = [{} for _ in models]
    for done, case in enumerate(cases):
        progress(done, len(cases))
        volume = read_volume(case.image, case.modality)
        labels, grid = read_labels(case.label)
        _check_grids(volume.grid, grid, case)
        for each, scores in zip(models, found, strict=True):
            names = [name for name in case.of(each.expert.department) if name in each.expert.structures]
            for name, mask in zip(names, _masks(each, volume, names, device, stop), strict=True):
                reference = np.isin(labels, case.structures[name])
                scores.setdefault(name, []).append(dice(mask, reference))
    progress(len(cases), len(cases))
    return [{name: fmean(own) for name, own in scores.items()} for scores in found]


def verdict(new: Mapping[str, float], current: Mapping[str, float] | None) -> Verdict:
    """Compare an expert with the one that is served.

    Args:
        new: scores of the new expert.
        current: scores of the other on the same cases; None where there is no other.
    """
    shared = [name for name in new if current is None or name in current]
    if not shared:
        return Verdict(False, None, None, "no validation case shows a structure that could be compared")
    mean = fmean(new[name] for name in shared)
    if current is None:
        return Verdict(True, mean, None, f"Dice {mean:.3f}, and there is no expert yet")
    other = fmean(current[name] for name in shared)
    better = mean >= other - SLACK
    words = "no worse than" if better else "worse than"
    return Verdict(better, mean, other, f"Dice {mean:.3f} is {words} the served expert's {other:.3f}")


def _masks(
    each: Model, volume: Volume, names: Sequence[str], device: torch.device, stop: Callable[[], bool]
) -> list[np.ndarray]:
    if not names:
        return []
    image, grid = canonical_image(volume, each.expert.spacing_mm, each.base.intensities)
    queries = each.queries.queries(list(names), volume.modality)

    try:
        masks, _ = network_masks(
            each.network,
            image.to(device),
            queries,
            device=device,
            window=each.base.window,
            overlap=OVERLAP,
            progress=lambda done, total: not stop(),
        )
    except Cancelled as error:
        raise Interrupted("stopped while the validation cases were measured; run again to go on") from error
    return [_claimed(mask, grid, volume.grid) for mask in masks]


def _claimed(mask: Tensor, source: Grid, target: Grid) -> np.ndarray:
    probability, part = brought_back(mask, source, target)
    claimed = np.zeros(target.shape, bool)
    claimed[part if part is not None else ...] = probability > THRESHOLD
    return claimed


def _check_grids(image: Grid, label: Grid, case: Case) -> None:
    if not same_grid(image, label):
        raise ValueError(f"{case.label} lies on another grid than {case.image}; export it on the image's grid")
