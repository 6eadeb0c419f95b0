"""The queue of cases to annotate: in which order they come and why, and who has which."""

from typing import Literal

from fastapi import APIRouter, HTTPException, Query
from pydantic import BaseModel, Field

from lorkd_monailabel.active_learning.ranking import ORDER, Known, ranked
from lorkd_monailabel.departments import department as find_department
from lorkd_monailabel.front_door.visits import visit
from lorkd_monailabel.tasks.case_queue import CaseQueue

router = APIRouter(prefix="/active-learning", tags=["Active learning"])


class Case(BaseModel):
    """An unlabelled image."""

    image: str = Field(description="its id")
    place: int | None = Field(description="1 comes next; null for one that somebody has")
    score: float | None = Field(description="by which it has its place, larger is sooner; null where it has none yet")
    uncertainty: float | None = Field(description="0 to 1; null where it was not scored")
    distance: float | None = Field(description="to the nearest image that comes sooner, is labelled or is being so")
    reserved_by: str | None = Field(description="client id of the annotator who has it; null for nobody")
    reserved_until: float | None = Field(description="seconds of Unix time")


class CaseList(BaseModel):
    """The cases of a department: those to be given out in their order, then those that somebody has."""

    department: str
    strategy: str = Field(description="that was followed: another one than asked for where its scores are missing")
    measure: str
    reason: str = Field(description="one sentence")
    scored: int = Field(description="how many of the pool are scored")
    pool: int = Field(description="how many cases are to be scored; a fixed random choice where there are very many")
    scoring: bool = Field(description="whether scores are being found out; that begins when somebody asks")
    cases: list[Case]


class Released(BaseModel):
    """What became of the wish to end a reservation."""

    released: bool = Field(description="false where nobody had the case")


@router.get("/{department}", summary="List the cases to annotate in their order")
def cases(
    department: str,
    strategy: Literal["uncertainty_diversity", "uncertainty", "diversity"] = Query("uncertainty_diversity"),
    measure: Literal["entropy", "revisions", "foundation"] = Query(
        "entropy", description="of uncertainty: the expert's entropy, or how it disagrees with another network"
    ),
    limit: int = Query(100, ge=1, le=1000, description="most cases to be given out"),
) -> CaseList:
    """Rank the unlabelled images by what is known of them now; what is not known begins to be found out."""
    from monailabel.interfaces.utils.app import app_instance

    queue, datastore, name = _queue(), app_instance().datastore(), find_department(department).id
    queue.score(datastore, name, strategy=strategy, measure=measure)
    ranking = queue.ranking(datastore, name, strategy=strategy, measure=measure, limit=limit)
    reserved = queue.reservations.of(datastore.get_unlabeled_images())
    found = [
        Case(**vars(each), place=place, reserved_by=None, reserved_until=None)
        for place, each in enumerate(ranking.cases, start=1)
    ]
    for each in ranked([Known(image) for image in reserved], [], strategy=ORDER)[1]:
        own = reserved[each.image]
        found.append(Case(**vars(each), place=None, reserved_by=own.client, reserved_until=own.expires))
    return CaseList(
        department=name,
        strategy=ranking.strategy,
        measure=measure,
        reason=ranking.reason,
        scored=ranking.scored,
        pool=ranking.pool,
        scoring=queue.background.busy(queue.title(name, measure)),
        cases=found,
    )


@router.delete("/reservations/{image}", summary="End the reservation of a case")
def release(image: str) -> Released:
    """Let a case be given out again, whoever has it."""
    visit().image = image
    return Released(released=_queue().reservations.release(image) is not None)


def _queue() -> CaseQueue:
    from monailabel.interfaces.utils.app import app_instance

    queue: CaseQueue | None = app_instance().queue
    if queue is None:
        raise HTTPException(404, "active learning is switched off on this server; ask the operator")
    return queue
