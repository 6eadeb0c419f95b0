"""Lines of a list of cases, read one by one, so that a fault of one hides none of another."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorkd_monailabel.case_lists.naming import suggestions
from lorkd_monailabel.case_lists.writing import MOST_VALUES
from lorkd_monailabel.departments import department, structures
from lorkd_monailabel.learning.cases import Case, case_of


@dataclass(frozen=True)
class Line:
    """A case and the number of its line."""

    number: int
    case: Case


@dataclass(frozen=True)
class Finding:
    """What will hurt.

    Attributes:
        lines: numbers of the lines that it is about.
        message: one sentence: value, rule, way out.
        who: subject, where it is about one.
        fault: False for what may well be so, a warning.
    """

    lines: tuple[int, ...]
    message: str
    who: str = ""
    fault: bool = True

    def __str__(self) -> str:
        """One line of text."""
        shown = ", ".join(map(str, self.lines[:5])) + (f", … ({len(self.lines)} in all)" if len(self.lines) > 5 else "")
        who = f" ({self.who})" if self.who else ""
        return f"line{'s' if len(self.lines) > 1 else ''} {shown}{who}: {' '.join(self.message.split())}"


def finding(line: Line, message: str, *, fault: bool = True) -> Finding:
    """Make a finding on one case."""
    return Finding((line.number,), message, f"subject {line.case.subject!r} of {line.case.source}", fault)


def read_lines(path: Path) -> tuple[list[Line], list[Finding]]:
    """Read what of a list are cases, and say what is wrong with the rest, with names and with departments.

    Raises:
        ValueError: the list can't be read, or is empty.
    """
    try:
        texts = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"list of cases {path} can't be read ({error}); give the path of a JSON lines file") from error
    lines: list[Line] = []
    findings: list[Finding] = []
    names: dict[tuple[str, str], list[int]] = {}
    for number, text in enumerate(texts, start=1):
        if not text.strip():
            continue
        try:
            record = json.loads(text)
            for name, where in _misplaced(record).items():
                names.setdefault((name, where), []).append(number)
                # so that the rest of the line is looked at too
                record["structures"][name]["department"] = (
                    structures()[name].department if name in structures() else where
                )
            case = case_of(record, folder=path.parent)
            _check(case)
            lines.append(Line(number, case))
        except (KeyError, TypeError, AttributeError, ValueError, OSError) as error:
            why = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
            findings.append(
                Finding((number,), f"this is no case that can be used: {why}; see the format in the README")
            )
    if not lines and not findings:
        raise ValueError(f"{path} has no line; give the path of a list of cases")
    findings += [_of_name(name, where, numbers) for (name, where), numbers in names.items()]
    return lines, findings


def _misplaced(record: dict[str, Any]) -> dict[str, str]:
    """Structures that the vocabulary lacks, or has in another department than the line: name -> the line's."""
    own = {name: department(each["department"]).id for name, each in record["structures"].items()}
    return {
        name: where for name, where in own.items() if name not in structures() or structures()[name].department != where
    }


def _of_name(name: str, where: str, numbers: Sequence[int]) -> Finding:
    if name in structures():
        home = structures()[name].department
        message = f"{name!r} is a structure of {home}, not of {where}, where no prompt would look; write {home}"
        return Finding(tuple(numbers), message)
    meant = suggestions(name)
    advice = f"did you mean {' or '.join(map(repr, meant))}?" if meant else "rename it, or add it to departments.json"
    return Finding(tuple(numbers), f"{name!r} is no structure of the vocabulary, so no prompt would find it; {advice}")


def _check(case: Case) -> None:
    if not all(isinstance(text, str) and text for text in (case.source, case.split)):
        raise ValueError(f"source {case.source!r} and split {case.split!r} must be text")
    if case.modality not in ("ct", "mri"):
        raise ValueError(f"modality {case.modality!r} must be ct or mri")
    if not case.structures:
        raise ValueError("it lists no structure")
    for name, values in case.structures.items():
        if not values or any(type(value) is not int or not 1 <= value <= MOST_VALUES for value in values):
            raise ValueError(f"the values {list(values)} of {name} must be whole numbers in 1..{MOST_VALUES}")
    case.taught()
