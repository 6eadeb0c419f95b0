"""Experts and their revisions: what there is, how two differ, the way back, and which one is served."""

from typing import Any

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field

from lorkd_monailabel import candidates, revisions
from lorkd_monailabel.departments import department as find_department
from lorkd_monailabel.front_door.visits import visit
from lorkd_monailabel.store import ExpertStore

router = APIRouter(prefix="/experts", tags=["Experts"])


class Summary(BaseModel):
    """A department that has an expert."""

    department: str
    served: int = Field(description="revision that requests get: the pinned one, else the newest")
    newest: int = Field(description="revision that was published last")
    pinned: int | None = Field(description="revision that is served whatever is published; null for none")
    revisions: int = Field(description="how many there are")
    candidates: int = Field(description="how many there are")


class Revision(BaseModel):
    """An expert as it was published; a damaged one has its number and problem alone."""

    revision: int
    parent: int = Field(0, description="revision that it was trained from; 0 for none")
    copy_of: int | None = Field(None, description="revision that was published anew as this one")
    date: str = Field("", description="of its making, UTC")
    dice: float | None = Field(None, description="mean of the metrics")
    metrics: dict[str, float] = Field({}, description="structure -> Dice on the validation cases at publication")
    structures: list[str] = Field([], description="that it was trained on")
    ranks: list[int] = Field([], description="smallest and largest of its layers")
    spacing_mm: list[float] = Field([], description="of its grid")
    base: str = Field("", description="SHA-256 of its base")
    cases: list[str] = Field([], description="references of the subjects it was trained on; nobody can trace them")
    validation: list[str] = Field([], description="references of the subjects it was validated on")
    comparison: dict[str, Any] | None = Field(None, description="with which revision it was compared, and both Dice")
    bytes: int = 0
    problem: str | None = Field(None, description="why it can't be read")


class Candidate(BaseModel):
    """An expert that was trained and not published."""

    id: str
    parent: int = 0
    date: str = ""
    metrics: dict[str, float] = {}
    structures: list[str] = []
    cases: list[str] = []
    comparison: dict[str, Any] | None = None
    problem: str | None = None


class History(BaseModel):
    """All that there is of a department, the newest first."""

    department: str
    served: int
    newest: int
    pinned: int | None
    revisions: list[Revision]
    candidates: list[Candidate]


class Change(BaseModel):
    """A figure of two revisions."""

    a: float | None
    b: float | None
    change: float | None = Field(description="b less a; null where one is missing")


class Sets(BaseModel):
    """What came and went from a to b."""

    added: list[str]
    removed: list[str]
    kept: int


class Difference(BaseModel):
    """What changed from revision a to revision b."""

    department: str
    a: int
    b: int
    dice: list[float | None] = Field(description="means of both; they compare only on the same validation cases")
    metrics: dict[str, Change]
    structures: Sets
    ranks: dict[str, list[int | None]] = Field(description="layers whose rank changed -> both")
    cases: Sets
    same_validation: bool
    same_base: bool


class Number(BaseModel):
    """A revision."""

    model_config = ConfigDict(extra="forbid")

    revision: int = Field(ge=1, le=10**9)


class MaybeNumber(BaseModel):
    """A revision, or null."""

    model_config = ConfigDict(extra="forbid")

    revision: int | None = Field(ge=1, le=10**9)


class Served(BaseModel):
    """What is so now."""

    department: str
    published: int | None = Field(description="number of the revision that was added; null for none")
    served: int = Field(description="revision that requests get from now on")
    pinned: int | None


@router.get("", summary="List the departments that have an expert")
def all_experts() -> list[Summary]:
    """Give what is served of each."""
    return [Summary(**each) for each in revisions.experts(_store())]


@router.get("/{department}", summary="All revisions and candidates of a department")
def one_department(department: str) -> History:
    """Give them, the newest first."""
    return History(**revisions.history(_store(), department))


@router.get("/{department}/diff", summary="How two revisions differ")
def difference(
    department: str,
    a: int = Query(description="a revision", ge=1, le=10**9),
    b: int = Query(description="another", ge=1, le=10**9),
) -> Difference:
    """Compare metrics, structures, ranks and cases."""
    return Difference(**revisions.difference(_store(), department, a, b))


@router.get("/{department}/{revision}", summary="A revision")
def one_revision(department: str, revision: int) -> Revision:
    """Give what it says of itself."""
    return Revision(**revisions.revision(_store(), department, revision))


@router.post("/{department}/rollback", summary="Publish an old revision anew")
def roll_back(department: str, number: Number) -> Served:
    """Add a copy of an old revision as the newest; all revisions stay."""
    published = revisions.roll_back(_store(), department, number.revision)
    _note("roll back", department, revision=number.revision, published=published)
    return _served(department, published)


@router.post("/{department}/pin", summary="Serve a revision whatever is published")
def pin(department: str, number: MaybeNumber) -> Served:
    """Pin a revision, or with null let the newest be served again; a pin survives a restart."""
    revisions.pin(_store(), department, number.revision)
    _note("pin" if number.revision else "unpin", department, revision=number.revision)
    return _served(department, None)


@router.post("/{department}/candidates/{candidate}/publish", summary="Publish a candidate")
def publish_candidate(department: str, candidate: str) -> Served:
    """Add a candidate as the newest revision, though it was worse on the validation cases."""
    published = candidates.publish_candidate(_store(), department, candidate)
    _note("publish candidate", department, candidate=candidate, published=published)
    return _served(department, published)


@router.delete("/{department}/candidates/{candidate}", summary="Remove a candidate", status_code=204)
def discard(department: str, candidate: str) -> None:
    """Remove it; nothing was served from it."""
    candidates.discard(_store(), department, candidate)
    _note("discard candidate", department, candidate=candidate)


def _store() -> ExpertStore:
    from monailabel.interfaces.utils.app import app_instance

    store: ExpertStore = app_instance().store
    return store


def _note(action: str, department: str, **what: Any) -> None:
    from monailabel.interfaces.utils.app import app_instance

    here = visit()
    app_instance().audit.record(
        action, user=here.user, client=here.client, department=department, request_id=here.request_id, **what
    )


def _served(department: str, published: int | None) -> Served:
    told = revisions.summary(_store(), find_department(department).id)
    return Served(department=told["department"], published=published, served=told["served"], pinned=told["pinned"])
