"""What a benchmark leaves behind: a Markdown table, a CSV file, a plot, and the machine it ran on."""

import csv
import os
from collections.abc import Sequence
from dataclasses import asdict, fields
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path

import torch

from train.bench.timing import Result
from train.reporting.provenance import cores, device_name

ALLOCATOR = ("GLIBC_TUNABLES", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "LD_PRELOAD")
NOTHING = "-"
"""In the place of a figure that there is not."""

PANEL_INCHES = (5.5, 0.32)


def write_report(results: Sequence[Result], folder: Path, name: str, *, device: str = "cpu") -> str:
    """Write ``name.md``, ``name.csv`` and ``name.png``.

    Args:
        results: at least one.
        folder: made if it is missing.
        name: of the files, without ending.
        device: that the results are of.

    Returns:
        The Markdown.

    Raises:
        ValueError: matplotlib is not installed.
    """
    need_matplotlib()
    folder.mkdir(parents=True, exist_ok=True)
    text = f"{markdown(results)}\n\n{machine(device)}\n"
    (folder / f"{name}.md").write_text(text, encoding="utf-8")
    write_csv(results, folder / f"{name}.csv")
    plot(results, folder / f"{name}.png")
    return text


def need_matplotlib() -> None:
    """Refuse before an hour of measuring rather than after it.

    Raises:
        ValueError: matplotlib is not installed.
    """
    if find_spec("matplotlib") is None:
        raise ValueError("the plot needs matplotlib, which is not installed; pip install 'lorkd-monailabel[train]'")


def markdown(results: Sequence[Result]) -> str:
    """Lay results out as a table: a row for each case and quantity, a column for each way.

    A way is given as a multiple of the floor, the floor itself in seconds, MiB or operations; without a floor all are.
    Why a way could not run stands below the table.
    """
    ways = list(dict.fromkeys(result.way for result in results))
    lines = [f"| case | | {' | '.join(ways)} |", f"|---|---|{'---|' * len(ways)}"]
    for case, phase in dict.fromkeys((result.case, result.phase) for result in results):
        own = {result.way: result for result in results if (result.case, result.phase) == (case, phase)}
        rows = {phase: [_time(own.get(way)) for way in ways]}
        rows[f"{phase}, peak memory"] = [_memory(own.get(way)) for way in ways]
        rows[f"{phase}, operations"] = [_operations(own.get(way), next(iter(own.values()))) for way in ways]
        for quantity, cells in rows.items():
            if set(cells) != {NOTHING}:
                lines.append(f"| {case} | {quantity} | {' | '.join(cells)} |")
    notes: dict[tuple[str, str], list[str]] = {}
    for result in results:
        if result.note:
            notes.setdefault((result.way, result.note), []).append(result.case)
    lines += [f"\n{way}: {note} ({'; '.join(dict.fromkeys(cases))})." for (way, note), cases in sorted(notes.items())]
    return "\n".join(lines)


def machine(device: str = "cpu") -> str:
    """Name what was measured on, in a line: processor, cores, torch, threads, allocator, day."""
    parts = [f"{device_name()}, {cores()} cores usable, {torch.get_num_threads()} threads used"]
    if torch.device(device).type == "cuda":
        parts.insert(0, device_name(device))
    parts.append(f"torch {torch.__version__}")
    told = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", *ALLOCATOR)
    parts += [f"{name}={os.environ[name]}" for name in told if name in os.environ]
    if not any(name in os.environ for name in ALLOCATOR):
        parts.append("the system's own memory allocator")
    parts.append(datetime.now(UTC).strftime("%Y-%m-%d"))
    return "Machine: " + "; ".join(parts) + "."


def write_csv(results: Sequence[Result], path: Path) -> None:
    """Write every field of every result."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=[field.name for field in fields(Result)])
        writer.writeheader()
        writer.writerows(asdict(result) for result in results)


def plot(results: Sequence[Result], path: Path) -> None:
    """Draw a panel for each case and phase: the time of each way, over the floor's or in seconds, as a bar."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = list(dict.fromkeys((result.case, result.phase) for result in results))
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    most = max(sum((result.case, result.phase) == panel for result in results) for panel in panels)
    width, height = PANEL_INCHES
    figure, axes = pyplot.subplots(
        rows, columns, figsize=(width * columns, (height * most + 1) * rows), layout="constrained", squeeze=False
    )
    for axis, (case, phase) in zip(axes.flat, panels, strict=False):
        own = [result for result in results if (result.case, result.phase) == (case, phase) and result.seconds]
        relative = all(result.ratio is not None for result in own)
        values = [(result.ratio if relative else result.seconds) or 0.0 for result in own]
        bars = axis.barh([result.way for result in own], values, color="#4477aa")
        axis.bar_label(bars, labels=[_time(result) for result in own], padding=3, fontsize=8)
        axis.set_xscale("log")
        axis.margins(x=0.25)
        axis.invert_yaxis()
        axis.set_title(f"{case}: {phase}", fontsize=9)
        axis.set_xlabel("times the floor" if relative else "seconds", fontsize=8)
        axis.tick_params(labelsize=8)
        if relative:
            axis.axvline(1.0, color="black", linewidth=0.8)
    for axis in list(axes.flat)[len(panels) :]:
        axis.axis("off")
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


def _time(result: Result | None) -> str:
    if result is None or result.seconds is None:
        return NOTHING
    if result.ratio is None or result.floor:
        return duration(result.seconds)
    return f"{result.ratio:.2f}"


def _memory(result: Result | None) -> str:
    if result is None or result.memory_mib is None:
        return NOTHING
    if result.memory_ratio is None or result.floor:
        return f"{result.memory_mib:.{0 if result.memory_mib >= 10 else 2}f} MiB"
    return f"{result.memory_ratio:.2f}"


def _operations(result: Result | None, floor: Result) -> str:
    if result is None or result.operations is None:
        return NOTHING
    if result is floor or not floor.operations:
        return f"{result.operations:.6g}"
    return f"{result.operations / floor.operations:.4f}"


def duration(seconds: float) -> str:
    """Write seconds in a unit that suits them, with at least two digits."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.{2 if seconds < 10 * size else 1 if seconds < 100 * size else 0}f} {unit}"
    return f"{seconds / 1e-6:.1f} µs"
