"""Tests of lorkd_monailabel.tasks.train: what MONAI Label calls."""

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from filelock import FileLock

from lorkd_monailabel.audit import Audit
from lorkd_monailabel.departments import department
from lorkd_monailabel.sources.catalogue import Catalogue
from lorkd_monailabel.store import ExpertStore
from lorkd_monailabel.tasks.train import DecomposeTask, FinetuneTask
from lorkd_monailabel.tasks.training.place import Place
from lorkd_monailabel.tasks.training.state import RunState, read_state

RUN = "5a1c2b3d-0000-4000-8000-000000000000"
REQUEST = {"run": RUN, "steps": 2, "batch_size": 2, "workers": 0, "augment": False, "force": True, "client_id": "me"}


@pytest.fixture
def task(place: Place, audit: Audit) -> FinetuneTask:
    """Of the abdomen."""
    return FinetuneTask(department("abdomen"), place, audit)


def latest(task: FinetuneTask) -> RunState:
    state = read_state(task.place.folder / f"{task.name}.json")
    assert state is not None
    return state


def test_a_training_tells_publishes_and_is_noted(task: FinetuneTask, studies: Catalogue, audit: Audit) -> None:
    assert task.stats() == {}
    stats = task(dict(REQUEST), studies)
    assert stats == task.stats()
    state = latest(task)
    assert (state.id, state.state, state.client, state.step) == (RUN, "done", "me", state.steps)
    assert state.result["abdomen"]["revision"] == 2
    assert state.message == state.result["abdomen"]["message"]
    assert stats["total_time"]
    assert task.place.folder.stat().st_mode & 0o077 == 0  # prepared cases are images of patients
    (line,) = audit.lines()
    assert (line["action"], line["client"], line["department"]) == ("publish", "me", "abdomen")
    assert (line["revision"], line["training"]) == (2, RUN)


def test_a_failure_is_told_in_a_sentence(task: FinetuneTask, studies: Catalogue, audit: Audit) -> None:
    spleen = FinetuneTask(department("thorax"), task.place, audit)
    with pytest.raises(ValueError, match="no image has a label with a structure of thorax"):
        spleen(dict(REQUEST), studies)
    state = latest(spleen)
    assert (state.state, state.message.startswith("no image has a label")) == ("failed", True)
    assert audit.lines() == []


def test_sigterm_saves_and_ends_with_a_status(
    task: FinetuneTask, studies: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.getppid", iter(range(10_000)).__next__)  # every question finds another parent: it died
    with pytest.raises(SystemExit) as caught:
        task(dict(REQUEST), studies)
    assert caught.value.code == 130
    assert latest(task).state == "stopped"


def test_in_a_thread_of_the_server_it_forks_nothing(
    task: FinetuneTask, studies: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def learn(self, options, datastore, *, teller, stop):
        seen.append((options.workers, stop()))
        return {}

    monkeypatch.setattr(FinetuneTask, "learn", learn)
    thread = threading.Thread(target=task, args=({**REQUEST, "workers": 4}, studies))
    thread.start()
    thread.join()
    assert seen == [(0, False)]


def test_one_process_at_a_time(task: FinetuneTask, studies: Catalogue) -> None:
    task.place.folder.mkdir()
    with FileLock(task.place.folder / f".{task.name}.lock"), pytest.raises(ValueError, match="by another process"):
        task(dict(REQUEST), studies)


def test_what_there_is_nothing_to_train_of(place: Place, audit: Audit, tmp_path: Path) -> None:
    brain = FinetuneTask(department("brain"), place, audit)
    decompose = DecomposeTask(replace(place, foundation=tmp_path / "none.safetensors"), audit)
    assert (brain.is_valid(), decompose.is_valid()) == (False, False)
    with pytest.raises(ValueError, match=r"brain has no expert to retrain \(experts exist for: thorax, abdomen\)"):
        brain.check(REQUEST)
    with pytest.raises(ValueError, match="start the server with --conf foundation FILE"):
        decompose.check(REQUEST)


def test_options_are_those_of_the_task(task: FinetuneTask, place: Place, audit: Audit) -> None:
    assert "rank" not in task.info()["config"]
    assert DecomposeTask(place, audit).info()["config"]["rank"] == 4
    with pytest.raises(ValueError, match="option 'rank' is unknown"):
        task.check({**REQUEST, "rank": 4})


def test_every_value_of_the_options_is_one_that_clients_can_show(task: FinetuneTask) -> None:
    assert {type(value) for value in task.config().values()} <= {int, float, str, bool}


def test_an_expert_that_appears_later_can_be_trained(
    place: Place, audit: Audit, store: ExpertStore, make_expert: Callable
) -> None:
    brain = FinetuneTask(department("brain"), place, audit)
    store.publish(make_expert("brain", structures=("brain",)))
    assert brain.is_valid()
