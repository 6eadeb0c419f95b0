"""Pictures: a slice of a volume in grey, structures over it in their colours."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lorkd_monailabel.departments import structure
from lorkd_monailabel.resampling import resample
from lorkd_monailabel.volumes import Grid, canonical_grid, read_labels, read_volume

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def overlay(image: Path, labels: Path, values: Mapping[str, int], path: Path) -> None:
    """Draw three slices (coronal, axial, sagittal) of a CT with the label map over them, in the structures' colours.

    Each slice is the one that shows most structures, then most voxels.

    Args:
        image: CT volume.
        labels: label map on its grid.
        values: structure -> value in the label map.
        path: PNG to write.
    """
    import matplotlib
    import torch

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.patches import Patch

    def canonical(array: np.ndarray, grid: Grid) -> np.ndarray:
        target = canonical_grid(grid, grid.spacing_mm)
        return resample(torch.from_numpy(array)[None], grid, target, "nearest")[0].numpy()

    volume = read_volume(image, "ct")
    grey, label = canonical(volume.array, volume.grid), canonical(*read_labels(labels))
    figure, axes = pyplot.subplots(1, 3, figsize=(15, 6), facecolor="black", layout="constrained")
    for axis, panel, title in zip((1, 2, 0), axes, ("coronal", "axial", "sagittal"), strict=True):
        slices = np.moveaxis(label, axis, 0)
        best = max(range(len(slices)), key=lambda index: _interest(slices[index]))
        colors = np.zeros((*slices[best].shape, 4))
        for name, value in values.items():
            colors[slices[best] == value] = (*color_of(name), 0.6)
        show_slice(panel, np.moveaxis(grey, axis, 0)[best], window=(-160, 240), sagittal=axis == 0)
        panel.imshow(colors.transpose(1, 0, 2), origin="lower")
        panel.set_title(title, color="white")
    figure.legend(
        handles=[Patch(color=color_of(name), label=name) for name in values],
        loc="outside lower center",
        ncols=min(6, len(values)),
        labelcolor="white",
        frameon=False,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80, facecolor="black")
    pyplot.close(figure)


def show_slice(
    panel: "Axes", grey: np.ndarray, *, window: tuple[float, float], sagittal: bool = False, smooth: bool = False
) -> None:
    """Show a slice as radiologists look at it: the patient's right is on the left, except in sagittal slices.

    Args:
        panel: of a figure.
        grey: ``(A, B)``, the first axis of the slice runs along the panel's width.
        window: what is black and what is white.
        sagittal: whether the slice runs from back to front.
        smooth: interpolate between voxels.
    """
    interpolation = "bilinear" if smooth else None
    panel.imshow(
        grey.T, cmap="gray", vmin=window[0], vmax=window[1], origin="lower", interpolation=interpolation, aspect="equal"
    )
    panel.axis("off")
    if not sagittal:
        panel.invert_xaxis()


def color_of(name: str) -> tuple[float, float, float]:
    """Give the colour of a structure, red, green and blue in 0..1.

    Raises:
        ValueError: the structure is unknown.
    """
    red, green, blue = structure(name).color
    return red / 255, green / 255, blue / 255


def _interest(labels: np.ndarray) -> tuple[int, int]:
    return len(np.unique(labels)), int(np.count_nonzero(labels))
