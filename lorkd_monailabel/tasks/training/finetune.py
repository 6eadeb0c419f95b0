"""The training of a department's expert on the labelled images of the server, from cases to publication."""

import shutil
from typing import Any

import torch
from monailabel.interfaces.datastore import Datastore

from lorkd_monailabel.experts import extract
from lorkd_monailabel.learning.finetuning import finetune
from lorkd_monailabel.learning.training import Loop
from lorkd_monailabel.networks.segmenter import build_segmenter
from lorkd_monailabel.tasks.training.gate import pass_gate, told_scores
from lorkd_monailabel.tasks.training.options import TrainingOptions
from lorkd_monailabel.tasks.training.place import (
    OBJECTIVE,
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


def finetune_department(
    place: Place, datastore: Datastore, department: str, options: TrainingOptions, *, teller: Teller, stop: Stop
) -> dict[str, Any]:
    """Train a copy of the served expert's factors and publish it, or keep it as a candidate.

    What was stopped goes on where the same options are given again, as long as the same revision is served.

    Args:
        place: see there.
        datastore: of the labelled images.
        department: id.
        options: see there.
        teller: of the run.
        stop: asked all the time.

    Returns:
        What became of it, see ``pass_gate``.

    Raises:
        Interrupted: ``stop`` said so; what was learned is saved.
        ValueError: there is no expert, there are too few cases, or one can't be read.
    """
    store = place.store
    expert = store.load(department, store.served(department))
    base = store.base(expert.base_sha256)
    queries = store.queries(base.query_space)
    cases = parted_cases(place, datastore, options, teller, stop, department=department)
    prepared = prepared_cases(
        place,
        cases.train,
        department,
        spacing_mm=expert.spacing_mm,
        window=base.window,
        intensities=base.intensities,
        progress=teller.stage("cases"),
        stop=stop,
    )
    with torch.device("meta"):
        stride = build_segmenter(**base.network).stride
    torch.manual_seed(options.seed)
    folder = place.run_folder(f"finetune_{department}", options, revision=expert.revision, base=base.sha256)
    if options.fresh:
        shutil.rmtree(folder, ignore_errors=True)
    factors = finetune(
        base,
        expert,
        samples_of({department: prepared}, options, window=base.window, stride=stride),
        Loop(options.batch_size, stop, options.workers),
        queries=queries,
        steps=options.steps,
        learning_rate=options.learning_rate,
        objective=OBJECTIVE,
        checkpoint=folder / "finetune.pt",
        report=teller.steps("train"),
        engine=place.engine(),
    )
    trained = extract(
        factors,
        department=department,
        base_sha256=base.sha256,
        spacing_mm=expert.spacing_mm,
        structures=tuple(dict.fromkeys((*expert.structures, *structures_of(prepared)))),
        parent=expert.revision,
        about={**told_cases(cases.train, cases.validation), "steps": options.steps, "run": teller.state.id},
        norms=expert.norms,
        dtype=next((pair[0].dtype for pair in expert.factors.values()), torch.float32),
    )
    new, current = measured(
        [model(base, each, queries, place.device) for each in (trained, expert)],
        cases.validation,
        device=place.device,
        stop=stop,
        progress=teller.stage("validate"),
    )
    found = verdict(new, current)
    teller.tell(dice={department: told_scores(new, current, found)})
    result = pass_gate(store, trained, scores=new, compared_with=expert.revision, verdict=found, force=options.force)
    # of what is not served any more no run goes on
    over = folder.parent.glob(f"finetune_{department}-*") if store.served(department) != expert.revision else [folder]
    for each in over:
        shutil.rmtree(each, ignore_errors=True)
    return result
