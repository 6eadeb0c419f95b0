"""Charts of a run's history, as SVG: losses of the departments, learning rate, pace."""

import io
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from lorkd_monailabel.departments import DEPARTMENT_IDS, department
from train.reporting.history import WINDOW, Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS = dict(
    zip(
        DEPARTMENT_IDS,
        ("#4477aa", "#cc3355", "#228833", "#b8860b", "#33a1c9", "#aa3377", "#777777", "#7a4a1e"),
        strict=True,
    )
)
"""Department -> colour, the same in every chart and table; told apart by those who see no red or green."""

OTHER = "#222222"
WIDTH = 10.0
PANELS_ABREAST = 4
POINTS = 500
"""Most points of a line: more can't be seen in print."""


def color_of_department(name: str) -> str:
    """Give the colour of a department; dark grey for a name that is none."""
    return COLORS.get(name, OTHER)


def title_of(name: str) -> str:
    """Give a department's name as it is shown; another name as it is."""
    shown = department(name).name if name in DEPARTMENT_IDS else name
    return f"{shown[:1].upper()}{shown[1:]}"


def in_order(names: Iterable[str]) -> list[str]:
    """Sort departments as the vocabulary has them; others follow by name."""
    order = {name: place for place, name in enumerate(DEPARTMENT_IDS)}
    return sorted(names, key=lambda name: (order.get(name, len(order)), name))


def curves(records: Sequence[Record]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Give the steps and losses of every department that has any, in the vocabulary's order.

    Losses that were not finite are left out.
    """
    found: dict[str, list[tuple[int, float]]] = {}
    for record in records:
        for name, loss in record.losses.items():
            if math.isfinite(loss):
                found.setdefault(name, []).append((record.step, loss))
    return {
        name: (np.array([step for step, _ in found[name]]), np.array([loss for _, loss in found[name]]))
        for name in in_order(found)
    }


def smooth(values: np.ndarray) -> np.ndarray:
    """Replace each value by the mean of those around it: of ``WINDOW`` of all, fewer towards both ends."""
    half = round(len(values) * WINDOW / 2)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    place = np.arange(len(values))
    reach = np.minimum(np.minimum(place, len(values) - 1 - place), half)  # the same on both sides: no lag
    return (sums[place + reach + 1] - sums[place - reach]) / (2 * reach + 1)


def loss_chart(records: Sequence[Record]) -> bytes:
    """Draw a panel of the mean loss and one of each department: every step in pale, smoothed in full colour."""
    from matplotlib.figure import Figure

    finite = [record for record in records if math.isfinite(record.loss)]
    whole = np.array([r.step for r in finite]), np.array([r.loss for r in finite])
    panels = {"All departments": (*whole, OTHER)} if finite else {}
    panels |= {title_of(name): (*line, color_of_department(name)) for name, line in curves(records).items()}
    columns = min(PANELS_ABREAST, max(1, len(panels)))
    rows = max(1, -(-len(panels) // columns))
    figure = Figure(figsize=(WIDTH, height := 2.1 * rows))
    axes = figure.subplots(rows, columns, sharey=True, squeeze=False, gridspec_kw=_room(height, rows, columns, 0.2))
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    for place, (title, (steps, losses, color)) in enumerate(panels.items()):
        axis = axes.flat[place]
        _line(axis, steps, losses, color)
        axis.set_title(title, fontsize=10, loc="left", y=1.0, color=color, fontweight="bold")
        axis.set_xlim(0, records[-1].step)
        if place % columns == 0:
            axis.set_ylabel("loss", fontsize=9)
        if place + columns >= len(panels):
            axis.set_xlabel("step", fontsize=9)
    seen = [losses for _, losses, _ in panels.values()] or [np.ones(1)]
    highest = max(float(np.percentile(np.concatenate(seen), 99.5)), *(float(smooth(losses).max()) for losses in seen))
    lowest = min(0.0, *(float(losses.min()) for losses in seen))
    axes[0, 0].set_ylim(lowest, 1.05 * highest or 1.0)  # a single wild step must not flatten all curves
    return _svg(figure)


def pace_chart(records: Sequence[Record]) -> bytes:
    """Draw the learning rate, the throughput and the share of time that the loop waited for samples."""
    from matplotlib.figure import Figure

    steps = np.array([record.step for record in records])
    figure = Figure(figsize=(WIDTH, 2.4))
    quantities: Mapping[str, Sequence[float]] = {
        "learning rate": [record.learning_rate for record in records],
        "samples per second": [record.samples_per_second for record in records],
        "waiting for samples (% of the time)": [100 * record.waiting for record in records],
    }
    axes = figure.subplots(1, 3, gridspec_kw=_room(2.4, 1, 3, 0.6))
    for axis, (title, values) in zip(axes, quantities.items(), strict=True):
        kept = _thin(len(steps))
        axis.plot(steps[kept], np.array(values)[kept], color="#335577", linewidth=1.4)
        axis.set_title(title, fontsize=10, loc="left", y=1.0)
        axis.set_xlabel("step", fontsize=9)
        highest = max((value for value in values if math.isfinite(value)), default=1.0)
        axis.set_ylim(0, 1.1 * max(highest, 10.0 if "waiting" in title else 0.0) or 1.0)
        axis.yaxis.set_major_formatter("{x:g}")
        _plain(axis)
    return _svg(figure)


def _room(height: float, rows: int, columns: int, across: float) -> dict[str, float]:
    """Give the room around panels, and ``across`` between two columns of them; lengths in inches.

    Fixed: matplotlib's own ways to find the room draw every figure several times.
    """
    left, right, top, bottom, down = 0.6, 0.15, 0.3, 0.5, 0.6
    wide = (WIDTH - left - right - (columns - 1) * across) / columns
    high = (height - top - bottom - (rows - 1) * down) / rows
    ends = {"left": left / WIDTH, "right": 1 - right / WIDTH, "top": 1 - top / height, "bottom": bottom / height}
    return {**ends, "wspace": across / wide, "hspace": down / high}


def _line(axis: "Axes", steps: np.ndarray, values: np.ndarray, color: str) -> None:
    kept = _thin(len(values))
    axis.plot(steps[kept], values[kept], color=color, alpha=0.3, linewidth=0.7)
    axis.plot(steps[kept], smooth(values)[kept], color=color, linewidth=1.8, marker="." if len(values) < 3 else None)
    _plain(axis)


def _plain(axis: "Axes") -> None:
    axis.grid(axis="y", color="#dddddd", linewidth=0.6)
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=8)
    axis.locator_params(axis="x", integer=True, nbins=4)


def _thin(count: int) -> np.ndarray:
    return np.unique(np.linspace(0, count - 1, min(count, POINTS)).round().astype(int))


def _svg(figure: "Figure") -> bytes:
    import matplotlib

    picture = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "lorkd"}):  # the same history, the same bytes
        figure.savefig(picture, format="svg", metadata={"Date": None, "Creator": None})
    return picture.getvalue()
