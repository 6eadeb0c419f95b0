"""What was found out about cases, kept in files: scores of an image, of a file as it was, by a revision as it was."""

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from lorkd_monailabel.json_files import read_json, write_json

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Scored:
    """A value, and all that it was made of: when any of that is another, the value is none."""

    made_of: str
    value: float | tuple[float, ...]


@dataclass(frozen=True)
class CaseScores:
    """What is known of an image for one department: by name, such as ``entropy`` or ``feature``."""

    values: Mapping[str, Scored] = field(default_factory=dict)

    def get(self, name: str, made_of: str) -> float | tuple[float, ...] | None:
        """Give a value that is still true; None where there is none."""
        found = self.values.get(name)
        return found.value if found and found.made_of == made_of else None


class ScoreFiles:
    """Scores of all images: a file for each image and department; what was read once is kept.

    Args:
        folder: of the files.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._read: dict[Path, CaseScores] = {}

    def get(self, department: str, reference: str) -> CaseScores:
        """Give what is known of an image; nothing where its file is damaged, as all can be found out again."""
        path = self._path(department, reference)
        if path not in self._read:
            try:
                values = {name: _scored(value) for name, value in read_json(path).items()}
            except (ValueError, TypeError, KeyError) as error:
                _LOG.warning("scores of a case are made anew: %s", error)
                values = {}
            self._read[path] = CaseScores(values)
        return self._read[path]

    def put(self, department: str, reference: str, found: Mapping[str, Scored]) -> None:
        """Add to what is known of an image."""
        path = self._path(department, reference)
        known = CaseScores({**self.get(department, reference).values, **found})
        write_json(path, {name: asdict(value) for name, value in known.values.items()}, flush=False)
        self._read[path] = known

    def _path(self, department: str, reference: str) -> Path:
        return self.folder / department / f"{reference}.json"


def _scored(value: dict[str, str | float | list[float]]) -> Scored:
    number = value["value"]
    return Scored(str(value["made_of"]), tuple(map(float, number)) if isinstance(number, list) else float(number))
