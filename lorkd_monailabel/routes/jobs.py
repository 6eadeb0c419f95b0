"""What the server does and what waits: progress for those who asked, and a way to stop it.

Where requests need tokens, who is no trainer has to do with his own jobs alone; of others he does not even hear.
"""

from typing import Literal

from fastapi import APIRouter, HTTPException
from pydantic import BaseModel, ConfigDict, Field

from lorkd_monailabel import jobs
from lorkd_monailabel.front_door.roles import Role
from lorkd_monailabel.front_door.visits import visit

router = APIRouter(prefix="/jobs", tags=["Jobs"])


class JobStatus(BaseModel):
    """Where a job is."""

    model_config = ConfigDict(from_attributes=True)

    id: str = Field(description="that the client chose as params.job, else the server")
    title: str = Field(description="names of the structures asked for")
    device: str = Field(description="that it waits for or has")
    state: Literal["queued", "running", "done", "failed", "cancelled"] = Field(description="the last three are final")
    position: int = Field(description="in the queue: 1 is next; 0 where it is not queued")
    stage: str = Field(description="read, the department whose windows are computed, merge, write")
    done: int = Field(description="steps of this stage")
    total: int = Field(description="steps of this stage; 0 where it has none")
    seconds: float = Field(description="waited so far while queued; else since it began, or from begin to end")
    message: str = Field(description="why it failed or was cancelled")


class Cancellation(BaseModel):
    """What became of the wish to cancel."""

    cancelled: bool = Field(description="false where the job was over already")


@router.get("", summary="List the jobs")
async def all_jobs() -> list[JobStatus]:
    """Give those that run, those that wait in their order, and those that ended within ten minutes, last first.

    With tokens, a viewer or annotator gets his own.
    """
    return [JobStatus.model_validate(status) for status in _jobs().all() if _may_see(status)]


@router.get("/{job_id}", summary="Ask how far a job is")
async def one_job(job_id: str) -> JobStatus:
    """Give the state of a job.

    A client that chose its id may ask while its request is pending; before the request has reached the queue, and ten
    minutes after its end, the answer is 404; with tokens also to a viewer or annotator who asks for another's.
    """
    return JobStatus.model_validate(_known(job_id))


@router.delete("/{job_id}", summary="Cancel a job")
async def cancel_job(job_id: str) -> Cancellation:
    """Take a job out of the queue, or stop it at its next window; its own request then ends with 409."""
    _known(job_id)
    return Cancellation(cancelled=_jobs().cancel(job_id))


def _known(job_id: str) -> jobs.JobStatus:
    status = _jobs().get(job_id)
    if status is None or not _may_see(status):
        raise HTTPException(404, f"job {job_id!r} is unknown, or was over long ago; look at the list of jobs")
    return status


def _may_see(status: jobs.JobStatus) -> bool:
    here = visit()
    return here.role >= Role.TRAINER or status.client == here.user


def _jobs() -> jobs.Jobs:
    from monailabel.interfaces.utils.app import app_instance

    return app_instance().jobs
