"""Samples: patches of prepared cases with their masks and names, each a pure function of seed and index."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from lorkd_monailabel.learning.cases import PreparedCase
from lorkd_monailabel.learning.sampler import department_at
from lorkd_monailabel.teachers.masks import StoredMasks
from lorkd_monailabel.volumes import three


@dataclass(frozen=True)
class Sample:
    """A patch of one department.

    Attributes:
        department: id.
        modality: ``ct`` or ``mri``.
        names: structures asked for.
        image: ``(1, X, Y, Z)``.
        masks: ``(N, X, Y, Z)`` of zeros and ones, one for each name.
        annotated: booleans ``(N,)``; the masks of the others say nothing. None: all are.
        teacher: probabilities ``(N, X, Y, Z)`` of a teacher that was asked before, NaN for what it does not know; None
            where there was none.
    """

    department: str
    modality: str
    names: tuple[str, ...]
    image: Tensor
    masks: Tensor
    annotated: Tensor | None = None
    teacher: Tensor | None = None


class Samples(Dataset[Sample]):
    """An endless, repeatable stream of samples: the same seed and index give the same sample, on any process.

    Args:
        cases: department -> its prepared cases.
        weights: department -> how often it is drawn.
        patch: voxels along each axis, one number or three; a smaller volume gives a smaller patch.
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
        patch: int | Sequence[int],
        stride: int,
        max_queries: int,
        augment: bool,
        seed: int,
        all_structures: bool = False,
    ) -> None:
        sides = three(patch)
        if min(*sides, stride, max_queries) < 1:
            raise ValueError(f"patch {patch} and max_queries {max_queries} must be at least 1; set them in the config")
        if min(weights.values()) < 0 or sum(weights.values()) <= 0:
            raise ValueError(f"weights {dict(weights)} must be positive; set data.weights in the config")
        self.cases = cases
        self.weights = weights
        self.patch = sides
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
        cut = _cut(prepared, self.patch, rng)
        image, labels = prepared.image[cut].astype(np.float32), prepared.labels[cut].astype(np.float32)
        padding = [(0, -size % self.stride) for size in image.shape]
        image, labels = np.pad(image, padding, constant_values=image.min()), np.pad(labels, padding)
        patch = {"image": torch.from_numpy(image)[None], "labels": torch.from_numpy(labels)[None]}
        drawn = 0
        if self.augmentation is not None:
            drawn = int(rng.integers(2**31))
            self.augmentation.set_random_state(seed=drawn)
            patch = {key: value.as_tensor() for key, value in self.augmentation(patch).items()}
        values = patch["labels"][0].round().short()
        annotated = prepared.case.structures
        asked = list(dict.fromkeys((*annotated, *prepared.centres)) if self.all_structures else prepared.centres)
        names = _choose_names(asked, _present(prepared, asked, values, cut), self.max_queries, rng)
        masks = torch.stack(
            [torch.isin(values, torch.tensor(annotated.get(name, ()), dtype=torch.long)) for name in names]
        )
        return Sample(
            department=department,
            modality=prepared.case.modality,
            names=names,
            image=patch["image"],
            masks=masks.float(),
            annotated=None if annotated.keys() >= set(names) else torch.tensor([name in annotated for name in names]),
            teacher=self._teacher(prepared.teacher, names, cut, padding, drawn) if prepared.teacher else None,
        )

    def _teacher(
        self,
        stored: StoredMasks,
        names: Sequence[str],
        cut: tuple[slice, ...],
        padding: list[tuple[int, int]],
        drawn: int,
    ) -> Tensor:
        """Cut the teacher's masks as the image was cut, and move them as it was moved."""
        rows = [row for row, name in enumerate(names) if name in stored.names]
        if not rows:
            shape = [part.stop - part.start + after for part, (_, after) in zip(cut, padding, strict=True)]
            return torch.full((len(names), *shape), torch.nan)
        known = torch.from_numpy(np.stack([np.pad(stored.part(names[row], cut), padding) for row in rows]))
        if self.augmentation is not None:
            # The same numbers again, so the same motion: of the space alone, as one of the two keys of the pair.
            self.augmentation.set_random_state(seed=drawn)
            moved = self.augmentation.transforms[0]({"image": known, "labels": known})
            known = moved["labels" if stored.hard else "image"].as_tensor()
        masks = torch.full((len(names), *known.shape[1:]), torch.nan)
        masks[rows] = known
        return masks


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


def _cut(prepared: PreparedCase, patch: tuple[int, int, int], rng: np.random.Generator) -> tuple[slice, ...]:
    """Choose a patch around a voxel of a structure drawn at random."""
    shape, sides = np.array(prepared.image.shape), np.array(patch)
    filled = [name for name, voxels in prepared.centres.items() if len(voxels)]
    if filled:
        voxels = prepared.centres[filled[rng.integers(len(filled))]]
        centre = voxels[rng.integers(len(voxels))] + rng.integers(-sides // 4, sides // 4 + 1)
    else:
        centre = rng.integers(0, shape)
    low = np.clip(centre - sides // 2, 0, np.maximum(shape - sides, 0))
    return tuple(slice(int(a), int(b)) for a, b in zip(low, np.minimum(low + sides, shape), strict=True))


def _present(prepared: PreparedCase, names: Sequence[str], labels: Tensor, cut: tuple[slice, ...]) -> set[str]:
    """Name the structures that have a voxel in the patch; where nobody annotated one, the teacher says so."""
    values, annotated = set(labels.unique().tolist()), prepared.case.structures
    present = {name for name in names if values.intersection(annotated.get(name, ()))}
    alone = [name for name in names if name not in annotated]
    return present | {name for name in alone if prepared.teacher and (prepared.teacher.part(name, cut) > 0.5).any()}


def _choose_names(names: list[str], present: set[str], most: int, rng: np.random.Generator) -> tuple[str, ...]:
    """Draw structures of the patch first, then absent ones (at most as many), in random order."""
    rng.shuffle(names)
    here = [name for name in names if name in present]
    absent = [name for name in names if name not in present]
    chosen = here[:most] + absent[: min(max(1, len(here)), most - min(most, len(here)))]
    return tuple(chosen)
