"""Answers: what became of each target of a prompt."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from lorkd_monailabel.label_maps import Found, Segment
from lorkd_monailabel.prompts import Target


@dataclass(frozen=True)
class Answer:
    """What became of one target.

    Attributes:
        phrase: as typed.
        structure: canonical name.
        department: whose expert was asked.
        expert: the one that was asked, ``abdomen/0003``; None without one.
        revision: of that expert; None without one.
        value: in the label map; None without an expert.
        voxels: of the structure in the result: those that it won from others, or where overlaps are kept all that it
            claims.
        ml: its volume.
        status: ``found``, ``absent`` (asked, no voxel) or ``no expert``.
        confidence: mean probability of those voxels, above 0.5 to 1; None without a voxel. It is what the network
            says of itself, not a measure of how right it is.
        message: one sentence.
    """

    phrase: str
    structure: str
    department: str
    expert: str | None
    revision: int | None
    value: int | None
    voxels: int
    ml: float
    status: Literal["found", "absent", "no expert"]
    confidence: float | None
    message: str


def answers(
    targets: Sequence[Target],
    segments: Sequence[Segment],
    found: Mapping[int, Found],
    *,
    revisions: Mapping[str, int],
    voxel_ml: float,
) -> Iterator[Answer]:
    """Gives an answer for every target, in their order.

    Args:
        targets: structures asked for.
        segments: those that an expert was asked for.
        found: value -> what was found of it.
        revisions: department -> revision of the expert that was asked.
        voxel_ml: volume of a voxel.
    """
    values = {segment.structure.name: segment.value for segment in segments}
    for target in targets:
        name, department = target.structure.name, target.structure.department
        value = values.get(name)
        if value is None:
            message = f"no expert of {department} was trained on {name}"
            yield Answer(target.phrase, name, department, None, None, None, 0, 0.0, "no expert", None, message)
            continue
        own = found[value]
        expert = f"{department}/{revisions[department]:04d}"
        ml = own.voxels * voxel_ml
        yield Answer(
            phrase=target.phrase,
            structure=name,
            department=department,
            expert=expert,
            revision=revisions[department],
            value=value,
            voxels=own.voxels,
            ml=ml,
            status="found" if own.voxels else "absent",
            confidence=own.confidence,
            message=f"{ml:.1f} ml found by expert {expert}"
            if own.voxels
            else f"not found in this volume by expert {expert}",
        )
