"""Overlays: a slice of a sample with the outlines of the reference beside those of the prediction."""

import io
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from lorkd_monailabel.drafts import draft_of
from lorkd_monailabel.learning.sampler import ROUND, department_at
from lorkd_monailabel.learning.samples import Sample, Samples
from train.reporting.charts import in_order, title_of
from train.reporting.picture import color_of, show_slice

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MODALITIES = {"ct": "CT", "mri": "MRI"}
WINDOW_PERCENTS = (1, 99)
ABREAST = 3
"""Names in a row of the legend."""


@dataclass(frozen=True)
class Overlay:
    """A slice and what is outlined on it.

    Attributes:
        title: stands above.
        image: ``(X, Y)``.
        reference: masks ``(N, X, Y)``.
        prediction: masks ``(N, X, Y)``.
        names: N structures.
    """

    title: str
    image: np.ndarray
    reference: np.ndarray
    prediction: np.ndarray
    names: tuple[str, ...]


def first_samples(samples: Samples, *, each: int = 4) -> list[Sample]:
    """Give the first samples of every department in a stream: the same ones for the same settings.

    Args:
        samples: stream.
        each: most of a department.
    """
    counts: dict[str, int] = {}
    chosen = []
    for index in range(each * ROUND):  # a department has at least one sample a round
        name = department_at(index, samples.weights, seed=samples.seed)
        counts[name] = counts.get(name, 0) + 1
        if counts[name] <= each:
            chosen.append(samples[index])
    return chosen


def overlays_of(samples: Iterable[Sample], predict: Callable[[Sample], Tensor]) -> list[Overlay]:
    """Make an overlay of each department: the axial slice of its samples that shows most structures, then most voxels.

    Args:
        samples: of any departments; one without a reference voxel gives no overlay.
        predict: sample -> probabilities ``(N, X, Y, Z)`` of its names; asked once a department.

    Returns:
        In the vocabulary's order of departments; structures that were not annotated are left out.
    """
    best: dict[str, tuple[tuple[int, int], int, Sample]] = {}
    for sample in samples:
        sizes = _known(sample, sample.masks).sum(dim=(1, 2))  # (N, Z)
        interest = [(int((column > 0).sum()), int(column.sum())) for column in sizes.T]
        most = max(range(len(interest)), key=interest.__getitem__)
        if interest[most] > best.get(sample.department, ((0, 0),))[0]:
            best[sample.department] = interest[most], most, sample
    chosen = [best[name] for name in in_order(best)]
    return [_overlay(sample, position, predict(sample)) for _, position, sample in chosen]


def _known(sample: Sample, masks: Tensor) -> Tensor:
    return masks if sample.annotated is None else masks[sample.annotated]


def _overlay(sample: Sample, position: int, probabilities: Tensor) -> Overlay:
    reference = (_known(sample, sample.masks)[..., position] > 0.5).cpu().numpy()
    prediction = (_known(sample, probabilities)[..., position] > 0.5).cpu().numpy()
    names = [name for row, name in enumerate(sample.names) if sample.annotated is None or sample.annotated[row]]
    shown = [row for row in range(len(names)) if reference[row].any() or prediction[row].any()]
    return Overlay(
        title=f"{title_of(sample.department)}, {MODALITIES.get(sample.modality, sample.modality)}",
        image=sample.image[0, ..., position].float().cpu().numpy(),
        reference=reference[shown],
        prediction=prediction[shown],
        names=tuple(names[row] for row in shown),
    )


def draw(overlay: Overlay) -> bytes:
    """Draw an overlay as a PNG: the slice, the reference on it, the prediction on it, and whose colours those are.

    Raises:
        ValueError: a structure is unknown, or the shapes do not agree.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    shape = (len(overlay.names), *overlay.image.shape)
    if overlay.reference.shape != shape or overlay.prediction.shape != shape:
        shapes = f"{overlay.reference.shape} and {overlay.prediction.shape}"
        raise ValueError(f"overlay {overlay.title!r} has masks of shapes {shapes}; both must have {shape}")
    low, high = np.percentile(overlay.image, WINDOW_PERCENTS)
    width, height = overlay.image.shape
    # fixed, in inches: matplotlib's own ways to find the room draw every figure several times
    tall, head, foot = min(3.4, 1.65 * height / width), 0.25, 0.1 + 0.19 * -(-len(overlay.names) // ABREAST)
    whole = tall + head + foot
    figure = Figure(figsize=(5, whole))
    room = {"left": 0.01, "right": 0.99, "wspace": 0.03, "bottom": foot / whole, "top": 1 - head / whole}
    panels = figure.subplots(1, 3, gridspec_kw=room)
    drawn = (overlay.reference[:0], overlay.reference, overlay.prediction)
    for panel, title, masks in zip(panels, ("image", "reference", "prediction"), drawn, strict=True):
        show_slice(panel, overlay.image, window=(low, max(high, low + 1e-6)), smooth=True)
        panel.set_title(title, fontsize=9, y=1.0)
        frame = {"xlim": panel.get_xlim(), "ylim": panel.get_ylim()}
        for name, mask in zip(overlay.names, masks, strict=False):
            if mask.any():
                _outline(panel, mask, color_of(name))
        panel.set(**frame)  # outlines along the border would widen it
    lines = [Line2D([], [], color=color_of(name), linewidth=2, label=name) for name in overlay.names]
    if lines:
        figure.legend(handles=lines, loc="lower center", ncols=min(ABREAST, len(lines)), frameon=False, fontsize=8)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=170, metadata={"Software": None})
    return picture.getvalue()


def _outline(panel: "Axes", mask: np.ndarray, color: tuple[float, float, float]) -> None:
    """Draw around the voxels of a mask, also where it touches the border."""
    padded = np.pad(mask.astype(float), 1).T
    rows, columns = (np.arange(-1, size - 1) for size in padded.shape)
    lines = panel.contour(columns, rows, padded, levels=[0.5], colors=[color], linewidths=1.4)
    lines.set_clip_on(False)  # half of a line along the border lies beyond it


def save_overlays(overlays: Sequence[Overlay], path: Path) -> None:
    """Write overlays, whole or not at all, so that a report can be made anew."""
    arrays: dict[str, np.ndarray] = {
        "told": np.array(json.dumps([{"title": own.title, "names": own.names} for own in overlays]))
    }
    for number, own in enumerate(overlays):
        arrays[f"image{number}"] = own.image.astype(np.float16)
        arrays[f"reference{number}"] = own.reference.astype(bool)
        arrays[f"prediction{number}"] = own.prediction.astype(bool)
    with draft_of(path, suffix=".npz") as draft:
        np.savez_compressed(draft, **arrays)


def load_overlays(path: Path) -> list[Overlay]:
    """Read overlays.

    Raises:
        ValueError: the file holds something else.
    """
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
            return [
                Overlay(
                    title=str(told["title"]),
                    image=arrays[f"image{number}"].astype(np.float32),
                    reference=arrays[f"reference{number}"],
                    prediction=arrays[f"prediction{number}"],
                    names=tuple(map(str, told["names"])),
                )
                for number, told in enumerate(json.loads(str(arrays["told"])))
            ]
    except Exception as error:  # damaged bytes make the reader of archives raise nearly anything
        raise ValueError(f"{path} holds no overlays ({error}); remove it and make the report without them") from error
