"""Names of other data sets -> structures of the vocabulary, all that are not understood reported at once."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from lorkd_monailabel.departments import structures
from lorkd_monailabel.prompts import resolve
from lorkd_monailabel.teachers.names import structure_named

_ASIDE = re.compile(r"\([^()]*\)")


@dataclass(frozen=True)
class Choices:
    """What a user decided on names.

    Attributes:
        mapped: their name -> structures of the vocabulary.
        skipped: their names that are left out.
        skip_unknown: leave out every name that is not understood.
    """

    mapped: dict[str, tuple[str, ...]] = field(default_factory=dict)
    skipped: frozenset[str] = frozenset()
    skip_unknown: bool = False


def choices_of(maps: Sequence[str], skips: Sequence[str], *, skip_unknown: bool = False) -> Choices:
    """Read ``THEIR NAME=STRUCTURE`` (again for a further structure of the same name) and names to skip.

    Raises:
        ValueError: an equals sign is missing, or what follows it is no structure of the vocabulary.
    """
    mapped: dict[str, tuple[str, ...]] = {}
    for text in maps:
        theirs, sign, ours = (part.strip() for part in text.rpartition("="))
        if not (theirs and sign and ours):
            raise ValueError(f'--map {text!r} must be "THEIR NAME=STRUCTURE", such as "Anterior=anterior hippocampus"')
        name = structure_named(ours)
        if name is None:
            raise ValueError(f"--map {text!r}: {_why(ours)}; write a structure of the vocabulary after the =")
        mapped[theirs] = tuple(dict.fromkeys((*mapped.get(theirs, ()), name)))
    return Choices(mapped, frozenset(skips), skip_unknown)


def structures_of(names: Iterable[str], choices: Choices) -> dict[str, tuple[str, ...]]:
    """Find the structures that names stand for; none for a name that is left out.

    What stands for several structures ("kidneys") is left out where each of them has a name of its own among these.

    Raises:
        ValueError: names that are not understood, all of them; or a choice for a name that does not occur.
    """
    names = list(dict.fromkeys(names))
    surplus = [each for each in (*choices.mapped, *choices.skipped) if each not in names]
    if surplus:
        raise ValueError(
            f"{_listed(surplus)} of --map or --skip is no label here; the labels are {_listed(names)}, write one as it "
            "stands"
        )
    found = {name: choices.mapped.get(name) or _one(name) for name in names if name not in choices.skipped}
    own = {each for single in found.values() for each in single}
    unknown = [
        name for name, single in found.items() if not single and not (_group(name) and own.issuperset(_group(name)))
    ]
    if unknown and not choices.skip_unknown:
        raise ValueError(
            f"{len(unknown)} of {len(names)} names stand for no structure of the vocabulary: "
            f"{', '.join(map(_why, unknown))}; for each add --map {_quoted(unknown[0] + '=STRUCTURE')} or --skip "
            f"{_quoted(unknown[0])}, or leave out all of them with --skip-unknown"
        )
    return {name: found.get(name, ()) for name in names}


def _one(name: str) -> tuple[str, ...]:
    """The structure of a name; "lumbar vertebrae 1 (l1)" is read again without what stands aside."""
    single = structure_named(name) or structure_named(_ASIDE.sub(" ", name))
    return (single,) if single else ()


def _group(name: str) -> tuple[str, ...]:
    """The structures of a name that stands for several, as "kidneys" does."""
    if not name.strip() or len(name) > 200:
        return ()
    targets, refused = resolve(name.replace("_", " "))
    return () if refused else tuple(each.structure.name for each in targets)


def _why(name: str) -> str:
    if name.casefold() == "ignore":
        return f"{name!r} (marks voxels that nobody annotated; skipped, they count as background)"
    group = _group(name)
    if group:
        return f"{name!r} (stands for {len(group)}: {', '.join(group[:3])}{', …' if len(group) > 3 else ''})"
    candidates = suggestions(name)
    return f"{name!r} (like {' or '.join(map(repr, candidates))})" if candidates else repr(name)


def suggestions(name: str) -> tuple[str, ...]:
    """Name up to three structures that are spelled alike."""
    if name in structures() or not name.strip():
        return ()
    _, refused = resolve(name[:200].replace("_", " "))
    return refused[0].candidates if refused else ()


def _listed(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names))


def _quoted(text: str) -> str:
    return f'"{text}"'
