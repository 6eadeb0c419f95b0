"""Samples: patches of prepared cases with their masks and names, each a pure function of seed and index."""

import copy
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.data import Dataset

from lorkd_monailabel.learning.augmentation import ROTATION_RAD, SCALING, Augmentation, moved, reach, sampling_grid
from lorkd_monailabel.learning.prepared import PreparedCase
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


@dataclass(frozen=True)
class _Window:
    """Where a patch comes from.

    Attributes:
        part: of the case that is read: the patch, and as much around it as its motion needs.
        shape: of the patch.
        padded: shape of the part, larger where the case ends before the patch does.
        grid: of the moved patch in the padded part, for ``moved``; None where it stays.
    """

    part: tuple[slice, ...]
    shape: tuple[int, ...]
    padded: tuple[int, ...]
    grid: Tensor | None

    def patch(self, read: Tensor, mode: Literal["bilinear", "nearest"], *, beyond: float) -> Tensor:
        """Cut the patch ``(C, X, Y, Z)`` out of the part, moved; ``beyond`` is the value outside the case."""
        ends = [
            side for long, own in zip(self.padded[::-1], read.shape[:0:-1], strict=True) for side in (0, long - own)
        ]
        padded = pad(read, ends, value=beyond)
        return padded if self.grid is None else moved(padded, self.grid, mode)


class Samples(Dataset[Sample]):
    """An endless, repeatable stream of samples: the same seed and index give the same sample, on any process.

    What a sample costs does not depend on the number of cases, but for a search in a sorted list.

    Args:
        cases: department -> its prepared cases.
        weights: department -> how often it is drawn.
        patch: voxels along each axis, one number or three; a smaller volume gives a smaller patch.
        stride: patches are padded to multiples of it.
        max_queries: structures asked for at once.
        augment: whether to vary geometry and intensities.
        seed: of everything drawn.
        all_structures: ask for structures of other departments too where the case has them (a foundation's way).
        source_weights: source -> how often its cases are drawn; see ``case_weights``.
        foreground: share of the patches that are cut around a structure; the others lie anywhere.
        negatives: largest share, on average, of structures that are absent from the patch among those asked for.
        variations: further ones of the intensities, see ``Augmentation``.
        rotation_rad: the largest angle that a patch is turned by about each axis.
        scaling: the largest change of its lengths.

    Raises:
        ValueError: a length below 1, a share outside of 0..1, weights that no department or none of its cases could be
            drawn by, or what ``Augmentation`` refuses.
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
        source_weights: Mapping[str, float] | None = None,
        foreground: float = 1.0,
        negatives: float = 0.5,
        variations: Sequence[str] = (),
        rotation_rad: float = ROTATION_RAD,
        scaling: float = SCALING,
    ) -> None:
        sides = three(patch)
        if min(*sides, stride, max_queries) < 1:
            raise ValueError(f"patch {patch} and max_queries {max_queries} must be at least 1; set them in the config")
        if min(weights.values()) < 0 or sum(weights.values()) <= 0:
            raise ValueError(
                f"weights {dict(weights)} must be at least 0, which leaves a department out, and not all of them 0; "
                "set data.weights in the config"
            )
        if not (0 <= foreground <= 1 and 0 <= negatives <= 1):
            raise ValueError(
                f"foreground {foreground} and negatives {negatives} are shares, 0..1; set them in the config"
            )
        self.cases = cases
        self.weights = weights
        self.patch = sides
        self.stride = stride
        self.max_queries = max_queries
        self.seed = seed
        self.all_structures = all_structures
        self.foreground = foreground
        self.negatives = negatives
        self.augmentation = Augmentation(variations, rotation_rad=rotation_rad, scaling=scaling) if augment else None
        self._chances = {name: np.cumsum(case_weights(own, source_weights or {})) for name, own in cases.items()}

    def only(self, department: str, *, seed: int) -> "Samples":
        """Give the stream of one department alone, of another seed and otherwise made alike."""
        own = copy.copy(self)
        own.cases, own.weights, own.seed = {department: self.cases[department]}, {department: 1.0}, seed
        return own

    def __getitem__(self, index: int) -> Sample:
        rng = np.random.default_rng((self.seed, index))
        department = department_at(index, self.weights, seed=self.seed)
        chances = self._chances[department]
        prepared = self.cases[department][int(np.searchsorted(chances, rng.random() * chances[-1], side="right"))]
        cut = _cut(prepared, self.patch, self.foreground, rng)
        motion = self.augmentation.motion(rng) if self.augmentation is not None else None
        window = _window(cut, prepared.image.shape, self.stride, motion)
        image = torch.from_numpy(np.array(prepared.image[window.part])).float()[None]
        image = window.patch(image, "bilinear", beyond=image.min().item())
        labels = torch.from_numpy(np.array(prepared.labels[window.part]))[None]
        labels = window.patch(labels.float(), "nearest", beyond=0)[0].short()
        if self.augmentation is not None:
            image = self.augmentation.varied(image, rng)
        annotated = prepared.case.structures
        asked = list(dict.fromkeys((*annotated, *prepared.centres)) if self.all_structures else prepared.centres)
        present = _present(prepared, asked, labels, cut)
        names = _choose_names(asked, present, self.max_queries, self.negatives, rng)
        return Sample(
            department=department,
            modality=prepared.case.modality,
            names=names,
            image=image,
            masks=_masks(labels, [annotated.get(name, ()) for name in names]),
            annotated=None if annotated.keys() >= set(names) else torch.tensor([name in annotated for name in names]),
            teacher=_teacher(prepared.teacher, names, window) if prepared.teacher else None,
        )


def case_weights(cases: Sequence[PreparedCase], source_weights: Mapping[str, float]) -> np.ndarray:
    """Weigh cases so that a source counts by its weight times the root of its size, a case by its structures.

    These are SAT's and LoRKD's weights, which let some sources count threefold.

    Args:
        cases: of one department.
        source_weights: source -> its weight; ``default``, or 1, for those that are not named.

    Returns:
        ``(len(cases),)``, summing to one.

    Raises:
        ValueError: a weight is negative, or no case could be drawn.
    """
    sizes = Counter(prepared.case.source for prepared in cases)
    told = {source: source_weights.get(source, source_weights.get("default", 1.0)) for source in sizes}
    weights = np.array([len(p.centres) * told[p.case.source] / np.sqrt(sizes[p.case.source]) for p in cases])
    if min(told.values(), default=0.0) < 0 or weights.sum() <= 0:
        raise ValueError(
            f"weights {told} of sources must be at least 0, which leaves a source out, and not all of them 0; "
            "set data.source_weights in the config"
        )
    return weights / weights.sum()


def _cut(
    prepared: PreparedCase, patch: tuple[int, int, int], foreground: float, rng: np.random.Generator
) -> tuple[slice, ...]:
    """Choose a patch around a voxel of a structure drawn at random, or anywhere."""
    shape, sides = np.array(prepared.image.shape), np.array(patch)
    filled = [name for name, voxels in prepared.centres.items() if len(voxels)]
    if filled and rng.random() < foreground:
        voxels = prepared.centres[filled[rng.integers(len(filled))]]
        centre = voxels[rng.integers(len(voxels))] + rng.integers(-sides // 4, sides // 4 + 1)
    else:
        centre = rng.integers(0, shape)
    low = np.clip(centre - sides // 2, 0, np.maximum(shape - sides, 0))
    return tuple(slice(int(a), int(b)) for a, b in zip(low, np.minimum(low + sides, shape), strict=True))


def _window(cut: tuple[slice, ...], whole: Sequence[int], stride: int, motion: Tensor | None) -> _Window:
    """Say which part of a case ``whole`` is read for a patch that is padded to multiples of ``stride`` and moved."""
    shape = tuple(part.stop - part.start + -(part.stop - part.start) % stride for part in cut)
    around = (0, 0, 0) if motion is None else reach(motion, shape)
    part = tuple(
        slice(max(0, each.start - extra), min(each.stop + extra, length))
        for each, extra, length in zip(cut, around, whole, strict=True)
    )
    offset = tuple(each.start - read.start for each, read in zip(cut, part, strict=True))
    read = [max(each.stop - each.start, start + side) for each, start, side in zip(part, offset, shape, strict=True)]
    grid = None if motion is None else sampling_grid(motion, shape, read, offset)
    return _Window(part, shape, tuple(read), grid)


def _present(prepared: PreparedCase, names: Sequence[str], labels: Tensor, cut: tuple[slice, ...]) -> set[str]:
    """Name the structures that have a voxel in the patch; where nobody annotated one, the teacher says so."""
    # counted as unsigned 16 bit numbers, which takes a fifth of the time of sorting
    values = set(np.bincount(labels.numpy().ravel().view(np.uint16)).nonzero()[0].astype(np.int16).tolist())
    annotated = prepared.case.structures
    present = {name for name in names if values.intersection(annotated.get(name, ()))}
    alone = [name for name in names if name not in annotated]
    return present | {name for name in alone if prepared.teacher and (prepared.teacher.part(name, cut) > 0.5).any()}


def _choose_names(
    names: list[str], present: set[str], most: int, negatives: float, rng: np.random.Generator
) -> tuple[str, ...]:
    """Draw structures of the patch first, then absent ones up to their share, in random order; at least one."""
    rng.shuffle(names)
    here = [name for name in names if name in present][:most]
    absent = [name for name in names if name not in present][: most - len(here)]
    if negatives < 1:
        wanted = len(here) * negatives / (1 - negatives)
        absent = absent[: max(int(wanted + rng.random()), 0 if here else 1)]
    return (*here, *absent)


def _masks(labels: Tensor, values: Sequence[Sequence[int]]) -> Tensor:
    """Make a mask of zeros and ones of each list of values."""
    masks = torch.empty(len(values), *labels.shape)
    for mask, own in zip(masks, values, strict=True):
        if not own:
            mask.zero_()
        for value in own[:1]:
            torch.eq(labels, value, out=mask)  # a comparison takes a fiftieth of the time of ``isin``
        for value in own[1:]:
            mask.logical_or_(labels == value)
    return masks


def _teacher(stored: StoredMasks, names: Sequence[str], window: _Window) -> Tensor:
    """Cut the teacher's masks as the image was cut, and move them as it was moved."""
    masks = torch.full((len(names), *window.shape), torch.nan)
    rows = [row for row, name in enumerate(names) if name in stored.names]
    if rows:
        known = torch.from_numpy(np.stack([stored.part(names[row], window.part) for row in rows]))
        masks[rows] = window.patch(known, "nearest" if stored.hard else "bilinear", beyond=0)
    return masks
