"""What a converter finds: a case as its layout has it, under the layout's own names, and what converters share."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

VOLUMES = (".nii.gz", ".nii", ".nrrd", ".mha", ".mhd")

_WORDS = re.compile(r"[a-z0-9]+")
_CT = {"ct", "cta", "cect", "ncct", "ldct", "hu"}
_MRI = {
    *("mri", "mr", "t1", "t1w", "t1c", "t1ce", "t1gd", "t1n", "t2", "t2w", "t2f", "t2star", "t2starw", "flair"),
    *("adc", "dwi", "pd", "pdw", "pdt2", "inplanet1", "inplanet2", "unit1", "bssfp", "lge", "cine", "dixon", "swi"),
}


@dataclass(frozen=True)
class Found:
    """A labelled volume of some layout.

    Attributes:
        image: path.
        label: path of a volume on the same grid.
        subject: who was scanned.
        source: name of the data set.
        modality: in the layout's words, such as "CT" or "T2"; empty where it says nothing.
        split: of the layout; empty where it says nothing.
        labels: the layout's name -> values in the label volume; without values as long as ``write`` has to be called.
        write: for a layout that lacks one of the two volumes as a file: writes them into a folder, gives the case with
            them. None where nothing has to be written.
    """

    image: Path
    label: Path
    subject: str
    source: str
    modality: str
    split: str
    labels: Mapping[str, tuple[int, ...]]
    write: Callable[[Path], Found] | None = None


def modality_of(text: str) -> str | None:
    """Read "CT", "MRI T1" or "T2w" as ``ct`` or ``mri``; None where it is neither, or both."""
    words = set(_WORDS.findall(text.casefold()))
    found = {name for name, known in (("ct", _CT), ("mri", _MRI)) if words & known}
    return found.pop() if len(found) == 1 else None


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        ValueError: the file is missing, or it is not JSON, or not an object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path} can't be read ({error.strerror}); name the folder that holds it") from error
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); correct it, or take the original file again") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold an object in braces, not {type(content).__name__}; take the original again")
    return content


def entry(content: Any, key: str, kind: type, where: object) -> Any:
    """Give what stands under a key.

    Raises:
        ValueError: there is nothing, or something of another type.
    """
    if not isinstance(content, dict):
        raise ValueError(f"{where} is {content!r}, not an object in braces with {key!r}; correct it")
    value = content.get(key)
    if not isinstance(value, kind):
        lack = "has no" if key not in content else "has another kind of"
        raise ValueError(f"{where} {lack} {key!r}, but needs one of type {kind.__name__}; add it or correct it")
    return value


def whole_numbers(name: str, value: object, where: object) -> tuple[int, ...]:
    """Read the values of a label, one whole number or a list of them; "3" is a number too.

    Raises:
        ValueError: it is something else.
    """
    numbers: list[Any] = value if isinstance(value, list) else [value]
    if not numbers or any(isinstance(each, bool) or not re.fullmatch(r"-?\d+", str(each)) for each in numbers):
        raise ValueError(f"label {name!r} of {where} has the value {value!r}; write a whole number or a list of them")
    return tuple(int(each) for each in numbers)


def gathered(pairs: Iterable[tuple[str, int]]) -> dict[str, tuple[int, ...]]:
    """Gather the values of each name, which may come several times."""
    values: dict[str, tuple[int, ...]] = {}
    for name, value in pairs:
        values[name] = (*values.get(name, ()), value)
    return values


def channel_names(content: Any, key: str, where: object) -> list[str]:
    """Read the names of channels that stand under their numbers.

    Raises:
        ValueError: there are none, or one stands under something else.
    """
    names = {
        whole_numbers(str(name), number, where): str(name) for number, name in entry(content, key, dict, where).items()
    }
    return [names[number] for number in sorted(names)]


def channel_index(names: Sequence[str], wanted: str, where: object) -> int:
    """Find the channel of an image that is wanted, by its name or number; the only one need not be named.

    Raises:
        ValueError: there is no such channel, or there are several and none was named.
    """
    listed = ", ".join(f"{number} {name!r}" for number, name in enumerate(names))
    if not wanted:
        if len(names) == 1:
            return 0
        raise ValueError(f"the images of {where} have {len(names)} channels ({listed}); choose one with --channel")
    for number, name in enumerate(names):
        if wanted.casefold() == name.casefold() or wanted == str(number):
            return number
    raise ValueError(f"channel {wanted!r} is not one of {where} ({listed}); choose one of these with --channel")


def stem(path: Path) -> str:
    """Give a volume's name without its extension: ``liver_0.nii.gz`` -> ``liver_0``."""
    ending = next((known for known in VOLUMES if path.name.lower().endswith(known)), "")
    return path.name[: len(path.name) - len(ending)]


def check_there(paths: Iterable[Path], where: object) -> None:
    """Check that files exist that a layout promises.

    Raises:
        ValueError: some don't; the first is named.
    """
    wanted = list(paths)
    missing = [path for path in wanted if not path.exists()]
    if missing:
        raise ValueError(
            f"{len(missing)} of the {len(wanted)} files that {where} needs are missing, the first is {missing[0]}; "
            "complete the folder"
        )
