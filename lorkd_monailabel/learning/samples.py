"""Samples: patches of prepared cases with their masks and names, each a pure function of seed and index."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from lorkd_monailabel.learning.cases import Case, PreparedCase
from lorkd_monailabel.learning.sampler import department_at


@dataclass(frozen=True)
class Sample:
    """A patch of one department.

    Attributes:
        department: id.
        modality: ``ct`` or ``mri``.
        names: structures asked for.
        image: ``(1, X, Y, Z)``.
        masks: ``(N, X, Y, Z)`` of zeros and ones, one for each name.
    """

    department: str
    modality: str
    names: tuple[str, ...]
    image: Tensor
    masks: Tensor


class Samples(Dataset[Sample]):
    """An endless, repeatable stream of samples: the same seed and index give the same sample, on any process.

    Args:
        cases: department -> its prepared cases.
        weights: department -> how often it is drawn.
        patch: voxels along each axis; a smaller volume gives a smaller patch.
        stride: patches are padded to multiples of it.
        max_queries: structures asked for at once.
        all_structures: ask for structures of other departments too where the case has them (a foundation's way).
        augment: whether to vary geometry and intensities.
        seed: of everything drawn.

    Raises:
        ValueError: a length below 1, or weights that no department could be drawn by.
    """

    def __init__(
        self,
        cases: Mapping[str, Sequence[PreparedCase]],
        *,
        weights: Mapping[str, float],
        patch: int,
        stride: int,
        max_queries: int,
        augment: bool,
        seed: int,
        all_structures: bool = False,
    ) -> None:
        if min(patch, stride, max_queries) < 1:
            raise ValueError(f"patch {patch} and max_queries {max_queries} must be at least 1; set them in the config")
        if min(weights.values()) < 0 or sum(weights.values()) <= 0:
            raise ValueError(f"weights {dict(weights)} must be positive; set data.weights in the config")
        self.cases = cases
        self.weights = weights
        self.patch = patch
        self.stride = stride
        self.max_queries = max_queries
        self.seed = seed
        self.all_structures = all_structures
        self.augmentation = augmentation() if augment else None

    def __getitem__(self, index: int) -> Sample:
        rng = np.random.default_rng((self.seed, index))
        department = department_at(index, self.weights, seed=self.seed)
        candidates = self.cases[department]
        prepared = candidates[rng.choice(len(candidates), p=case_weights(candidates))]
        image, labels = _patch(prepared, self.patch, self.stride, rng)
        patch = {"image": torch.from_numpy(image)[None], "labels": torch.from_numpy(labels)[None]}
        if self.augmentation is not None:
            self.augmentation.set_random_state(seed=int(rng.integers(2**31)))
            patch = {key: value.as_tensor() for key, value in self.augmentation(patch).items()}
        values = patch["labels"][0].round().short()
        asked = prepared.case.structures if self.all_structures else prepared.centres
        names = _choose_names(prepared.case, list(asked), values, self.max_queries, rng)
        masks = torch.stack([torch.isin(values, torch.tensor(prepared.case.structures[name])) for name in names])
        return Sample(department, prepared.case.modality, names, patch["image"], masks.float())


def case_weights(cases: Sequence[PreparedCase]) -> np.ndarray:
    """Weigh cases so that a source counts by the root of its size and a case by its structures; sums to one."""
    sources = [prepared.case.source for prepared in cases]
    weights = np.array([len(p.centres) / np.sqrt(sources.count(s)) for p, s in zip(cases, sources, strict=True)])
    return weights / weights.sum()


def augmentation() -> Any:
    """Vary a patch: small rotations, scalings, shifts; contrast, brightness, noise. Never a flip: sides matter."""
    from monai.transforms import (
        Compose,
        RandAffined,
        RandGaussianNoised,
        RandScaleIntensityd,
        RandShiftIntensityd,
    )

    return Compose(
        [
            RandAffined(
                keys=("image", "labels"),
                prob=0.5,
                rotate_range=(0.2, 0.2, 0.2),
                scale_range=(0.15, 0.15, 0.15),
                translate_range=(4, 4, 4),
                mode=("bilinear", "nearest"),
                padding_mode="border",
            ),
            RandScaleIntensityd(keys="image", factors=0.2, prob=0.5),
            RandShiftIntensityd(keys="image", offsets=0.2, prob=0.5),
            RandGaussianNoised(keys="image", std=0.1, prob=0.3),
        ]
    )


def _patch(prepared: PreparedCase, patch: int, stride: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Cut image and labels around a voxel of a structure drawn at random, padded to multiples of the stride."""
    shape = np.array(prepared.image.shape)
    filled = [name for name, voxels in prepared.centres.items() if len(voxels)]
    if filled:
        voxels = prepared.centres[filled[rng.integers(len(filled))]]
        centre = voxels[rng.integers(len(voxels))] + rng.integers(-patch // 4, patch // 4 + 1, size=3)
    else:
        centre = rng.integers(0, shape)
    low = np.clip(centre - patch // 2, 0, np.maximum(shape - patch, 0))
    cut = tuple(slice(start, stop) for start, stop in zip(low, np.minimum(low + patch, shape), strict=True))
    image, labels = prepared.image[cut].astype(np.float32), prepared.labels[cut].astype(np.float32)
    padding = [(0, -size % stride) for size in image.shape]
    return np.pad(image, padding, constant_values=image.min()), np.pad(labels, padding)


def _choose_names(case: Case, names: list[str], labels: Tensor, most: int, rng: np.random.Generator) -> tuple[str, ...]:
    """Draw structures of the patch first, then absent ones (at most as many), in random order."""
    values = set(labels.unique().tolist())
    rng.shuffle(names)
    present = [name for name in names if values.intersection(case.structures[name])]
    absent = [name for name in names if name not in present]
    chosen = present[:most] + absent[: min(max(1, len(present)), most - min(most, len(present)))]
    return tuple(chosen)
