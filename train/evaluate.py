"""Measure how well a model agrees with the labels of cases: Dice (DSC) and surface Dice (NSD), with intervals.

    python -m train.evaluate train/configs/evaluate.toml --set cases=cases.jsonl --set model=MODEL

A model is a store, of which the served revisions are measured, a foundation or a folder of specialists, see
``train.scoring.models``. Writes ``<output>.csv`` (a row for each case, structure and grid) and ``<output>.json`` (the
model, its cost, the cases, where the run comes from). Stop with Ctrl+C and run again to go on; run
again after the end, it prints the tables.
"""

import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from lorkd_monailabel import __version__
from lorkd_monailabel.departments import structure
from lorkd_monailabel.json_files import write_json
from lorkd_monailabel.learning.cases import Case, departments_of, read_cases
from lorkd_monailabel.learning.metrics import dice, surface_dice
from lorkd_monailabel.predictor import OVERLAP, Predictor
from lorkd_monailabel.process import tune
from lorkd_monailabel.prompts import Target
from lorkd_monailabel.resampling import resample
from lorkd_monailabel.store import ExpertStore
from lorkd_monailabel.volumes import Grid, canonical_grid, read_labels, read_volume, same_grid
from train.config import parse
from train.reporting.provenance import provenance
from train.scoring.intervals import Resamples
from train.scoring.models import Model, cost_of, open_model
from train.scoring.paper_tables import summary_table
from train.scoring.scores import Draft, Score, read_about, read_scores, write_scores
from train.scoring.side_by_side import side_by_side
from train.scoring.tables import markdown

NATIVE = "native"


@dataclass(frozen=True)
class EvaluateConfig:
    """Agreement of a model with labelled cases.

    Attributes:
        cases: JSON lines, see ``lorkd_monailabel.learning.cases``.
        model: path, see ``train.scoring.models``.
        output: of the files, without their endings.
        splits: keep these; empty keeps all.
        sources: keep these; empty keeps all.
        structures: compare these; empty compares all that are annotated and known.
        limit: most cases of a source, or source, or ``default``, -> most cases; 0 takes all.
        grids: ``native``, the grid of each image, and spacings of the canonical grid in mm, as the paper's ``1x1x3``.
        tolerance_mm: of the surface Dice.
        no_distances: sources whose spacing is not true: they have no surface Dice.
        spacing_mm: department, or ``default``, -> spacing of a foundation's grid; empty for what its header says.
        queries: path of a foundation's query table; empty for the package's own.
        overlap: of neighbouring windows.
        resamples: of the subjects, for the intervals.
        seed: of the resamples.
        device: to run on.
        processes: that share the cases, and the threads.
    """

    cases: str
    model: str
    output: str
    splits: list[str] = field(default_factory=lambda: ["validation"])
    sources: list[str] = field(default_factory=list)
    structures: list[str] = field(default_factory=list)
    limit: int | dict[str, int] = 0
    grids: list[str] = field(default_factory=lambda: [NATIVE, "1x1x3"])
    tolerance_mm: float = 1.0
    no_distances: list[str] = field(default_factory=list)
    spacing_mm: dict[str, float | list[float]] = field(default_factory=dict)
    queries: str = ""
    overlap: float = OVERLAP
    resamples: int = 10_000
    seed: int = 0
    device: str = "cpu"
    processes: int = 1


def main(argv: Sequence[str] | None = None) -> int:
    """Run the recipe; returns the exit status."""
    config: EvaluateConfig = parse(EvaluateConfig, __doc__ or "", argv)
    try:
        scores = evaluate(config)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; run again to go on after the last case that was done", file=sys.stderr)
        return 130
    resamples = Resamples(scores, resamples=config.resamples, seed=config.seed)
    for grid in config.grids:
        print(markdown(summary_table([score for score in scores if score.grid == grid], resamples, grid)), end="\n\n")
    return 0


def evaluate(config: EvaluateConfig) -> list[Score]:
    """Segment every case, compare, and write; what was done before is read."""
    for grid in config.grids:
        if grid != NATIVE:
            spacing_of(grid)
    cases = chosen_cases(config)
    output = Path(config.output.removesuffix(".csv"))
    csv, about, draft = (output.with_name(output.name + end) for end in (".csv", ".json", ".draft.jsonl"))
    with TemporaryDirectory() as folder:
        model = open_model(
            Path(config.model),
            departments=departments_of(cases),
            folder=Path(folder),
            spacing_mm=config.spacing_mm,
            queries=config.queries,
        )
        identity = identity_of(config, model, cases)
        if csv.exists() and read_about(about).get("identity") == identity:
            return read_scores(csv)
        under_way = Draft(draft, identity)
        done = len(under_way.done)
        compared = side_by_side(partial(_compared, model.store.folder, config), cases[done:], config.processes)
        for own in tqdm(compared, desc="evaluate", unit="case", initial=done, total=len(cases)):
            under_way.append(own)
        scores = [score for own in under_way.done for score in own]
        if not scores:
            draft.unlink()
            raise ValueError(f"{config.model} knows no structure of {config.cases} that is asked for; evaluate others")
        csv.unlink(missing_ok=True)  # of an earlier evaluation, which the new description must not stand beside
        write_json(about, described(config, model, cases, identity))
        write_scores(scores, csv)
    draft.unlink()
    return scores


def _compared(store: Path, config: EvaluateConfig, case: Case) -> list[Score]:
    return evaluate_case(_predictor(store, config.device, config.overlap), case, config)


@lru_cache(1)  # for all cases of a process
def _predictor(store: Path, device: str, overlap: float) -> Predictor:
    tune()
    return Predictor(ExpertStore(store), device=device, overlap=overlap)


def evaluate_case(predictor: Predictor, case: Case, config: EvaluateConfig) -> list[Score]:
    """Compare one case: each annotated structure that the model knows (and that is asked for, if any is named).

    As in SAT and LoRKD each structure is looked at for itself, where its probability is above one half, so that
    structures may overlap (a label map without layers gives such a voxel to the most probable one). That is done
    once, on the grid of the image; on another grid prediction and reference are both brought there by the nearest
    voxel.

    Raises:
        ValueError: image and label can't be read or are on different grids.
    """
    targets = [
        Target(name, structure(name))
        for name in case.structures
        if name in predictor.structures(case.departments[name]) and (not config.structures or name in config.structures)
    ]
    if not targets:
        return []
    volume = read_volume(case.image, case.modality)
    reference = reference_of(case, volume.grid)
    layers = predictor.segment(volume, targets, keep_overlaps=True).layers
    assert layers is not None
    scores = []
    for grid in config.grids:
        target = volume.grid if grid == NATIVE else canonical_grid(volume.grid, spacing_of(grid))
        values = nearest(reference, volume.grid, target)
        for segment, mask in layers.masks():
            name = segment.structure.name
            masks = nearest(mask, volume.grid, target), np.isin(values, case.structures[name])
            nsd = None
            if case.source not in config.no_distances:
                nsd = surface_dice(*masks, spacing_mm=target.spacing_mm, tolerance_mm=config.tolerance_mm)
            scores.append(
                Score(
                    source=case.source,
                    subject=case.subject,
                    case=case.image.name,
                    department=case.departments[name],
                    modality=case.modality,
                    structure=name,
                    grid=grid,
                    dsc=dice(*masks),
                    nsd=nsd,
                    reference_voxels=int(np.count_nonzero(masks[1])),
                    predicted_voxels=int(np.count_nonzero(masks[0])),
                )
            )
    return scores


def nearest(array: np.ndarray, source: Grid, target: Grid) -> np.ndarray:
    """Bring labels or a mask to another grid of the same orientation, or leave them on their own."""
    return resample(torch.from_numpy(array)[None], source, target, "nearest")[0].numpy()


def reference_of(case: Case, grid: Grid) -> np.ndarray:
    """Read the labels of a case, which must be on the grid of its image.

    Raises:
        ValueError: they are not.
    """
    labels, own = read_labels(case.label)
    if not same_grid(own, grid):
        raise ValueError(f"{case.label} is not on the grid of {case.image}; export it on the image's grid")
    return labels


def spacing_of(grid: str) -> tuple[float, float, float]:
    """Read a grid's name: ``1x1x3`` is 1 mm to the right, 1 mm to the front, 3 mm upwards.

    Raises:
        ValueError: it is not of that form.
    """
    try:
        x, y, z = map(float, grid.split("x"))
    except ValueError:
        x = y = z = 0.0
    if not min(x, y, z) > 0:
        raise ValueError(f"grid {grid!r} must be {NATIVE} or three lengths in mm, as 1x1x3; set grids")
    return x, y, z


def chosen_cases(config: EvaluateConfig) -> list[Case]:
    """Read the cases and keep at most ``limit`` of each source."""
    limits = config.limit if isinstance(config.limit, dict) else {"default": config.limit}
    counts: dict[str, int] = {}
    kept = []
    for case in read_cases(config.cases, splits=config.splits, sources=config.sources):
        counts[case.source] = counts.get(case.source, 0) + 1
        limit = limits.get(case.source, limits.get("default", 0))
        if not limit or counts[case.source] <= limit:
            kept.append(case)
    return kept


def identity_of(config: EvaluateConfig, model: Model, cases: Sequence[Case]) -> str:
    """Hash all that the scores follow from, so that no others are taken for them."""
    stamps = [
        (str(path), path.stat().st_size, path.stat().st_mtime_ns) if path.exists() else str(path)
        for case in cases
        for path in (case.image, case.label)
    ]
    told = (
        config.grids,
        config.structures,
        config.tolerance_mm,
        config.no_distances,
        config.spacing_mm,
        config.overlap,
    )
    return _sha256((__version__, model.kind, model.sha256, told, list(_lines(cases)), stamps))


def described(config: EvaluateConfig, model: Model, cases: Sequence[Case], identity: str) -> dict[str, Any]:
    """Tell what was evaluated, what it costs, on which cases, and where the figures come from."""
    spacings = {name: model.store.header(name, own)["spacing_mm"] for name, own in model.revisions.items()}
    return {
        "identity": identity,
        "model": {"kind": model.kind, "sha256": model.sha256, "revisions": model.revisions, "spacing_mm": spacings},
        **asdict(cost_of(model)),
        "cases": {"count": len(cases), "sha256": _sha256(list(_lines(cases)))},
        "provenance": provenance(config, config.seed, device=config.device),
    }


def _lines(cases: Sequence[Case]) -> Iterator[tuple[Any, ...]]:
    for case in cases:
        names = case.image.name, case.label.name
        yield (case.source, case.subject, case.split, case.modality, *names, sorted(case.structures.items()))


def _sha256(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


if __name__ == "__main__":
    raise SystemExit(main())
