"""The vocabulary: eight departments and their structures, with names, sides, SNOMED CT codes and colours.

The data stand in ``departments.json``, one structure a line; every record is checked when the file is read.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

DEPARTMENT_IDS = ("brain", "head_and_neck", "thorax", "abdomen", "pelvis", "spine", "upper_limb", "lower_limb")
LATERALITY = {"left": ("7771000", "Left"), "right": ("24028007", "Right")}
"""SNOMED CT code and meaning of each side."""

_FILE = Path(__file__).with_name("departments.json")
_REQUIRED = {"name", "snomed", "snomed_meaning", "color", "synonyms"}
_OPTIONAL = {"side"}
_SNOMED = re.compile(r"[1-9]\d{5,17}")
_SEPARATORS = re.compile(r"[\s_-]+")
_PROMPT_SEPARATORS = re.compile(r"[,;]")


@dataclass(frozen=True)
class Structure:
    """What can be segmented, as one target.

    Attributes:
        name: canonical, as shown: "left kidney", "L3 vertebra".
        department: id of the only department it belongs to.
        side: of the patient; None where there is one such structure, or where "left" is only a part of the name (the
            chambers of the heart).
        snomed: SNOMED CT code of the anatomy; the side is added by ``LATERALITY``.
        snomed_meaning: what the code means; broader than the name where SNOMED CT codes for parts are not public.
        color: red, green, blue; 0..255.
        synonyms: other names, none of them shared with another structure.
    """

    name: str
    department: str
    side: str | None
    snomed: str
    snomed_meaning: str
    color: tuple[int, int, int]
    synonyms: tuple[str, ...]


@dataclass(frozen=True)
class Department:
    """A body region with its own expert.

    Attributes:
        id: for files and requests: "head_and_neck".
        name: as shown: "head and neck".
        structures: in anatomical order.
    """

    id: str
    name: str
    structures: tuple[Structure, ...]


@lru_cache(maxsize=1)
def departments() -> tuple[Department, ...]:
    """The eight departments, in the order of ``DEPARTMENT_IDS``.

    Raises:
        ValueError: when ``departments.json`` breaks a rule; the message names the record.
    """
    return parse(_FILE.read_text(encoding="utf-8"))


def department(id_or_name: str) -> Department:
    """One department, by "head_and_neck" or "head and neck", in any case.

    Raises:
        ValueError: when there is none of that name.
    """
    wanted = _folded(id_or_name)
    for each in departments():
        if wanted in (_folded(each.id), _folded(each.name)):
            return each
    raise ValueError(f"department {id_or_name!r} is unknown; choose one of {', '.join(DEPARTMENT_IDS)}")


@lru_cache(maxsize=1)
def structures() -> Mapping[str, Structure]:
    """All structures by canonical name, department by department, read-only."""
    return MappingProxyType({each.name: each for region in departments() for each in region.structures})


def structure(name: str) -> Structure:
    """One structure, by its canonical name only; ``prompts.resolve`` understands more.

    Raises:
        ValueError: when there is none of that name.
    """
    try:
        return structures()[name]
    except KeyError:
        raise ValueError(f"structure {name!r} is unknown; take a name from departments.json") from None


def parse(text: str) -> tuple[Department, ...]:
    """Read and check departments from the text of a ``departments.json``.

    Raises:
        ValueError: at the first record that breaks a rule; the message names it.
    """
    try:
        records = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"line {error.lineno} of departments.json must be JSON ({error.msg}); correct it") from None
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise ValueError("departments.json must be a list of departments; restore its layout")
    ids = tuple(record.get("id") for record in records)
    if ids != DEPARTMENT_IDS:
        raise ValueError(f"the departments {ids} must be {DEPARTMENT_IDS}, in this order; correct departments.json")
    regions = tuple(map(_department, records))
    _check_names(each for region in regions for each in region.structures)
    return regions


def _department(record: dict[str, Any]) -> Department:
    where = f"department {record['id']!r}"
    _check_keys(where, record, {"id", "name", "structures"}, set())
    _check_text(where, "name", record["name"])
    if not isinstance(record["structures"], list):
        raise ValueError(f"structures of {where} must be a list; write one structure a line")
    return Department(
        id=record["id"],
        name=record["name"],
        structures=tuple(_structure(each, record["id"]) for each in record["structures"]),
    )


def _structure(record: Any, department_id: str) -> Structure:
    if not isinstance(record, dict):
        raise ValueError(f"structure {record!r} of department {department_id!r} must be an object in braces")
    where = f"structure {record.get('name')!r}"
    _check_keys(where, record, _REQUIRED, _OPTIONAL)
    for key in ("name", "snomed_meaning"):
        _check_text(where, key, record[key])
    _check_side(where, record)
    _check_color(where, record["color"])
    if not isinstance(record["snomed"], str) or not _SNOMED.fullmatch(record["snomed"]):
        raise ValueError(f"snomed {record['snomed']!r} of {where} must be a string of 6 to 18 digits")
    if not isinstance(record["synonyms"], list):
        raise ValueError(f"synonyms {record['synonyms']!r} of {where} must be a list; write [] for none")
    for synonym in record["synonyms"]:
        _check_text(where, "synonym", synonym)
    red, green, blue = record["color"]
    return Structure(
        name=record["name"],
        department=department_id,
        side=record.get("side"),
        snomed=record["snomed"],
        snomed_meaning=record["snomed_meaning"],
        color=(red, green, blue),
        synonyms=tuple(record["synonyms"]),
    )


def _check_keys(where: str, record: dict[str, Any], required: set[str], optional: set[str]) -> None:
    missing, surplus = sorted(required - set(record)), sorted(set(record) - required - optional)
    if missing:
        raise ValueError(f"{where} has no {', '.join(missing)}; add it in departments.json")
    if surplus:
        raise ValueError(f"{where} has the unknown key {', '.join(surplus)}; remove it from departments.json")


def _check_text(where: str, key: str, value: Any) -> None:
    if not isinstance(value, str) or not value or value != " ".join(value.split()):
        raise ValueError(f"{key} {value!r} of {where} must be text without superfluous spaces")


def _check_side(where: str, record: dict[str, Any]) -> None:
    """The name tells the side, unless the record says in so many words that it is no side of the patient."""
    first, side = record["name"].split()[0], record.get("side")
    if side is not None and side not in tuple(LATERALITY):
        raise ValueError(f"side {side!r} of {where} must be left, right or null")
    if side is not None and side != first:
        raise ValueError(f"side {side!r} of {where} must be the first word of its name; change one of them")
    if first in LATERALITY and "side" not in record:
        raise ValueError(f'{where} has no side; add "side": "{first}", or null where it is no side of the patient')


def _check_color(where: str, color: Any) -> None:
    if (
        not isinstance(color, list)
        or len(color) != 3
        or any(type(part) is not int or not 0 <= part <= 255 for part in color)
    ):
        raise ValueError(f"color {color!r} of {where} must be three whole numbers from 0 to 255")


def _check_names(all_structures: Iterator[Structure]) -> None:
    owners: dict[str, str] = {}
    names: set[str] = set()
    for each in all_structures:
        if each.name in names:
            raise ValueError(f"structure {each.name!r} stands twice in departments.json; remove one of the two")
        names.add(each.name)
        if len({each.name, *each.synonyms}) <= len(each.synonyms):
            raise ValueError(f"a name of structure {each.name!r} is repeated in its synonyms; remove the repetition")
        for text in (each.name, *each.synonyms):
            if _PROMPT_SEPARATORS.search(text):
                raise ValueError(f"name {text!r} of structure {each.name!r} must have no , or ;: they separate prompts")
            owner = owners.setdefault(_folded(text), each.name)
            if owner != each.name:
                raise ValueError(f"synonym {text!r} of structure {each.name!r} belongs to {owner!r} too; remove one")


def _folded(text: str) -> str:
    return _SEPARATORS.sub(" ", text).strip().casefold()
