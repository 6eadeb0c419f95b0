"""Decompose a teacher into a base and an expert for each department, and publish them.

    python -m train.decompose train/configs/default_store.toml --set data.cases=cases.jsonl
    torchrun --nproc-per-node 8 -m train.decompose train/configs/nano.toml --set data.cases=cases.jsonl

Stop with Ctrl+C and run again to go on. Base and experts are added to ``store`` as new revisions. ``ranks.md`` in
``output`` says why each department got its rank, ``ranks.json`` the same for programs; ``report.html`` shows how the
run went.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lorkd_monailabel.drafts import write_whole
from lorkd_monailabel.experts import Base, extract
from lorkd_monailabel.json_files import write_json
from lorkd_monailabel.learning.decomposition import PHASES, RANKS, Decomposition, decompose
from lorkd_monailabel.learning.distributed import World
from lorkd_monailabel.learning.engine import BACKEND, Engine
from lorkd_monailabel.learning.losses import Objective
from lorkd_monailabel.learning.prepared import PreparedCase
from lorkd_monailabel.learning.rank_report import report
from lorkd_monailabel.learning.ranks import RankChoice, RankRule
from lorkd_monailabel.learning.sharding import shard
from lorkd_monailabel.learning.training import Loop, stop_on_signal
from lorkd_monailabel.networks.segmenter import build_segmenter
from lorkd_monailabel.shipped import QUERIES
from lorkd_monailabel.store import ExpertStore
from lorkd_monailabel.teachers.channels import ChannelTeacher
from lorkd_monailabel.teachers.choose import ChosenTeacher, teacher_of
from lorkd_monailabel.teachers.network import NetworkTeacher
from lorkd_monailabel.teachers.protocol import Teacher
from lorkd_monailabel.text_encoder import QueryTable
from lorkd_monailabel.volumes import three
from train.data import (
    network_numbers,
    prepared_cases,
    samples_of,
    sources_of,
    spacing_of,
    structures_of,
    table_of,
)
from train.recipe import Session, cases_once, engine_of, overlays, run_recipe
from train.reporting.provenance import licensed, portable
from train.settings import DecomposeConfig
from train.start import base_and_experts

PRECOMPUTED = "precomputed"
"""The teacher of a config whose cases name masks that were made before."""

FARTHEST = 1.5
"""How many times coarser or finer than its own a teacher's patches may be."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the recipe; returns the exit status."""
    return run_recipe(run_decomposition, DecomposeConfig, __doc__ or "", argv)


def run_decomposition(config: DecomposeConfig, world: World) -> list[str]:
    """Train and publish."""
    rule = RankRule(
        name=config.rank_rule,
        rank=config.rank,
        rounding=config.rounding,
        least=config.least_rank,
        most=config.most_rank,
        given=config.ranks,
    )
    output, engine = Path(config.output), engine_of(config.engine, world)
    table = table_of(config.queries)
    chosen = choose_teacher(config, table, engine)
    with cases_once(world):
        prepared = prepared_cases(config.data, taught=chosen is None)
    if chosen is not None and chosen.spacing_mm is not None:
        check_spacing(config, chosen.spacing_mm, prepared)
    torch.manual_seed(config.seed)
    numbers = network_numbers(config.network, table)
    network = build_segmenter(**numbers)
    stride = max(network.stride, chosen.stride if chosen else 1)  # powers of two: patches fit both
    decomposition = Decomposition(network, decoder_multiplier=config.decoder_multiplier, alpha=config.alpha)
    if config.start:
        load_start(config, decomposition, table, prepared)
    samples = samples_of(replace(config.data, all_structures=False), prepared, stride=stride, seed=config.seed)

    def ranked(choices: Mapping[str, RankChoice]) -> None:
        if world.first:
            write_ranks(config, choices, rule, decomposition)

    with Session(config, output, world) as session:
        with stop_on_signal() as stop:
            choices = decompose(
                decomposition,
                samples,
                Loop(config.batch_size, stop, config.data.workers),
                warmup_samples=samples_of(config.data, prepared, stride=stride, seed=config.seed),
                teacher=chosen.teacher if chosen else None,
                queries=table,
                warmup_steps=config.warmup_steps,
                steps=config.steps,
                learning_rate=config.learning_rate,
                expert_learning_rate=config.expert_learning_rate,
                objective=Objective(config.beta, config.transfer, config.balance),
                engine=engine,
                folder=output,
                report=session.listener,
                rule=rule,
                probe_samples=config.probe_samples,
                ranked=ranked,
            )
        if not world.first:
            return []
        about: dict[str, Any] = chosen.about if chosen else {"teacher": {"kind": PRECOMPUTED}}
        base = decomposition.base(
            network=numbers,
            window=three(config.data.patch),
            query_space=table.space,
            about={
                **about,
                "training": portable(config),
                **ranks_of(choices),
                **licensed(config.licence, about.get("licence", "")),
            },
            intensities=config.data.intensities,
            dtype=torch.float16 if config.half else torch.float32,
        )
        published = publish(config, decomposition, table, base=base, prepared=prepared)
        for name in (*reversed(PHASES), RANKS):  # the run is over: the same command starts another
            (output / f"{name}.pt").unlink(missing_ok=True)
        session.report("Decomposition", overlays(samples, network, table, decomposition.weights_of))
    return [f"published {department}/{revision:04d} in {config.store}" for department, revision in published.items()]


def load_start(
    config: DecomposeConfig, decomposition: Decomposition, table: QueryTable, departments: Iterable[str]
) -> None:
    """Bring a decomposition to where it starts.

    Raises:
        ValueError: there is no base, or it does not go with the config.
    """
    base, experts = base_and_experts(Path(config.start), departments)
    if (base.query_space, base.intensities) != (table.space, config.data.intensities):
        raise ValueError(
            f"the base of {config.start} has another query table or intensities ({base.intensities}); set queries "
            "and data.intensities to its own"
        )
    decomposition.load(base, experts)


def choose_teacher(config: DecomposeConfig, table: QueryTable, engine: Engine) -> ChosenTeacher | None:
    """Load the teacher of a config, ready for the engine; None where the cases bring its masks.

    Raises:
        ValueError: none or two are named, or it can't be loaded.
    """
    if bool(config.teacher) == bool(config.foundation):
        said = "both" if config.teacher else "none"
        raise ValueError(f"config keys teacher and foundation are one setting and {said} is given; set teacher alone")
    if config.teacher == PRECOMPUTED:
        return None
    path = Path(config.teacher or config.foundation)
    chosen = teacher_of(path, table=table, intensities=config.data.intensities)
    place_teacher(chosen.teacher, engine, name=str(path))
    return chosen


def place_teacher(teacher: Teacher, engine: Engine, *, name: str) -> None:
    """Bring a teacher to the device of the run, or spread it over its processes, and compile it, as the engine is told.

    Raises:
        ValueError: it is no foundation, which alone can be spread and compiled.
    """
    if isinstance(teacher, NetworkTeacher):
        if engine.shard:
            shard(teacher.segmenter, engine.world)
        teacher.segmenter.to(engine.world.device)
        if engine.compile:
            teacher.segmenter.compile(backend=BACKEND)
        return
    if engine.shard:
        raise ValueError(f"engine.shard spreads a foundation, and {name} is another teacher; set it to false")
    if isinstance(teacher, ChannelTeacher) and isinstance(teacher.network, nn.Module):
        teacher.network.to(engine.world.device)


def check_spacing(config: DecomposeConfig, spacing_mm: tuple[float, float, float], departments: Iterable[str]) -> None:
    """Refuse to ask a teacher about patches of quite another spacing than its own.

    Raises:
        ValueError: naming the department.
    """
    for name in departments:
        ratios = [own / its for own, its in zip(spacing_of(config.data, name), spacing_mm, strict=True)]
        if max(*ratios, *(1 / ratio for ratio in ratios)) > FARTHEST:
            raise ValueError(
                f"{config.teacher or config.foundation} was trained on {spacing_mm} mm, {name} has "
                f"{spacing_of(config.data, name)}; set data.spacing_mm nearer to it, or compute its masks beforehand"
            )


def publish(
    config: DecomposeConfig,
    decomposition: Decomposition,
    table: QueryTable,
    *,
    base: Base,
    prepared: Mapping[str, Sequence[PreparedCase]],
) -> dict[str, int]:
    """Publish the base, then every department's expert over it; return department -> revision."""
    dtype = torch.float16 if config.half else torch.float32
    store = ExpertStore(config.store)
    if table.space != QueryTable.load(QUERIES).space:
        store.publish_queries(table)
    store.publish_base(base)
    return {
        department: store.publish(
            extract(
                decomposition.factors[department],
                department=department,
                base_sha256=base.sha256,
                spacing_mm=spacing_of(config.data, department),
                structures=structures_of(cases),
                parent=store.newest(department) or 0,
                about={"sources": sources_of(cases), "cases": len(cases), "steps": config.steps},
                dtype=dtype,
            )
        )
        for department, cases in prepared.items()
    }


def write_ranks(
    config: DecomposeConfig, choices: Mapping[str, RankChoice], rule: RankRule, decomposition: Decomposition
) -> None:
    """Write down the ranks and why, for people and for programs."""
    parameters = {name: sum(tensor.numel() for tensor in decomposition.factors[name].parameters()) for name in choices}
    folder = Path(config.output)
    text = report(
        choices, rule, probe_samples=config.probe_samples, warmup_steps=config.warmup_steps, parameters=parameters
    )
    write_whole(folder / "ranks.md", text)
    found = {
        **ranks_of(choices),
        "departments": {name: asdict(choice) for name, choice in choices.items()},
        "parameters": parameters,
        "rule": asdict(rule),
        "probe_samples": config.probe_samples,
        "warmup_steps": config.warmup_steps,
    }
    write_json(folder / "ranks.json", found)


def ranks_of(choices: Mapping[str, RankChoice]) -> dict[str, Any]:
    """Give ranks, and the loss reductions where they were measured."""
    reductions = {name: choice.reduction for name, choice in choices.items() if choice.reduction is not None}
    ranks = {name: choice.rank for name, choice in choices.items()}
    return {"ranks": ranks, "loss_reductions": reductions} if reductions else {"ranks": ranks}


if __name__ == "__main__":
    raise SystemExit(main())
