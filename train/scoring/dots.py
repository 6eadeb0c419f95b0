"""A plot of compared models: a dot with its interval for each department and run."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lorkd_monailabel.drafts import draft_of
from train.scoring.intervals import METRICS, Estimate
from train.scoring.paper_tables import Run, part_name

SPREAD = 0.6
"""Of the room between two departments, how much the runs' dots take."""


def plot(runs: Sequence[Run], path: Path, *, grid: str) -> None:
    """Draw a panel for each metric that there is: departments from above, the average below them."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    metrics = [metric for metric in METRICS if runs[0].summaries[metric]]
    parts = [part for part in runs[0].summaries["dsc"] if not part.structure]
    size = (5.5 * len(metrics), 1.5 + 0.2 * len(parts) * max(2, len(runs)))
    figure, panels = pyplot.subplots(1, len(metrics), figsize=size, sharey=True, squeeze=False, layout="constrained")
    offsets = np.linspace(-SPREAD / 2, SPREAD / 2, len(runs)) if len(runs) > 1 else np.zeros(1)
    for metric, panel in zip(metrics, panels[0], strict=True):
        for run, offset in zip(runs, offsets, strict=True):
            summary = run.summaries[metric]
            there = {place + offset: summary[part] for place, part in enumerate(parts) if part in summary}
            values = [100 * each.value for each in there.values()]
            reach = np.transpose([_reach(each) for each in there.values()])
            panel.errorbar(values, list(there), xerr=reach, fmt="o", capsize=2, label=run.name)
        panel.set_xlabel(f"{metric.upper()} (%), grid {grid}")
        panel.grid(axis="x", alpha=0.3)
        panel.axhline(len(parts) - 1.5, color="grey", linewidth=0.8)
    panels[0][0].set_yticks(range(len(parts)), [part_name(part) for part in parts])
    panels[0][0].invert_yaxis()
    figure.legend(*panels[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=min(4, len(runs)))
    with draft_of(path) as draft:
        figure.savefig(draft, dpi=120, format="png")
    pyplot.close(figure)


def _reach(estimate: Estimate) -> tuple[float, float]:
    """Give how far the interval reaches to both sides, in percent; nowhere without one."""
    low, high = estimate.interval
    if np.isnan(low):
        return 0.0, 0.0
    return max(0.0, 100 * (estimate.value - low)), max(0.0, 100 * (high - estimate.value))
