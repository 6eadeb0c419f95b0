"""Trainings of the server: started, watched step by step, and stopped in good order."""

from typing import Any, Literal

from fastapi import APIRouter, HTTPException, Query
from monailabel.utils.async_tasks.task import AsyncTask
from pydantic import BaseModel, ConfigDict, Field

from lorkd_monailabel.departments import department as find_department
from lorkd_monailabel.front_door.guards import check_options
from lorkd_monailabel.front_door.visits import visit
from lorkd_monailabel.tasks.readiness import readiness
from lorkd_monailabel.tasks.train import FinetuneTask, task_name
from lorkd_monailabel.tasks.training.runs import Runs
from lorkd_monailabel.tasks.training.state import RunState

router = APIRouter(prefix="/training", tags=["Training"])
DECOMPOSE = "decompose"


class Order(BaseModel):
    """What to train."""

    model_config = ConfigDict(extra="forbid")

    department: str = Field("", max_length=100, description="whose expert is retrained, such as abdomen")
    task: Literal["finetune", "decompose"] = Field("finetune", description="decompose makes all experts anew")
    steps: int | None = Field(None, ge=1, le=1_000_000, description="of the schedule; the task's own where left out")
    options: dict[str, Any] = Field(
        default_factory=dict, description="of the task, as GET /info/ lists them under trainers: batch_size, force, …"
    )


class Outcome(BaseModel):
    """What became of a department's training."""

    published: bool = Field(description="whether it is a revision now")
    revision: int | None = Field(description="its number")
    candidate: str | None = Field(description="its id, where it is worse than what is served and was kept only")
    message: str = Field(description="why, with both Dice")


class Score(BaseModel):
    """Dice of the new expert and of the one that was served, on the same validation cases."""

    new: float | None = Field(description="of the new expert; null where it was not measured")
    current: float | None = Field(description="of the served one; null without one")


class DepartmentScore(Score):
    """Means over the structures that both know."""

    structures: dict[str, Score] = Field(description="structure by structure")


class Run(BaseModel):
    """Where a training is."""

    model_config = ConfigDict(from_attributes=True)

    id: str
    task: str = Field(description="of MONAI Label, such as finetune_abdomen")
    department: str = Field(description="whose expert learns; empty for all")
    client: str = Field(description="who started it")
    state: Literal["queued", "running", "stopping", "done", "failed", "stopped"] = Field(
        description="the last three are final; what was stopped goes on when the same is started again"
    )
    position: int = Field(description="in the queue: 1 is next; 0 where it is not queued")
    stage: str = Field(description="cases, warmup, train or validate")
    step: int = Field(description="finished steps of this stage")
    steps: int = Field(description="of this stage; 0 where they are not counted")
    loss: float | None = Field(description="of the last step")
    losses: dict[str, float] = Field(description="of the last step of each department")
    seconds_left: float | None = Field(description="of this stage")
    learning_rate: float | None
    dice: dict[str, DepartmentScore] = Field(description="of each department that was validated")
    result: dict[str, Outcome] = Field(description="of each department")
    cases: dict[str, int] = Field(description="used to train, used to validate, and left out")
    message: str = Field(description="what came of it, or why it failed or was stopped")
    created: float = Field(description="seconds of Unix time")
    began: float = Field(description="seconds of Unix time; 0 before")
    ended: float = Field(description="seconds of Unix time; 0 before")


class RunWithLog(Run):
    """A training with what its process wrote."""

    log: list[str] = Field(description="its last lines; they name files of the server")


class DepartmentReadiness(BaseModel):
    """Whether a department's expert can be retrained."""

    model_config = ConfigDict(from_attributes=True)

    department: str
    labels: int = Field(description="images whose submitted label shows one of its structures")
    structures: dict[str, int] = Field(description="structure -> in how many of them; without those in none")
    trainable: bool = Field(description="whether a training with the usual options would begin")
    reason: str = Field(description="what is missing, in one sentence; empty where nothing is")


@router.get("", summary="List the trainings")
def all_runs() -> list[Run]:
    """Give those that run, wait or are over, the newest first; they are known after a restart too."""
    return [_run(state) for state in _runs().all()]


@router.get("/departments", summary="What could be trained now")
def all_departments() -> list[DepartmentReadiness]:
    """Give the labels of each department, and what is missing where there are too few; each label is read once."""
    from monailabel.interfaces.utils.app import app_instance

    _runs()
    app = app_instance()
    tasks = {task.department: task for task in app._trainers.values() if isinstance(task, FinetuneTask)}
    found = readiness(tasks.values(), app.datastore(), app.audit.reference)
    return [DepartmentReadiness.model_validate(each) for each in found]


@router.get("/{run}", summary="Watch a training")
def one_run(run: str, lines: int = Query(20, ge=0, le=1000, description="of its log")) -> RunWithLog:
    """Give the state of a training and the end of its log."""
    state = _runs().get(run)
    return RunWithLog(**_run(state).model_dump(), log=_runs().log(run, lines))


@router.post("", summary="Start a training", status_code=201)
def start_run(order: Order) -> Run:
    """Queue a training: one runs at a time. Options are checked here, the cases when it begins."""
    if order.task == DECOMPOSE and order.department:
        raise HTTPException(400, "decompose makes the experts of all departments; leave department out")
    model = DECOMPOSE if order.task == DECOMPOSE else task_name(find_department(order.department).id)
    steps = {} if order.steps is None else {"steps": order.steps}
    check_options(order.options, {"model", "run", "client_id", "steps"})
    request = {"model": model, "client_id": visit().client or visit().user}
    task, refused = AsyncTask.run("train", request=request, params={**order.options, **steps}, enqueue=True)
    if task is None:
        raise HTTPException(429, str(refused))
    return _run(_runs().get(task["id"]))


@router.delete("/{run}", summary="Stop a training")
def stop_run(run: str) -> Run:
    """Take a training off the queue, or let it save what it has learned and end; it is killed if it does not."""
    return _run(_runs().stop(run))


def _runs() -> Runs:
    from monailabel.interfaces.utils.app import app_instance

    found: Runs | None = getattr(app_instance(), "runs", None)
    if found is None:
        raise HTTPException(404, "this server does not train; its operator set MONAI_LABEL_TASKS_TRAIN to false")
    return found


def _run(state: RunState) -> Run:
    return Run.model_validate(state)
