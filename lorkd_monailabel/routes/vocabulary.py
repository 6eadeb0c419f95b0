"""What can be asked for: names for completion, and what a text would be understood as."""

import hashlib
from typing import Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field

from lorkd_monailabel.departments import LATERALITY, departments
from lorkd_monailabel.everything import understood
from lorkd_monailabel.predictor import Predictor
from lorkd_monailabel.prompts import AUTO, GROUPS, MAX_CHARACTERS, resolve

router = APIRouter(tags=["Prompts"])


class StructureEntry(BaseModel):
    """A structure that the vocabulary knows."""

    name: str = Field(description="canonical")
    side: str | None = Field(description="left or right of the patient, or null")
    synonyms: list[str] = Field(description="other names that are understood")
    snomed: str = Field(description="SNOMED CT code of the anatomy, without its side")
    snomed_meaning: str = Field(description="what the code means")
    snomed_side: tuple[str, str] | None = Field(description="SNOMED CT code and meaning of the side, or null")
    color: tuple[int, int, int] = Field(description="red, green, blue; 0 to 255")
    expert: bool = Field(description="whether the department's expert knows it")


class DepartmentEntry(BaseModel):
    """A department."""

    id: str = Field(description="for params.department")
    name: str = Field(description="as shown")
    revision: int | None = Field(description="of its expert in use; null without one")
    structures: list[StructureEntry]


class Group(BaseModel):
    """A word for several structures."""

    name: str = Field(description="that is understood, such as 'lung'")
    structures: list[str] = Field(description="canonical names of what it stands for")


class Vocabulary(BaseModel):
    """All names."""

    departments: list[DepartmentEntry]
    groups: list[Group]


class Prompt(BaseModel):
    """A text as it would be sent with a request to infer."""

    text: str = Field(description="phrases separated by ; , or new lines", max_length=MAX_CHARACTERS)
    department: str = Field(AUTO, description="the only one to look in, or auto", max_length=100)


class TargetEntry(BaseModel):
    """A structure that would be segmented."""

    phrase: str = Field(description="that asked for it")
    structure: str = Field(description="canonical name")
    department: str
    expert: bool = Field(description="whether an expert knows it now; without one the answer would be 'no expert'")
    revision: int | None = Field(description="of the department's expert in use")


class Missed(BaseModel):
    """A phrase that was not understood."""

    phrase: str
    message: str = Field(description="why, in one sentence")
    candidates: list[str] = Field(description="canonical names that may have been meant")
    status: Literal["not understood"] = "not understood"


class Understanding(BaseModel):
    """What a text would do."""

    targets: list[TargetEntry]
    not_understood: list[Missed]


@router.get(
    "/vocabulary", summary="List all names", response_model=Vocabulary, responses={304: {"description": "same"}}
)
def vocabulary(request: Request, response: Response) -> Vocabulary | Response:
    """Give departments, structures and groups, for completion.

    Send the ETag of the last answer as If-None-Match to be told, by 304 without a body, that nothing has changed.
    """
    found = _vocabulary(_predictor())
    etag = f'"{hashlib.sha256(found.model_dump_json().encode()).hexdigest()[:32]}"'
    headers = {"ETag": etag, "Cache-Control": "no-cache"}
    known = [each.strip().removeprefix("W/") for each in request.headers.get("if-none-match", "").split(",")]
    if etag in known or "*" in known:
        return Response(status_code=304, headers=headers)
    response.headers.update(headers)
    return found


@router.post("/resolve", summary="Say what a text asks for")
def resolve_text(prompt: Prompt) -> Understanding:
    """Read a text as a request to infer would, without an image."""
    predictor = _predictor()
    targets, missed = understood(prompt.text, prompt.department, predictor.structures)
    return Understanding(
        targets=[
            TargetEntry(
                phrase=target.phrase,
                structure=target.structure.name,
                department=target.structure.department,
                expert=target.structure.name in _names(predictor, target.structure.department),
                revision=predictor.store.served(target.structure.department),
            )
            for target in targets
        ],
        not_understood=[
            Missed(phrase=each.phrase, message=each.message, candidates=list(each.candidates)) for each in missed
        ],
    )


def _vocabulary(predictor: Predictor) -> Vocabulary:
    entries = []
    for department in departments():
        names = _names(predictor, department.id)
        entries.append(
            DepartmentEntry(
                id=department.id,
                name=department.name,
                revision=predictor.store.served(department.id),
                structures=[
                    StructureEntry(
                        name=each.name,
                        side=each.side,
                        synonyms=list(each.synonyms),
                        snomed=each.snomed,
                        snomed_meaning=each.snomed_meaning,
                        snomed_side=LATERALITY.get(each.side or ""),
                        color=each.color,
                        expert=each.name in names,
                    )
                    for each in department.structures
                ],
            )
        )
    groups = [
        Group(name=names[0], structures=[target.structure.name for target in resolve(names[0])[0]]) for names in GROUPS
    ]
    return Vocabulary(departments=entries, groups=groups)


def _names(predictor: Predictor, department: str) -> tuple[str, ...]:
    try:
        return predictor.structures(department)
    except ValueError:  # a damaged file of one department must not hide the others; /info/ tells of it
        return ()


def _predictor() -> Predictor:
    from monailabel.interfaces.utils.app import app_instance

    return app_instance().predictor
