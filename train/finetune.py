"""Retrain one department's expert on new cases and publish it; base and other experts stay as they are.

    python -m train.finetune train/configs/finetune.toml --set data.cases=cases.jsonl --set department=abdomen

Stop with Ctrl+C and run again to go on.
"""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from lorkd_monailabel.departments import department as find_department
from lorkd_monailabel.experts import extract
from lorkd_monailabel.learning.finetuning import finetune
from lorkd_monailabel.learning.training import Interrupted, stop_on_signal
from lorkd_monailabel.networks.segmenter import build_segmenter
from lorkd_monailabel.store import ExpertStore
from train.bar import Bar
from train.config import parse
from train.data import prepared_cases, samples_of, sources_of, structures_of
from train.settings import FinetuneConfig


def main(argv: Sequence[str] | None = None) -> int:
    """Run the recipe; returns the exit status."""
    config: FinetuneConfig = parse(FinetuneConfig, __doc__ or "", argv)
    try:
        revision = run_finetuning(config)
    except (ValueError, OSError, Interrupted) as error:
        print(error, file=sys.stderr)
        return 130 if isinstance(error, Interrupted) else 2
    print(f"published {config.department}/{revision:04d} in {config.store}")
    return 0


def run_finetuning(config: FinetuneConfig) -> int:
    """Train and publish; return the new revision."""
    department = find_department(config.department).id
    store = ExpertStore(config.store)
    expert = store.load(department)
    base = store.base(expert.base_sha256)
    data = replace(config.data, spacing_mm={"default": list(expert.spacing_mm)}, intensities=base.intensities)
    prepared = prepared_cases(data, [department])
    with torch.device("meta"):
        stride = build_segmenter(**base.network).stride
    torch.manual_seed(config.seed)
    checkpoint = Path(config.output) / f"{department}-{expert.revision:04d}-{base.sha256[:12]}.pt"
    with stop_on_signal() as stop, Bar(f"finetune {department}") as bar:
        factors = finetune(
            base,
            expert,
            samples_of(data, prepared, stride=stride, seed=config.seed),
            queries=store.queries(base.query_space),
            steps=config.steps,
            batch_size=config.batch_size,
            learning_rate=config.learning_rate,
            balance=config.balance,
            bf16=config.bf16,
            checkpoint=checkpoint,
            report=bar,
            stop=stop,
            workers=data.workers,
        )
    cases = prepared[department]
    revision = store.publish(
        extract(
            factors,
            department=department,
            base_sha256=base.sha256,
            spacing_mm=expert.spacing_mm,
            structures=tuple(dict.fromkeys((*expert.structures, *structures_of(cases)))),
            parent=expert.revision,
            about={"sources": sources_of(cases), "cases": len(cases), "steps": config.steps},
            norms=expert.norms,
            dtype=next(iter(expert.factors.values()))[0].dtype,
        )
    )
    checkpoint.unlink()  # the run is over: the next one starts from the new revision
    return revision


if __name__ == "__main__":
    raise SystemExit(main())
