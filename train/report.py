"""The report of a run: one HTML file that needs nothing else, for who asks what was trained and whether it went well.

    python -m train.report FOLDER

makes it anew from what the run left in its folder: ``run.json``, a history a phase, ``ranks.json``, ``overlays.npz``.
"""

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import lorkd_monailabel
from lorkd_monailabel.drafts import draft_of
from train.bench.report import need_matplotlib
from train.reporting.charts import color_of_department, curves, in_order, loss_chart, pace_chart, title_of
from train.reporting.history import WINDOW, Record, ends, histories, seconds_at_work
from train.reporting.overlays import Overlay, draw, load_overlays, save_overlays
from train.reporting.page import NOTHING, Cell, Page, number, said, span

NAME = "report.html"
PHASES = {
    "pretrain": "Training of the foundation",
    "warmup": "Warm-up of the base",
    "joint": "Base and experts together",
    "finetune": "Retraining of the expert",
}
REASONS = {
    "loss_reduction": "its reduction",
    "nothing_learned": "no loss fell",
    "equal": "equal for all",
    "given": "given in the config",
    "kept": "kept from before",
}
WAITING_IS_MUCH = 0.1


def main(argv: Sequence[str] | None = None) -> int:
    """Make the report of a folder anew; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m train.report", description="Make the report of a run anew.")
    parser.add_argument("folder", type=Path, help="what the run left: its output")
    parser.add_argument("--title", default="", help="of the report (default: the folder's name)")
    arguments = parser.parse_args(argv)
    try:
        path = write_report(
            arguments.folder, title=arguments.title or f"Training run: {arguments.folder.resolve().name}"
        )
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    print(f"report {path}")
    return 0


def write_report(folder: Path, *, title: str, overlays: Sequence[Overlay] = ()) -> Path:
    """Write ``report.html`` of what lies in a run's folder; return its path.

    Args:
        folder: of the run, with the histories of its phases.
        title: of the report.
        overlays: kept in the folder for the next report; none takes those that are kept there.

    Raises:
        ValueError: matplotlib is not installed, the folder has no history, or a file in it can't be read.
    """
    need_matplotlib()
    phases = histories(folder)
    if not phases:
        raise ValueError(f"{folder} has no history of a run (*.jsonl); name the output folder of one")
    kept = folder / "overlays.npz"
    if overlays:
        save_overlays(overlays, kept)
    shown = load_overlays(kept) if kept.exists() else []
    run, ranks = _read(folder / "run.json"), _read(folder / "ranks.json")
    style = Path(__file__).with_name("report.css").read_text(encoding="utf-8")
    page = Page(title, subtitle=_when(phases), style=style)
    _summary(page, phases, run)
    for name, records in phases.items():
        _losses(page, name, records)
    _ranks(page, ranks)
    _overlays(page, shown)
    for name, records in phases.items():
        _pace(page, name, records)
    _provenance(page, run)
    page.footer(
        f"Made by lorkd_monailabel {lorkd_monailabel.__version__} on {datetime.now(UTC):%Y-%m-%d %H:%M} UTC. "
        "For research; not a medical device."
    )
    with draft_of(folder / NAME) as draft:
        draft.write_bytes(bytes(page))
    return folder / NAME


def _read(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON ({error}); remove it and make the report without it") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} is no JSON object; remove it and make the report without it")
    return values


def _when(phases: Mapping[str, Sequence[Record]]) -> str:
    times = [datetime.fromtimestamp(record.time, UTC) for own in phases.values() for record in (own[0], own[-1])]
    return f"From {min(times):%Y-%m-%d %H:%M} to {max(times):%Y-%m-%d %H:%M} UTC"


def _summary(page: Page, phases: Mapping[str, Sequence[Record]], run: Mapping[str, Any]) -> None:
    name, records = list(phases.items())[-1]
    first, last = ends([record.loss for record in records])
    seconds = sum(map(seconds_at_work, phases.values()))
    page.tiles(
        {
            "steps": f"{sum(own[-1].step for own in phases.values()):,}",
            "time at work": span(seconds),
            "loss, first to last": f"{number(first, 3).text} → {number(last, 3).text}",
            "samples per second": number(records[-1].samples_per_second, 2).text,
            "waiting for samples": f"{number(100 * records[-1].waiting, 0).text} %",
        }
    )
    departments = [title_of(each) for each in curves(records)]
    where = f" on {run['device']}" if isinstance(run.get("device"), str) else ""
    page.text(
        f"The network learned {len(departments)} {'department' if len(departments) == 1 else 'departments'} "
        f"({', '.join(departments)}){where}. The loss says how far its masks are from the reference: lower is better, "
        "and a department whose curve still falls at its end would gain from more steps. First and last are means over "
        f"{100 * WINDOW:.0f} % of the steps of the phase “{phase_title(name)}”."
    )
    if records[-1].waiting > WAITING_IS_MUCH:
        page.text(
            f"The device waited {100 * records[-1].waiting:.0f} % of the time for samples; raise data.workers, or set "
            "data.augment=false to see what the augmentation costs.",
            "advice",
        )


def _losses(page: Page, name: str, records: Sequence[Record]) -> None:
    page.section(f"{phase_title(name)}: losses")
    lines = curves(records)
    page.figure(
        f"Pale: every step. Full colour: mean over {100 * WINDOW:.0f} % of the steps.",
        loss_chart(records),
        f"Curves of the loss over {records[-1].step} steps, of all departments and of "
        f"{', '.join(map(title_of, lines))}; the table below gives their ends.",
    )
    losses = {"All departments": [record.loss for record in records if math.isfinite(record.loss)]}
    losses |= {department: values.tolist() for department, (_, values) in lines.items()}
    rows = []
    for department, values in losses.items():
        first, last = ends(values)
        fall = 1 - last / first if first else 0.0
        color = color_of_department(department)
        change = replace(number(-100 * fall, 0), color=color, bar=fall)
        steps = Cell(f"{len(values):,}", number=True)
        rows.append([Cell(title_of(department), color=color), steps, number(first, 3), number(last, 3), change])
    head = ("department", "steps with it", "first loss", "last loss", "change in %")
    page.table(f"{phase_title(name)}: the loss of each department, first and last.", head, rows)


def _ranks(page: Page, told: Mapping[str, Any]) -> None:
    own = {name: choice for name, choice in _table(told, "departments").items() if isinstance(choice, dict)}
    if not own:
        return
    page.section("Ranks of the experts")
    page.text(
        "The rank is the size of a department's expert: how much it may differ from the base that all share. Under the "
        "rule loss_reduction (LoRKD*) a department whose loss fell further in the warm-up gets a higher one."
    )
    highest = {key: max(_positive(each.get(key)) for each in own.values()) or 1.0 for key in ("reduction", "rank")}
    parameters = _table(told, "parameters")
    rows = []
    for name in in_order(own):
        choice = own[name]
        color = color_of_department(name)
        bars = {key: _positive(choice.get(key)) / highest[key] for key in highest}
        rows.append(
            [
                Cell(title_of(name), color=color),
                number(choice.get("before"), 3),
                number(choice.get("after"), 3),
                replace(number(choice.get("reduction"), 3), color=color, bar=bars["reduction"]),
                replace(number(choice.get("rank"), 0), color=color, bar=bars["rank"]),
                number(parameters.get(name), 0),
                Cell(REASONS.get(str(choice.get("reason")), str(choice.get("reason", NOTHING)))),
            ]
        )
    head = ("department", "loss before", "loss after", "reduction", "rank", "parameters", "why")
    page.table("Loss before and after the warm-up, its reduction, and the rank that follows.", head, rows)


def _table(tree: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Give a table of what a file says, empty where it says something else."""
    value = tree.get(key)
    return value if isinstance(value, dict) else {}


def _positive(value: object) -> float:
    return max(float(value), 0.0) if isinstance(value, int | float) and math.isfinite(value) else 0.0


def _overlays(page: Page, overlays: Sequence[Overlay]) -> None:
    if not overlays:
        return
    page.section("Samples")
    page.text(
        "A slice of one patch of each department, from the data of the run: the image, the reference drawn by people "
        "or taken from the data set, and what the trained network draws. The patient's right is on the left. These are "
        "images of patients: keep this file as you keep those.",
    )
    page.gallery(
        [
            (
                own.title,
                draw(own),
                f"{own.title}: the image, the reference and the prediction beside each other, with outlines of "
                f"{', '.join(own.names) or 'nothing'}.",
            )
            for own in overlays
        ]
    )


def _pace(page: Page, name: str, records: Sequence[Record]) -> None:
    page.section(f"{phase_title(name)}: learning rate and pace")
    last = records[-1]
    page.figure(
        "Throughput and waiting are means since the process started; a resumed run counts anew.",
        pace_chart(records),
        f"Over {last.step} steps: the learning rate; samples per second, {last.samples_per_second:.2f} at the end; "
        f"waiting for samples, {100 * last.waiting:.0f} % of the time at the end.",
    )


def _provenance(page: Page, run: Mapping[str, Any]) -> None:
    if not run:
        return
    page.section("Where this run comes from")
    git = _table(run, "git")
    told = {
        "last started": run.get("date"),
        "revision of the code": git.get("revision", "not from a checkout"),
        "changed since that revision": git.get("dirty"),
        "seed": run.get("seed"),
        "device": run.get("device"),
        "cores": run.get("cores"),
        "processes": run.get("world_size"),
        **{f"version of {name}": own for name, own in _table(run, "versions").items()},
    }
    page.table("What another run would need to repeat this one.", ("what", "value"), _rows(told))
    page.tables(("key", "value"), _settings(run))


def _settings(run: Mapping[str, Any]) -> dict[str, list[list[Cell]]]:
    """Lay the settings out as a table of their own for each table of the config."""
    top = _table(run, "config")
    inner = {key: value for key, value in top.items() if isinstance(value, dict) and value}
    tables = {"Settings": {key: value for key, value in top.items() if key not in inner}}
    tables |= {f"Settings: [{key}]": flat(value) for key, value in inner.items()}
    return {caption: _rows(values) for caption, values in tables.items() if values}


def _rows(values: Mapping[str, Any]) -> list[list[Cell]]:
    return [[Cell(name), Cell(said(value))] for name, value in values.items()]


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten tables within tables: ``{"data": {"patch": 8}}`` -> ``{"data.patch": 8}``."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def phase_title(name: str) -> str:
    """Give the title of a phase by the name of its history."""
    return PHASES.get(name, name.replace("_", " "))


if __name__ == "__main__":
    raise SystemExit(main())
