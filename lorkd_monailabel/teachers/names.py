"""Names that others give structures -> canonical names: ``kidney_left`` and ``Left Kidney`` are the left kidney."""

import re
from collections.abc import Collection
from functools import lru_cache

from lorkd_monailabel.prompts import resolve

_SEPARATORS = re.compile(r"[\s_-]+")


def structure_named(name: str, known: Collection[str] = ()) -> str | None:
    """Find the structure of a name.

    Args:
        name: as a data set, a file or a channel has it.
        known: names to look through first, which may be outside the vocabulary.

    Returns:
        One of ``known`` or of the vocabulary; None where the name is unknown or stands for several structures.
    """
    folded = _folded(name)
    return next((each for each in known if _folded(each) == folded), None) or _in_vocabulary(folded)


@lru_cache(maxsize=4096)
def _in_vocabulary(folded: str) -> str | None:
    if not folded or len(folded) > 200:
        return None
    targets, refused = resolve(folded)
    return targets[0].structure.name if len(targets) == 1 and not refused else None


def _folded(name: str) -> str:
    return _SEPARATORS.sub(" ", name).strip().casefold()
