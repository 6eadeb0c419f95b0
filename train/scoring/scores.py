"""Scores: how well each structure of each case came out, in memory, under way, and as a CSV file."""

import csv
import io
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from lorkd_monailabel.drafts import write_whole


@dataclass(frozen=True)
class Score:
    """How well one structure of one case came out, on one grid.

    Attributes:
        source: name of the data set.
        subject: who was scanned.
        case: name of the image file.
        department: id.
        modality: ``ct`` or ``mri``.
        structure: canonical name.
        grid: ``native``, or spacings in mm, as ``1x1x3``.
        dsc: Dice of the volumes, 0 to 1.
        nsd: Dice of the surfaces, 0 to 1; None where distances in mm are meaningless.
        reference_voxels: of the reference.
        predicted_voxels: of the prediction.
    """

    source: str
    subject: str
    case: str
    department: str
    modality: str
    structure: str
    grid: str
    dsc: float
    nsd: float | None
    reference_voxels: int
    predicted_voxels: int

    @property
    def key(self) -> tuple[str, ...]:
        """What another model's score of the same structure, case and grid shares with this one."""
        return self.source, self.subject, self.case, self.department, self.modality, self.structure, self.grid


COLUMNS = tuple(field.name for field in fields(Score))


class Draft:
    """Scores of an evaluation under way: one line of JSON for each case that is done.

    A killed evaluation goes on after the last whole line. What belongs to another evaluation (another model, other
    cases or settings) is thrown away.

    Args:
        path: of the file.
        identity: of the evaluation.
    """

    def __init__(self, path: Path, identity: str) -> None:
        self.path = path
        self.done: list[list[Score]] = []
        whole = self._whole_lines()
        if whole and whole[0] == {"evaluation": identity}:
            self.done = [[Score(**row) for row in rows] for rows in whole[1:]]
        lines = [{"evaluation": identity}, *([asdict(row) for row in rows] for rows in self.done)]
        write_whole(path, "".join(json.dumps(line) + "\n" for line in lines))

    def _whole_lines(self) -> list[Any]:
        if not self.path.exists():
            return []
        lines = self.path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]  # a torn one has no end
        try:
            return [json.loads(line) for line in lines]
        except ValueError:
            return []

    def append(self, scores: Sequence[Score]) -> None:
        """Add the scores of the next case and wait until they are on the disk."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps([asdict(score) for score in scores]) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.done.append(list(scores))


def write_scores(scores: Sequence[Score], path: Path) -> None:
    """Write a CSV file, whole or not at all; ``read_scores`` gives the same scores."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: "" if value is None else value for name, value in asdict(row).items()} for row in scores)
    write_whole(path, text.getvalue())


def read_scores(path: Path) -> list[Score]:
    """Read what ``write_scores`` wrote.

    Raises:
        ValueError: there is no such file, or it is none of these.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            scores = [_score(row) for row in csv.DictReader(file)]
        if not scores:
            raise ValueError("no row")
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} holds no scores ({error!r}); make it with python -m train.evaluate") from error
    return scores


def read_about(path: Path) -> dict[str, Any]:
    """Read what an evaluation tells of its model; empty where there is no such file."""
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return about if isinstance(about, dict) else {}


def _score(row: dict[str, str]) -> Score:
    texts = {name: row[name] for name in COLUMNS[:7]}
    return Score(
        **texts,
        dsc=float(row["dsc"]),
        nsd=float(row["nsd"]) if row["nsd"] else None,
        reference_voxels=int(row["reference_voxels"]),
        predicted_voxels=int(row["predicted_voxels"]),
    )
