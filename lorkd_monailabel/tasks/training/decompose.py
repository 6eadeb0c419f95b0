"""The decomposition of a foundation on the labelled images of the server, from cases to publication."""

import shutil
from collections.abc import Callable, Sequence
from typing import Any

import torch
from monailabel.interfaces.datastore import Datastore

from lorkd_monailabel.experts import Base, Expert, extract
from lorkd_monailabel.learning.cases import Case, departments_of
from lorkd_monailabel.learning.decomposition import Decomposition, decompose
from lorkd_monailabel.learning.ranks import RankRule
from lorkd_monailabel.learning.training import Loop, Progress
from lorkd_monailabel.networks.segmenter import SIZES, build_segmenter
from lorkd_monailabel.shipped import QUERIES
from lorkd_monailabel.store import BASE, load_base
from lorkd_monailabel.tasks.training.gate import pass_gate, told_scores
from lorkd_monailabel.tasks.training.options import TrainingOptions
from lorkd_monailabel.tasks.training.place import (
    OBJECTIVE,
    Parted,
    Place,
    Stop,
    parted_cases,
    prepared_cases,
    samples_of,
    structures_of,
    told_cases,
)
from lorkd_monailabel.tasks.training.state import Teller
from lorkd_monailabel.tasks.training.validation import measured, model, verdict
from lorkd_monailabel.teachers.choose import teacher_of
from lorkd_monailabel.teachers.network import NetworkTeacher
from lorkd_monailabel.text_encoder import QueryTable
from lorkd_monailabel.volumes import three

SIZE = "toy"
WINDOW = 48
SPACING_MM = 3.0


def decompose_foundation(
    place: Place, datastore: Datastore, options: TrainingOptions, *, teller: Teller, stop: Stop
) -> dict[str, Any]:
    """Make a base and experts of the foundation, for all departments that have cases on both sides of the split.

    The base starts from the store's newest where both are of one network; each expert passes the gate by itself.

    Returns:
        Department -> what became of it, see ``pass_gate``.

    Raises:
        Interrupted: ``stop`` said so; what was learned is saved.
        ValueError: there is no foundation, there are too few cases, or one can't be read.
    """
    if place.foundation is None:
        raise ValueError("there is no foundation to decompose; start the server with --conf foundation FILE")
    store = place.store
    start = store.base() if store.revisions(BASE) else None
    foundation = load_base(place.foundation, "foundation")
    own = QueryTable.load(QUERIES)
    table = own if own.space == foundation.query_space else store.queries(foundation.query_space)
    chosen = teacher_of(place.foundation, table=table, intensities=foundation.intensities)
    if isinstance(chosen.teacher, NetworkTeacher):
        chosen.teacher.segmenter.to(place.device)
    numbers = _numbers(options, start, table)
    if start is not None and (start.network, start.query_space, start.intensities) != (
        numbers,
        table.space,
        foundation.intensities,
    ):
        start = None
    window = start.window if start else three(WINDOW)
    cases = parted_cases(place, datastore, options, teller, stop)
    spacing_mm = {name: _spacing(place, name) for name in _departments(cases)}
    prepared = {
        name: prepared_cases(
            place,
            cases.train,
            name,
            spacing_mm=spacing,
            window=window,
            intensities=foundation.intensities,
            progress=teller.stage("cases"),
            stop=stop,
        )
        for name, spacing in spacing_mm.items()
    }
    torch.manual_seed(options.seed)
    network = build_segmenter(**numbers)
    stride = max(network.stride, chosen.stride)
    decomposition = Decomposition(network)
    if start is not None:
        decomposition.load(start, [])
    begun = start.sha256 if start else ""
    folder = place.run_folder("decompose", options, foundation=foundation.sha256, base=begun, departments=[*prepared])
    if options.fresh:
        shutil.rmtree(folder, ignore_errors=True)
    decompose(
        decomposition,
        samples_of(prepared, options, window=window, stride=stride),
        Loop(options.batch_size, stop, options.workers),
        warmup_samples=samples_of(prepared, options, window=window, stride=stride, all_structures=True),
        teacher=chosen.teacher,
        queries=table,
        warmup_steps=options.warmup_steps,
        steps=options.steps,
        learning_rate=options.learning_rate,
        expert_learning_rate=options.learning_rate,
        objective=OBJECTIVE,
        engine=place.engine(),
        folder=folder,
        report=_listener(teller),
        rule=RankRule(rank=options.rank),
    )
    base = decomposition.base(
        network=numbers,
        window=window,
        query_space=table.space,
        about={**chosen.about, **told_cases(cases.train, cases.validation), "run": teller.state.id},
        intensities=foundation.intensities,
    )
    experts = {
        name: extract(
            decomposition.factors[name],
            department=name,
            base_sha256=base.sha256,
            spacing_mm=spacing_mm[name],
            structures=structures_of(own_cases),
            parent=store.served(name) or 0,
            about={
                **told_cases(_of(cases.train, name), _of(cases.validation, name)),
                "steps": options.steps,
                "run": teller.state.id,
            },
        )
        for name, own_cases in prepared.items()
    }
    judged = {name: _judged(place, base, expert, table, cases, teller, stop) for name, expert in experts.items()}
    if table.space != own.space:
        store.publish_queries(table)
    store.publish_base(base)  # nothing is served from it before an expert names it
    results = {name: pass_gate(store, experts[name], force=options.force, **found) for name, found in judged.items()}
    shutil.rmtree(folder, ignore_errors=True)
    return results


def _judged(
    place: Place, base: Base, expert: Expert, table: QueryTable, cases: Parted, teller: Teller, stop: Stop
) -> dict[str, Any]:
    """Compare a new expert with the one that is served; gives what the gate is told."""
    store, department = place.store, expert.department
    served = store.served(department)
    models = [model(base, expert, table, place.device)]
    if served is not None:
        other = store.load(department, served)
        beneath = store.base(other.base_sha256)
        models.append(model(beneath, other, store.queries(beneath.query_space), place.device))
    new, *others = measured(
        models,
        _of(cases.validation, department),
        device=place.device,
        stop=stop,
        progress=teller.stage("validate"),
    )
    current = others[0] if others else None
    found = verdict(new, current)
    teller.tell(dice={**teller.state.dice, department: told_scores(new, current, found)})
    return {"scores": new, "compared_with": served, "verdict": found}


def _numbers(options: TrainingOptions, start: Base | None, table: QueryTable) -> dict[str, Any]:
    """Give the numbers of the base's network: of the size that is named, else of the store's base."""
    if not options.network and start is not None:
        return dict(start.network)
    return {**SIZES[options.network or SIZE], "query_dim": table.vectors.shape[1]}


def _departments(cases: Parted) -> list[str]:
    """Name the departments with cases on both sides.

    Raises:
        ValueError: there is none.
    """
    both = set(departments_of(cases.train)).intersection(departments_of(cases.validation))
    if not both:
        raise ValueError(
            "no department has a case to train on and one to validate on; label two images of a department at least"
        )
    return sorted(both)


def _spacing(place: Place, department: str) -> tuple[float, float, float]:
    served = place.store.served(department)
    if served is None:
        return three(SPACING_MM)
    x, y, z = place.store.header(department, served)["spacing_mm"]
    return x, y, z


def _of(cases: Sequence[Case], department: str) -> list[Case]:
    return [case for case in cases if case.of(department)]


def _listener(teller: Teller) -> Callable[[str], Callable[[Progress], None]]:
    return lambda phase: teller.steps("train" if phase == "joint" else phase)
