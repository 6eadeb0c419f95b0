"""The text of a prompt: its phrases, and names that complete the one being typed. Pure Python."""

import re
from typing import Any

_SEPARATOR = re.compile(r"[;\n]")


def phrases(text: str) -> list[str]:
    """Split a prompt at ; and line ends: trimmed, each phrase once, whatever its case."""
    found: dict[str, str] = {}
    for piece in _SEPARATOR.split(text):
        phrase = " ".join(piece.split())
        if phrase:
            found.setdefault(phrase.lower(), phrase)
    return list(found.values())


def typed_phrase(text: str, position: int) -> tuple[int, str]:
    """Give where the phrase that ends at the cursor begins, and what there is of it."""
    before = text[:position]
    start = max(before.rfind(";"), before.rfind("\n")) + 1
    start += len(before) - start - len(before[start:].lstrip())
    return start, before[start:]


def names(vocabulary: dict[str, Any], department: str) -> list[str]:
    """Give what can be typed: structures that an expert knows, their other names, and groups of them.

    Args:
        vocabulary: of the server.
        department: an id, or ``auto`` for all.
    """
    found: dict[str, None] = {}
    known = set()
    for each in vocabulary.get("departments", []):
        if department in ("auto", each["id"]):
            for structure in each["structures"]:
                if structure["expert"]:
                    known.add(structure["name"])
                    found |= dict.fromkeys([structure["name"], *structure["synonyms"]])
    for group in vocabulary.get("groups", []):
        if known.issuperset(group["structures"]):
            found[group["name"]] = None
    return sorted(found, key=str.lower)
