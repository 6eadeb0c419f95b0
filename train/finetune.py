"""Retrain one department's served expert on new cases and publish it; base and other experts stay as they are.

    python -m train.finetune train/configs/finetune.toml --set data.cases=cases.jsonl --set department=abdomen

Stop with Ctrl+C and run again to go on. What it is compared with in LoRKD, Table III, are plain networks of the same
size, from the base alone or from scratch: ``train.pretrain`` of one department, with and without ``start``.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from lorkd_monailabel.departments import department as find_department
from lorkd_monailabel.experts import extract, fused_network
from lorkd_monailabel.learning.distributed import World
from lorkd_monailabel.learning.finetuning import finetune
from lorkd_monailabel.learning.losses import Objective
from lorkd_monailabel.learning.training import Loop, stop_on_signal
from lorkd_monailabel.networks.segmenter import build_segmenter
from lorkd_monailabel.store import ExpertStore
from train.data import prepared_cases, samples_of, sources_of, structures_of
from train.recipe import Session, cases_once, engine_of, overlays, run_recipe
from train.settings import FinetuneConfig


def main(argv: Sequence[str] | None = None) -> int:
    """Run the recipe; returns the exit status."""
    return run_recipe(run_finetuning, FinetuneConfig, __doc__ or "", argv)


def run_finetuning(config: FinetuneConfig, world: World) -> list[str]:
    """Train and publish."""
    department = find_department(config.department).id
    store = ExpertStore(config.store)
    expert = store.load(department, store.served(department))
    base = store.base(expert.base_sha256)
    data = replace(config.data, spacing_mm={"default": list(expert.spacing_mm)}, intensities=base.intensities)
    with cases_once(world):
        prepared = prepared_cases(data, [department])
    with torch.device("meta"):
        stride = build_segmenter(**base.network).stride
    torch.manual_seed(config.seed)
    output, queries = Path(config.output), store.queries(base.query_space)
    samples = samples_of(data, prepared, stride=stride, seed=config.seed)
    checkpoint = output / f"{department}-{expert.revision:04d}-{base.sha256[:12]}.pt"
    with Session(config, output, world) as session:
        with stop_on_signal() as stop:
            factors = finetune(
                base,
                expert,
                samples,
                Loop(config.batch_size, stop, data.workers),
                queries=queries,
                steps=config.steps,
                learning_rate=config.learning_rate,
                objective=Objective(balance=config.balance),
                engine=engine_of(config.engine, world),
                checkpoint=checkpoint,
                report=session.listener("finetune", f"finetune {department}"),
            )
        if not world.first:
            return []
        cases = prepared[department]
        retrained = extract(
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
        revision = store.publish(retrained)
        checkpoint.unlink(missing_ok=True)  # the run is over: the next one starts from the new revision
        shown = overlays(samples, fused_network(base, retrained), queries)
        session.report(f"Retraining of {department}, revision {revision}", shown)
    return [f"published {department}/{revision:04d} in {config.store}"]


if __name__ == "__main__":
    raise SystemExit(main())
