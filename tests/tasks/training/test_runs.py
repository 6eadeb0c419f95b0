"""Tests of lorkd_monailabel.tasks.training.runs, with processes that stand in for MONAI Label's."""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import HTTPException
from monailabel.utils.async_tasks import task as asynchronous
from monailabel.utils.async_tasks import utils

from lorkd_monailabel.tasks.training import runs as hosted_runs
from lorkd_monailabel.tasks.training.runs import Runs, take_over
from lorkd_monailabel.tasks.training.state import RunState, write_state

POLITE = (
    "import signal, sys, time; signal.signal(15, lambda *_: sys.exit(130)); print('up', flush=True); time.sleep(60)"
)
STUBBORN = "import signal, time; signal.signal(15, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
REQUEST = {"model": "finetune_abdomen", "client_id": "me"}

MakeRuns = Callable[..., Runs]


@pytest.fixture
def make_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MakeRuns]:
    """Makes runs whose process is a line of Python; MONAI Label's tables are as they were afterwards."""
    monkeypatch.setattr(utils, "background_tasks", {})
    monkeypatch.setattr(utils, "background_processes", {})
    monkeypatch.setattr(hosted_runs, "WAIT_S", 0.2)
    made: list[Runs] = []

    def make(code: str, *, check: Callable[[Any], None] = lambda request: None, grace_s: float = 30.0) -> Runs:
        runs = Runs(tmp_path, app_dir="app", studies="studies", conf={}, check=check, grace_s=grace_s)
        runs._command = [sys.executable, "-c", code]
        made.append(runs)
        return runs

    yield make
    for runs in made:
        runs._queue.clear()
        if runs._process:
            runs._process[1].kill()
    end = time.monotonic() + 10
    while any(thread.name == "trainings" for thread in threading.enumerate()) and time.monotonic() < end:
        time.sleep(0.02)


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    assert condition()


def test_one_runs_and_the_others_wait_in_their_order(make_runs: MakeRuns) -> None:
    runs = make_runs(POLITE)
    first, second, third = (runs.start(dict(REQUEST))["id"] for _ in range(3))
    until(lambda: runs.log(first, 9) == ["up"])
    assert [runs.get(each).state for each in (first, second, third)] == ["running", "queued", "queued"]
    assert [runs.get(each).position for each in (first, second, third)] == [0, 1, 2]
    assert {state.client for state in runs.all()} == {"me"}
    assert runs.stop(second).state == "stopped"
    assert runs.get(third).position == 1
    assert [task["status"] for task in utils.tasks("train")] == ["RUNNING", "STOPPED", "SUBMITTED"]
    runs.stop(first)
    until(lambda: runs.get(first).state == "stopped")
    until(lambda: runs.log(third, 9) == ["up"])
    assert "goes on where it ended" in runs.get(first).message


def test_who_does_not_end_is_killed(make_runs: MakeRuns) -> None:
    runs = make_runs(STUBBORN, grace_s=0.5)
    run = runs.start(dict(REQUEST))["id"]
    until(lambda: runs.log(run, 9) == ["up"])
    task = runs.stop_any("train")
    assert task is not None
    assert (task["id"], task["status"]) == (run, "STOPPED")
    assert runs.get(run).state == "stopping"
    assert list(utils.processes("train")) == []
    until(lambda: runs.get(run).state == "stopped")
    assert runs.stop_any("train") is None


@pytest.mark.parametrize(
    ("code", "state", "status", "message"),
    [
        ("print('made')", "done", "DONE", ""),
        ("raise ValueError('no cases')", "failed", "ERROR", "its process ended with status 1: ValueError: no cases"),
        ("import os; os.kill(os.getpid(), 9)", "failed", "ERROR", "its process ended with status -9: "),
    ],
)
def test_how_it_ended(make_runs: MakeRuns, code: str, state: str, status: str, message: str) -> None:
    runs = make_runs(code)
    task = runs.start(dict(REQUEST))
    until(lambda: runs.get(task["id"]).state == state)
    assert (task["status"], runs.get(task["id"]).message) == (status, message)
    with pytest.raises(ValueError, match=f"is {state}; there is nothing to stop"):
        runs.stop(task["id"])


def test_a_process_that_can_not_start_fails_and_the_next_one_runs(make_runs: MakeRuns) -> None:
    runs = make_runs("")
    runs._command = ["/nowhere/python"]
    first = runs.start(dict(REQUEST))["id"]
    until(lambda: runs.get(first).state == "failed")
    assert runs.get(first).message.startswith("its process can't be started: ")
    runs._command = [sys.executable, "-c", "pass"]
    second = runs.start(dict(REQUEST))["id"]
    until(lambda: runs.get(second).state == "done")


def test_a_request_that_is_refused_leaves_nothing(make_runs: MakeRuns) -> None:
    def refuse(request: Any) -> None:
        raise ValueError("steps 0 must be in 1..10")

    runs = make_runs("", check=refuse)
    with pytest.raises(HTTPException) as caught:
        runs.start(dict(REQUEST))
    assert (caught.value.status_code, caught.value.detail) == (400, "steps 0 must be in 1..10")
    assert runs.all() == []


@pytest.mark.parametrize("run", ["nobody", "../../etc/passwd", "", "0" * 36])
def test_an_unknown_run(make_runs: MakeRuns, run: str) -> None:
    runs = make_runs("")
    with pytest.raises(FileNotFoundError, match="there is no training"):
        runs.stop(run)
    assert runs.log(run, 10) == []


def test_what_an_earlier_server_left_is_told_as_stopped(make_runs: MakeRuns, tmp_path: Path) -> None:
    run = "5a1c2b3d-0000-4000-8000-000000000000"
    write_state(tmp_path, RunState(run, "finetune_abdomen", state="running", step=7, pid=2**22 + 1))
    state = make_runs("").get(run)
    assert (state.state, state.step, "its server ended" in state.message) == ("stopped", 7, True)


def test_the_oldest_runs_give_way(make_runs: MakeRuns, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosted_runs, "KEPT", 2)
    names = [f"5a1c2b3d-0000-4000-8000-00000000000{number}" for number in range(4)]
    for number, run in enumerate(names):
        write_state(tmp_path, RunState(run, "task", state="done", created=float(number)))
    runs = make_runs("pass")
    new = runs.start(dict(REQUEST))["id"]
    assert {state.id for state in runs.all()} == {new, *names[2:]}
    until(lambda: runs.get(new).state == "done")


def test_monai_labels_functions_give_way_for_trainings_alone(
    make_runs: MakeRuns, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asynchronous, "run_background_task", None)
    monkeypatch.setattr(asynchronous, "stop_background_task", None)
    monkeypatch.setattr(utils, "run_background_task", lambda request, method: {"theirs": method})
    monkeypatch.setattr(utils, "stop_background_task", lambda method: {"theirs": method})
    take_over(make_runs("pass"))
    assert asynchronous.run_background_task({}, "scoring") == {"theirs": "scoring"}
    assert asynchronous.stop_background_task("scoring") == {"theirs": "scoring"}
    assert asynchronous.stop_background_task("train") is None
