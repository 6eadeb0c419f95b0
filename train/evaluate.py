"""Measure how well a store's experts agree with the labels of cases: Dice on each volume's own grid.

python -m train.evaluate train/configs/evaluate.toml --set cases=cases.jsonl --set store=STORE
"""

import csv
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

from lorkd_monailabel.departments import structure
from lorkd_monailabel.learning.cases import Case, read_cases
from lorkd_monailabel.learning.metrics import dice
from lorkd_monailabel.predictor import Predictor
from lorkd_monailabel.prompts import Target
from lorkd_monailabel.store import ExpertStore
from lorkd_monailabel.volumes import read_labels, read_volume
from train.config import parse


@dataclass(frozen=True)
class EvaluateConfig:
    """Agreement of a store's experts with labelled cases.

    Attributes:
        cases: JSON lines, see ``lorkd_monailabel.learning.cases``.
        store: of the experts.
        splits: keep these; empty keeps all.
        sources: keep these; empty keeps all.
        structures: compare these; empty compares all that are annotated and known.
        limit: most cases of a source; 0 takes all.
        output: CSV file to write; empty for none.
        device: to run on.
    """

    cases: str
    store: str
    splits: list[str] = field(default_factory=lambda: ["validation"])
    sources: list[str] = field(default_factory=list)
    structures: list[str] = field(default_factory=list)
    limit: int = 0
    output: str = ""
    device: str = "cpu"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the recipe; returns the exit status."""
    config: EvaluateConfig = parse(EvaluateConfig, __doc__ or "", argv)
    try:
        rows = evaluate(config)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    if config.output:
        write_csv(rows, Path(config.output))
    print(table(rows))
    return 0


def evaluate(config: EvaluateConfig) -> list[dict[str, str | float]]:
    """Segment every case and compare; a row for each case and structure."""
    cases = read_cases(config.cases, splits=config.splits, sources=config.sources)
    counts: dict[str, int] = defaultdict(int)
    predictor = Predictor(ExpertStore(config.store), device=config.device)
    rows: list[dict[str, str | float]] = []
    for case in tqdm(cases, desc="evaluate", unit="case"):
        counts[case.source] += 1
        if not config.limit or counts[case.source] <= config.limit:
            rows += evaluate_case(predictor, case, config.structures)
    if not rows:
        raise ValueError(f"no structure of {config.cases} has an expert in {config.store}; evaluate other cases")
    return rows


def evaluate_case(predictor: Predictor, case: Case, structures: Sequence[str] = ()) -> list[dict[str, str | float]]:
    """Compare one case: each annotated structure that an expert knows (and that is asked for, if any is named)."""
    targets = [
        Target(name, structure(name))
        for name in case.structures
        if name in predictor.structures(case.departments[name]) and (not structures or name in structures)
    ]
    if not targets:
        return []
    volume = read_volume(case.image, case.modality)
    reference, _ = read_labels(case.label)
    prediction = predictor.segment(volume, targets)
    return [
        {
            "source": case.source,
            "subject": case.subject,
            "department": answer.department,
            "structure": answer.structure,
            "revision": float(answer.revision or 0),
            "dice": dice(
                prediction.label_map.array == answer.value, np.isin(reference, case.structures[answer.structure])
            ),
        }
        for answer in prediction.answers
    ]


def table(rows: Sequence[dict[str, str | float]]) -> str:
    """Lay out the mean Dice of every structure and department, and the mean over all structures, as text."""
    by_structure: dict[tuple[str, str], list[float]] = defaultdict(list)
    for row in rows:
        by_structure[str(row["department"]), str(row["structure"])].append(float(row["dice"]))
    means = {key: float(np.mean(values)) for key, values in by_structure.items()}
    lines = [f"{'department':<14}{'structure':<32}{'cases':>6}{'Dice':>8}"]
    for department in dict.fromkeys(key[0] for key in sorted(means)):
        own = {key[1]: mean for key, mean in means.items() if key[0] == department}
        lines += [
            f"{department:<14}{name:<32}{len(by_structure[department, name]):>6}{mean:>8.3f}"
            for name, mean in own.items()
        ]
        lines.append(f"{department:<14}{'mean':<32}{'':>6}{np.mean(list(own.values())):>8.3f}")
    lines.append(f"{'all':<14}{'mean of structures':<32}{'':>6}{np.mean(list(means.values())):>8.3f}")
    return "\n".join(lines)


def write_csv(rows: Sequence[dict[str, str | float]], path: Path) -> None:
    """Write the rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    raise SystemExit(main())
