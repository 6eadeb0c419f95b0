"""Cases: labelled volumes listed as JSON lines.

A line is one case: ``image`` and ``label`` (paths, relative to the list's folder or absolute), ``modality`` (``ct`` or
``mri``), ``source``, ``subject``, ``split`` and ``structures``: name -> ``values`` in the label volume and
``department``. A structure that is not listed was not annotated; a listed one without a voxel is absent. ``teacher``,
where a line has it, says where the masks of a teacher are, see ``lorkd_monailabel.teachers.masks``.
"""

import json
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from lorkd_monailabel.departments import department as find_department
from lorkd_monailabel.departments import structures
from lorkd_monailabel.teachers.masks import TeacherMasks, teacher_masks


@dataclass(frozen=True)
class Case:
    """A labelled volume.

    Attributes:
        image: path.
        label: path of a volume on the same grid.
        modality: ``ct`` or ``mri``.
        source: name of the data set.
        subject: who was scanned; splits never part a subject.
        split: for example ``train``.
        structures: name -> values in the label volume.
        departments: name -> department id.
        teacher: masks that a teacher made before; None for none.
    """

    image: Path
    label: Path
    modality: str
    source: str
    subject: str
    split: str
    structures: dict[str, tuple[int, ...]]
    departments: dict[str, str]
    teacher: TeacherMasks | None = None

    def of(self, department: str) -> tuple[str, ...]:
        """Name the structures of a department that are annotated here."""
        return tuple(name for name in self.structures if self.departments[name] == department)

    def taught(self) -> dict[str, Path]:
        """Name the structures of which there is a teacher's mask, annotated or not, and the file of each.

        Raises:
            ValueError: naming the case; see ``TeacherMasks.files``.
        """
        if self.teacher is None:
            return {}
        try:
            return self.teacher.files(self.structures)
        except (ValueError, OSError) as error:
            raise ValueError(f"case {self.subject!r} of {self.source}: {error}") from error

    def taught_alone(self, department: str = "") -> tuple[str, ...]:
        """Name the structures of a department (of all, if none is named) of which there is nothing but such a mask."""
        names = [name for name in self.taught() if name not in self.structures]
        return tuple(name for name in names if not department or structures()[name].department == department)


def read_cases(path: str | Path, *, splits: Collection[str] = (), sources: Collection[str] = ()) -> list[Case]:
    """Read a list of cases.

    Args:
        path: JSON lines.
        splits: keep these only; empty keeps all.
        sources: keep these only; empty keeps all.

    Raises:
        ValueError: the list is missing, a line is not a case, or no case is left.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"list of cases {path} can't be read ({error}); give the path of a JSON lines file") from error
    cases = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            case = case_of(json.loads(line), folder=path.parent)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"{path} line {number} is not a case ({error!r}); see the format in the README") from error
        if (not splits or case.split in splits) and (not sources or case.source in sources):
            cases.append(case)
    if not cases:
        raise ValueError(f"{path} has no case of splits {list(splits)} and sources {list(sources)}; widen the choice")
    return cases


def case_of(record: dict, *, folder: Path = Path()) -> Case:
    """Make a case of one decoded line; relative paths start at ``folder``.

    Raises:
        KeyError, TypeError, AttributeError: the line lacks something.
        ValueError: an unknown department, or a structure that the vocabulary has in another one.
    """
    departments = {name: find_department(entry["department"]).id for name, entry in record["structures"].items()}
    for name, department in departments.items():
        known = structures().get(name)
        if known is not None and known.department != department:
            raise ValueError(
                f"{name} is a structure of {known.department}, the case puts it into {department}, where no prompt "
                "would look for it; write the vocabulary's department"
            )
    return Case(
        image=folder / record["image"],
        label=folder / record["label"],
        modality=record["modality"],
        source=record["source"],
        subject=str(record["subject"]),
        split=record["split"],
        structures={name: tuple(entry["values"]) for name, entry in record["structures"].items()},
        departments=departments,
        teacher=teacher_masks(record["teacher"], folder=folder, known=departments) if "teacher" in record else None,
    )


def departments_of(cases: Iterable[Case]) -> tuple[str, ...]:
    """Name the departments that have a structure in any of the cases, sorted.

    Raises:
        ValueError: a teacher's masks are not there.
    """
    found = set()
    for case in cases:
        found |= {*case.departments.values(), *(structures()[name].department for name in case.taught_alone())}
    return tuple(sorted(found))
