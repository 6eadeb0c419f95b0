"""Tests of lorkd_monailabel.tasks.training.finetune: from cases to a revision or a candidate."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lorkd_monailabel import revisions
from lorkd_monailabel.candidates import candidate_ids
from lorkd_monailabel.learning.training import Interrupted
from lorkd_monailabel.sources.catalogue import Catalogue
from lorkd_monailabel.store import ExpertStore
from lorkd_monailabel.tasks.training.finetune import finetune_department
from lorkd_monailabel.tasks.training.place import Place, sweep_prepared
from lorkd_monailabel.tasks.training.state import Teller, read_state, state_file

MakeOptions = Callable[..., object]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.safetensors")}


def never() -> bool:
    return False


def trained(teller: Teller) -> int:
    return teller.state.step if teller.state.stage == "train" else 0


def test_what_is_no_worse_is_published_and_all_else_stays(place, store, studies, options, teller) -> None:
    before = contents(store.folder)
    result = finetune_department(place, studies, "abdomen", options(force=True), teller=teller, stop=never)
    after = contents(store.folder)
    assert (result["published"], result["revision"], result["candidate"]) == (True, 2, None)
    assert after.keys() - before.keys() == {"abdomen/0002.safetensors"}
    assert {name: after[name] for name in before} == before
    header = store.header("abdomen")
    assert (header["parent"], header["structures"], header["metrics"].keys()) == (
        1,
        ["liver", "spleen"],
        {"liver", "spleen"},
    )
    about = header["about"]
    assert len(about["trained_on"]) + len(about["validated_on"]) == 4
    assert not set(about["trained_on"]).intersection(about["validated_on"])
    assert about["comparison"]["revision"] == 1
    assert not any(name in str(about) for name in ("one", "two", "three", "four"))
    assert list((place.folder / "unfinished").iterdir()) == []


def test_the_gate_decides_by_what_was_measured(
    place: Place, store: ExpertStore, studies: Catalogue, options: MakeOptions, teller: Teller
) -> None:
    result = finetune_department(place, studies, "abdomen", options(), teller=teller, stop=never)
    scores = read_state(state_file(place.folder, "run")).dice["abdomen"]
    assert scores["structures"].keys() == {"liver", "spleen"}
    assert result["published"] == (scores["new"] >= scores["current"] - 1e-6)
    assert (store.newest("abdomen") == 2) == result["published"]
    assert (len(candidate_ids(store, "abdomen")) == 1) == (not result["published"])


def test_what_was_stopped_goes_on_as_if_nothing_had_been(
    place: Place, store: ExpertStore, studies: Catalogue, options: MakeOptions, teller: Teller
) -> None:
    finetune_department(place, studies, "abdomen", options(steps=4, force=True), teller=teller, stop=never)
    unbroken = store.load("abdomen")
    store.path("abdomen", 2).unlink()
    with pytest.raises(Interrupted, match="stopped after step 2 of 4"):
        finetune_department(
            place, studies, "abdomen", options(steps=4), teller=teller, stop=lambda: trained(teller) == 2
        )
    (left,) = (place.folder / "unfinished").iterdir()
    assert (left / "finetune.pt").is_file()
    assert store.newest("abdomen") == 1
    steps: list[int] = []

    def watch() -> bool:
        steps.append(teller.state.step) if teller.state.stage == "train" else None
        return False

    result = finetune_department(place, studies, "abdomen", options(steps=4, force=True), teller=teller, stop=watch)
    resumed = store.load("abdomen")
    assert (steps, result["revision"]) == ([3, 4], 2)
    for name, pair in unbroken.factors.items():
        assert all(torch.equal(a, b) for a, b in zip(pair, resumed.factors[name], strict=True))


def test_fresh_and_other_options_begin_anew(
    place: Place, studies: Catalogue, options: MakeOptions, teller: Teller
) -> None:
    def stopped(**changed: object) -> int:
        with pytest.raises(Interrupted):
            finetune_department(
                place, studies, "abdomen", options(**changed), teller=teller, stop=lambda: trained(teller) > 0
            )
        return teller.state.step

    assert [stopped(steps=6), stopped(steps=6), stopped(steps=6, fresh=True), stopped(steps=7)] == [1, 2, 1, 1]


def test_it_learns_from_the_served_revision(
    place: Place, store: ExpertStore, studies: Catalogue, options: MakeOptions, teller: Teller, make_expert
) -> None:
    store.publish(make_expert(seed=9))
    revisions.pin(store, "abdomen", 1)
    finetune_department(place, studies, "abdomen", options(force=True), teller=teller, stop=never)
    header = store.header("abdomen", 3)
    assert (header["parent"], header["about"]["comparison"]["revision"]) == (1, 1)
    assert store.served("abdomen") == 1


def test_too_few_cases_stop_it_before_it_begins(
    place: Place, studies: Catalogue, options: MakeOptions, teller: Teller
) -> None:
    with pytest.raises(ValueError, match="no image has a label with a structure of thorax; label two at least"):
        finetune_department(place, studies, "thorax", options(), teller=teller, stop=never)


def test_prepared_cases_go_when_nobody_needs_them(
    place: Place, studies: Catalogue, options: MakeOptions, teller: Teller
) -> None:
    finetune_department(place, studies, "abdomen", options(force=True), teller=teller, stop=never)
    images = sorted((place.folder / "prepared").glob("*/image.npy"))
    for image in images:
        os.utime(image, (1.0, 1.0))
    sweep_prepared(place.folder / "prepared")
    assert len(images) >= 2
    assert list((place.folder / "prepared").iterdir()) == []
