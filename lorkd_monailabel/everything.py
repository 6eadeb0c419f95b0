"""Prompts for all there is: "everything", "all organs", "everything in the abdomen" -> what the experts know.

All other phrases are left to ``prompts.resolve``; "all ribs" is one of them.
"""

import re
from collections.abc import Callable, Sequence

from lorkd_monailabel.departments import Department, department, departments, structures
from lorkd_monailabel.prompts import AUTO, MAX_CHARACTERS, NotUnderstood, Target, resolve

_ALL = {"all", "every", "everything"}
_FILLERS = {"a", "an", "and", "in", "inside", "is", "it", "of", "on", "that", "the", "there", "within", "you", "know"}
_THINGS = {"anatomy", "body", "organ", "organs", "region", "structure", "structures", "whole"}
_SEPARATORS = re.compile(r"([;,\n\r]+)")
_WORDS = re.compile(r"[^\W_]+")


def understood(
    text: str, asked: str, known: Callable[[str], Sequence[str]]
) -> tuple[list[Target], list[NotUnderstood]]:
    """Says what a prompt asks for, as ``resolve`` does, and understands phrases for everything too.

    Args:
        text: phrases separated by ``;``, ``,`` or new lines.
        asked: id or name of the only department to look in, or "auto" for all.
        known: gives, for a department, the structures that its expert knows; none without one.

    Returns:
        Targets, each structure once: those that are named in the order of the text, then the rest of everything by
        department; and the phrases that gave none.

    Raises:
        ValueError: when the text is empty or longer than 4,000 characters, or the department is unknown.
    """
    only = None if asked.strip().casefold() == AUTO else department(asked).id
    if len(text) > MAX_CHARACTERS:
        return resolve(text, asked)
    pieces = _SEPARATORS.split(text)
    scopes = {" ".join(piece.split()): scope for piece in pieces if (scope := _scope(piece)) is not None}
    if not scopes:
        return resolve(text, asked)
    rest = "".join("" if _scope(piece) is not None else piece for piece in pieces)
    named, missed = resolve(rest, asked) if _WORDS.search(rest) else ([], [])
    targets = {target.structure.name: target for target in named}
    for phrase, scope in scopes.items():
        added, refusal = _everything(phrase, scope, only, known)
        for target in added:
            targets.setdefault(target.structure.name, target)
        if refusal is not None:
            missed.append(refusal)
    return list(targets.values()), missed


def _scope(piece: str) -> tuple[Department, ...] | None:
    """The departments that a phrase asks for everything of, none of them for all; None for any other phrase."""
    text = " ".join(_WORDS.findall(piece.casefold()))
    named = []
    for each in departments():
        if re.search(rf"\b{each.name}\b", text):
            named.append(each)
            text = re.sub(rf"\b{each.name}\b", " ", text)
    words = set(text.split())
    return tuple(named) if words & _ALL and words <= _ALL | _FILLERS | _THINGS else None


def _everything(
    phrase: str, scope: tuple[Department, ...], only: str | None, known: Callable[[str], Sequence[str]]
) -> tuple[list[Target], NotUnderstood | None]:
    elsewhere = [each.name for each in scope if only not in (None, each.id)]
    if elsewhere:
        advice = f"choose {elsewhere[0]} or auto" if len(elsewhere) == 1 else "choose auto"
        message = f"{phrase!r} asks for {' and '.join(elsewhere)}, not for {department(only or '').name}; {advice}"
        return [], NotUnderstood(phrase, message, ())
    wanted = [each for each in scope or departments() if only in (None, each.id)]
    vocabulary = structures()
    found = {each.name: [name for name in known(each.id) if name in vocabulary] for each in wanted}
    targets = [Target(phrase, vocabulary[name]) for names in found.values() for name in names]
    # of everything there is what there is; of a department that is named, its lack must be said
    lacking = [name for name, names in found.items() if not names] if scope or not targets else []
    if not lacking:
        return targets, None
    of = " and ".join(lacking) if len(lacking) < len(departments()) else "any department"
    have = ", ".join(each.id for each in departments() if known(each.id)) or "no department"
    sentence = f"there is no expert of {of} (experts exist for: {have}); train one first"
    return targets, NotUnderstood(phrase, sentence, ())
