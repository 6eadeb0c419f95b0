"""A case's two volumes, each read once: what the rules need to know of them, or why they are of no use."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from lorkd_monailabel.case_lists.lines import Finding, Line, finding
from lorkd_monailabel.case_lists.writing import MOST_VALUES
from lorkd_monailabel.volumes import Grid, Volume, guess_modality, read_labels, read_volume, same_grid

SPACING_MM = (0.05, 20.0)
SHEAR = 0.01
AIR_HU = -200.0


@dataclass(frozen=True)
class Measured:
    """What is known of a case whose volumes can be used.

    Attributes:
        line: the case.
        content: hash of the image's voxels.
        values: those of the label volume but 0.
        millilitres: structure -> volume, 0 where it is absent.
        rightness_mm: structure that is present -> how far right the middle of its voxels lies.
    """

    line: Line
    content: str
    values: frozenset[int]
    millilitres: Mapping[str, float]
    rightness_mm: Mapping[str, float]


def measure(line: Line) -> tuple[Measured | None, list[Finding]]:
    """Read image and label volume, say what is wrong with either or between them, and measure the structures."""
    case = line.case
    findings = []
    volume = labels = None
    try:
        volume = read_volume(case.image, case.modality)
    except (ValueError, OSError) as error:
        findings.append(finding(line, f"image: {error}"))
    try:
        labels, grid = read_labels(case.label)
    except (ValueError, OSError) as error:
        findings.append(finding(line, f"label: {error}"))
    if volume is None or labels is None:
        return None, findings
    wrong = _geometry(volume.grid, grid) or _range(labels)
    if wrong:
        return None, [finding(line, wrong)]
    findings = [finding(line, message, fault=fault) for message, fault in _intensities(volume)]
    return _structures(line, volume, labels), findings


def _geometry(image: Grid, label: Grid) -> str:
    if image.shape != label.shape:
        return f"the label volume has shape {label.shape}, its image {image.shape}; export it on the image's grid"
    if not same_grid(image, label):
        apart = float(np.abs(_corners(image) - _corners(label)).max())
        return f"the label volume lies up to {apart:.2f} mm from where its image does; export it on the image's grid"
    low, high = SPACING_MM
    if not all(low <= length <= high for length in image.spacing_mm):
        spacing = " x ".join(f"{length:g}" for length in image.spacing_mm)
        return f"a spacing of {spacing} mm is outside {low:g} to {high:g} mm; correct the header"
    axes = image.affine[:3, :3] / np.asarray(image.spacing_mm)
    skew = float(np.abs(axes.T @ axes - np.eye(3)).max())
    if skew > SHEAR:
        degrees = float(np.degrees(np.arcsin(min(skew, 1.0))))
        return (
            f"the axes are {degrees:.1f}° from right angles to each other; resample image and label to a straight grid"
        )
    return ""


def _range(labels: np.ndarray) -> str:
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high > MOST_VALUES:
        return f"the label volume has values from {low} to {high}, but 0 to {MOST_VALUES} are kept; number them anew"
    return ""


def _corners(grid: Grid) -> np.ndarray:
    ends = np.array([[0, 0, 0, 1], [*(length - 1 for length in grid.shape), 1]], dtype=np.float64)
    return ends @ grid.affine.T


def _intensities(volume: Volume) -> Iterable[tuple[str, bool]]:
    """Yield what speaks against the modality that the list names, and whether it is a fault."""
    low, high = float(volume.array.min()), float(volume.array.max())
    if volume.modality == "mri":
        if low <= AIR_HU and guess_modality(volume.array) == "ct":
            yield f"values from {low:g} to {high:g} are no MRI but Hounsfield units; write ct", True
    elif _is_z_score(volume.array):
        yield "the CT is a z-score already; train with data.intensities = sat, or list it in Hounsfield units", False
    elif low >= 0:
        yield f"values from {low:g} to {high:g} are no Hounsfield units; take 1024 off, or write mri if it is one", True
    elif low > AIR_HU:
        yield f"a CT from {low:g} to {high:g} has no air (below {AIR_HU:g}); list it in Hounsfield units", True


def _is_z_score(array: np.ndarray) -> bool:
    return abs(float(array.mean())) < 0.1 and abs(float(array.std()) - 1) < 0.1


def _structures(line: Line, volume: Volume, labels: np.ndarray) -> Measured:
    where = np.flatnonzero(labels)
    present, index, counts = np.unique(labels.ravel()[where], return_inverse=True, return_counts=True)
    places = np.stack(
        [np.bincount(index, weights=axis, minlength=len(present)) for axis in np.unravel_index(where, labels.shape)]
    )
    right = volume.grid.affine[0, :3] @ places + volume.grid.affine[0, 3] * counts  # summed over each value's voxels
    millilitres, rightness = {}, {}
    for name, values in line.case.structures.items():
        own = np.isin(present, values)
        voxels = int(counts[own].sum())
        millilitres[name] = voxels * volume.grid.voxel_ml
        if voxels:
            rightness[name] = float(right[own].sum()) / voxels
    content = hashlib.blake2b(np.ascontiguousarray(volume.array, np.float32).data, digest_size=16)
    content.update(repr(volume.grid.shape).encode())
    return Measured(line, content.hexdigest(), frozenset(map(int, present)), millilitres, rightness)
