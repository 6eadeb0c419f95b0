"""Free text -> what to segment: ``resolve("left kidney; lungs")`` gives a target for each structure, or says why not.

A phrase is read as a side and a bag of words: "left kidney", "kidney_left", "Kidney (L)" and "kidneys, left" are the
same. Names and synonyms come first, then groups ("lungs"), then both sides of a phrase that names none ("kidneys").
"""

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache

from lorkd_monailabel.departments import Structure, department, departments, structures

AUTO = "auto"
MAX_CHARACTERS = 4000

SIDE_WORDS = {
    **dict.fromkeys(("left", "l", "lt", "sinister", "sinistra", "sinistrum"), ("left",)),
    **dict.fromkeys(("right", "r", "rt", "dexter", "dextra", "dextrum"), ("right",)),
    **dict.fromkeys(("both", "bilateral", "bilaterally"), ("left", "right")),
}
FILLERS = {"a", "all", "an", "and", "in", "of", "on", "side", "sided", "sides", "the"}
_ORDINALS = """
    first 1st second 2nd third 3rd fourth 4th fifth 5th sixth 6th
    seventh 7th eighth 8th ninth 9th tenth 10th eleventh 11th twelfth 12th
"""
ORDINALS = {word: str(index // 2 + 1) for index, word in enumerate(_ORDINALS.split())}
PLURALS = {
    "femora": "femur",
    "larynges": "larynx",
    "myocardia": "myocardium",
    "pancreata": "pancreas",
    "sacra": "sacrum",
    "sterna": "sternum",
}
PLURAL_ENDINGS = (
    (re.compile(r"(?<=..)ae$"), "a"),
    (re.compile(r"(?<=...)i$"), "us"),
    (re.compile(r"(?<=..)ies$"), "y"),
    (re.compile(r"(?:(?<=ch|sh|ss|us)|(?<=x))es$"), ""),
    (re.compile(r"(?<=[^isu])s$"), ""),
)
"""The first that fits is taken; names and phrases are treated alike, so that "pancreas" may well become "pancrea"."""

GROUPS = {
    ("lung", "pulmonary lobe", "lobe of lung", "pulmo"): ("* lung * lobe",),
    ("rib", "costa"): ("* rib *",),
    ("true rib",): ("* rib [1-7]",),
    ("false rib",): ("* rib [89]", "* rib 1[0-2]"),
    ("floating rib",): ("* rib 11", "* rib 12"),
    ("ventricle cavity", "heart ventricle", "ventricle of heart", "cardiac ventricle"): ("* ventricle cavity",),
    ("hippocampus",): ("* hippocampus",),
    ("bowel", "intestine", "gut"): ("small bowel", "duodenum", "colon"),
    ("common iliac vessel", "iliac vessel"): ("* common iliac *",),
    ("cervical vertebra", "cervical spine"): ("C? vertebra",),
    ("thoracic vertebra", "dorsal vertebra", "thoracic spine"): ("T? vertebra", "T1? vertebra"),
    ("lumbar vertebra", "lumbar spine"): ("L? vertebra",),
    ("gluteus", "gluteus muscle", "gluteal muscle", "glute"): ("* gluteus *",),
    ("gastrocnemius", "gastrocnemius muscle", "gastroc"): ("* gastrocnemius",),
    ("triceps surae", "triceps surae muscle"): ("* gastrocnemius", "soleus"),
}
"""Words for several structures at once -> patterns of their canonical names; a side, where given, narrows them."""

_SEPARATORS = re.compile(r"[;\n\r]+")
_AND = re.compile(r" and | ?[&+] ?", re.IGNORECASE)
_WORDS = re.compile(r"[^\W_]+")
_LEVEL = re.compile(r"\b(c|t|th|d|l|s) (\d{1,2})\b")

_Sides = frozenset[str]
_Bag = tuple[str, ...]


@dataclass(frozen=True)
class Target:
    """A structure to segment, and the phrase that asked for it."""

    phrase: str
    structure: Structure


@dataclass(frozen=True)
class NotUnderstood:
    """A phrase without targets, why, and up to three canonical names that may have been meant."""

    phrase: str
    message: str
    candidates: tuple[str, ...]


def resolve(text: str, department: str = AUTO) -> tuple[list[Target], list[NotUnderstood]]:
    """What a prompt asks for.

    Args:
        text: phrases separated by ``;``, ``,`` or new lines.
        department: id or name of the only department to look in, or "auto" for all.

    Returns:
        Targets in the order of the text, each structure once; and the phrases that gave none.

    Raises:
        ValueError: when the text is empty or longer than 4,000 characters, or the department is unknown.
    """
    only = _department_id(department)
    targets: dict[str, Target] = {}
    refused: dict[str, NotUnderstood] = {}
    for phrase in _phrases(text):
        found = _understand(phrase)
        if not found:
            refused[phrase] = _not_found(phrase, only)
        elif only and any(each.department != only for each in found):
            refused[phrase] = _elsewhere(phrase, found, only)
        else:
            for each in found:
                targets.setdefault(each.name, Target(phrase, each))
    return list(targets.values()), list(refused.values())


def _department_id(name: str) -> str | None:
    return None if name.strip().casefold() == AUTO else department(name).id


def _phrases(text: str) -> list[str]:
    """Split a prompt; a comma before nothing but a side ("kidney, left") does not separate."""
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"the prompt has {len(text)} characters, at most {MAX_CHARACTERS} are read; send it in parts")
    phrases: list[str] = []
    for line in _SEPARATORS.split(text):
        parts: list[str] = []
        for part in filter(None, (" ".join(each.split()) for each in line.split(","))):
            sides, bag = _reading(part)
            if parts and sides and not bag:
                parts[-1] += f", {part}"
            else:
                parts.append(part)
        phrases += parts
    if not phrases:
        raise ValueError("the prompt is empty; name at least one structure, such as 'left kidney; liver'")
    return phrases


def _understand(phrase: str) -> tuple[Structure, ...]:
    """The structures of a phrase as a whole, else those of its parts around "and"."""
    parts = _AND.split(phrase)
    return _whole(phrase) or (() if _is_one_sided(parts) else _all_found(map(_whole, parts)))


def _whole(phrase: str) -> tuple[Structure, ...]:
    """The structures of a phrase without regard to "and"; "L 3" is read a second time, for "L" may be no side."""
    return _find(*_reading(phrase)) or _find(*_reading(_LEVEL.sub(r"\1\2", " ".join(_plain_words(phrase)))))


def _is_one_sided(parts: list[str]) -> bool:
    """Whether it is open which side a part means: the adrenal gland of "right kidney and adrenal gland"."""
    sided = [bool(_reading(part)[0]) for part in parts]
    paired = [_sides_of(_whole(part)) >= {"left", "right"} for part in parts]
    return any(sided) and any(pair and not side for side, pair in zip(sided, paired, strict=True))


def _find(sides: _Sides, bag: _Bag) -> tuple[Structure, ...]:
    if not bag:
        return ()
    if not sides:
        return _named(None, bag) or _grouped(bag) or _paired(bag)
    either = _grouped(bag) or _paired(bag)
    if len(sides) == 2 and _sides_of(either) == sides:
        return either
    found = [_named(side, bag) or tuple(each for each in either if each.side == side) for side in sorted(sides)]
    return _all_found(found)


def _named(side: str | None, bag: _Bag) -> tuple[Structure, ...]:
    """The structure with this name or synonym, if any."""
    found = _names().get((frozenset((side,) if side else ()), bag))
    return (found,) if found else ()


def _grouped(bag: _Bag) -> tuple[Structure, ...]:
    patterns = _groups().get(bag, ())
    return tuple(each for name, each in structures().items() if any(fnmatchcase(name, pattern) for pattern in patterns))


def _paired(bag: _Bag) -> tuple[Structure, ...]:
    """Both sides of what has sides of the patient; no chambers of the heart: "ventricle" may be one of the brain."""
    return tuple(each for side in ("left", "right") for each in _named(side, bag) if each.side)


@lru_cache(maxsize=1)
def _names() -> dict[tuple[_Sides, _Bag], Structure]:
    """Every name and synonym, as read.

    Raises:
        ValueError: when two structures have names that read the same.
    """
    index: dict[tuple[_Sides, _Bag], Structure] = {}
    for each in structures().values():
        for text in (each.name, *each.synonyms):
            owner = index.setdefault(_reading(text), each)
            if owner is not each:
                raise ValueError(f"{text!r} of {each.name!r} reads as a name of {owner.name!r} too; remove one synonym")
    return index


@lru_cache(maxsize=1)
def _groups() -> dict[_Bag, tuple[str, ...]]:
    return {_reading(text)[1]: patterns for texts, patterns in GROUPS.items() for text in texts}


def _reading(text: str) -> tuple[_Sides, _Bag]:
    """The sides that a text names, and its other words, singular and sorted; without accents, case and fillers."""
    sides: set[str] = set()
    bag: list[str] = []
    for word in _plain_words(text):
        if word in SIDE_WORDS:
            sides.update(SIDE_WORDS[word])
        elif word not in FILLERS:
            bag.append(_singular(ORDINALS.get(word, word)))
    return frozenset(sides), tuple(sorted(bag))


def _plain_words(text: str) -> list[str]:
    decomposed = unicodedata.normalize("NFKD", text)
    return _WORDS.findall("".join(each for each in decomposed if not unicodedata.combining(each)).casefold())


def _singular(word: str) -> str:
    word = PLURALS.get(word, word)
    for ending, replacement in PLURAL_ENDINGS:
        if ending.search(word):
            return ending.sub(replacement, word)
    return word


def _sides_of(found: tuple[Structure, ...]) -> set[str | None]:
    return {each.side for each in found}


def _all_found(groups: Iterable[tuple[Structure, ...]]) -> tuple[Structure, ...]:
    """Each structure once; none at all when a group is empty."""
    found = list(groups)
    return tuple({each.name: each for group in found for each in group}.values()) if all(found) else ()


def _elsewhere(phrase: str, found: tuple[Structure, ...], only: str) -> NotUnderstood:
    homes = [each.name for each in departments() if each.id in {one.department for one in found}]
    advice = f"choose {homes[0]} or auto" if len(homes) == 1 else "choose auto"
    message = f"{_quoted(phrase)} belongs to {' and '.join(homes)}, not to {department(only).name}; {advice}"
    return NotUnderstood(phrase, message, ())


def _not_found(phrase: str, only: str | None) -> NotUnderstood:
    sides, bag = _reading(phrase)
    if _is_one_sided(_AND.split(phrase)):
        message = f"{_quoted(phrase)} names the side of one structure only; name it for each, separated by ;"
        return NotUnderstood(phrase, message, _candidates(sides, " ".join(bag), only))
    if sides and not bag:
        return NotUnderstood(phrase, f"{_quoted(phrase)} is a side without a structure; write it beside one", ())
    without = _find(frozenset(), bag)
    within = tuple(each for each in without if only in (None, each.department))
    if sides and within and not any(each.side for each in within):
        names = tuple(each.name for each in within[:3])
        return NotUnderstood(phrase, f"{_quoted(phrase)} is not divided into sides here; write {_either(names)}", names)
    names = _candidates(sides, " ".join(bag), only)
    advice = f"did you mean {_either(names)}?" if names else "choose a name from the list of structures"
    where = f" of {department(only).name}" if only else ""
    return NotUnderstood(phrase, f"{_quoted(phrase)} is not a known structure{where}; {advice}", names)


def _candidates(sides: _Sides, words: str, only: str | None) -> tuple[str, ...]:
    """Up to three names alike in spelling: Dice coefficient of letter pairs, the right side before the wrong one."""
    pairs = _letter_pairs(words[:100])
    scores: dict[str, float] = {}
    for each, term_sides, term in _terms():
        if only in (None, each.department):
            alike = 2 * len(pairs & term) / (len(pairs) + len(term))
            alike -= 0.1 * bool(sides and term_sides and not sides & term_sides)
            scores[each.name] = max(alike, scores.get(each.name, 0.0))
    ranked = sorted((name for name, score in scores.items() if score >= 0.45), key=lambda name: -scores[name])
    return tuple(ranked[:3])


@lru_cache(maxsize=1)
def _terms() -> tuple[tuple[Structure, _Sides, frozenset[str]], ...]:
    return tuple((each, sides, _letter_pairs(" ".join(bag))) for (sides, bag), each in _names().items())


def _letter_pairs(words: str) -> frozenset[str]:
    padded = f" {words} "
    return frozenset(padded[i : i + 2] for i in range(len(padded) - 1))


def _quoted(phrase: str) -> str:
    return repr(phrase if len(phrase) <= 60 else f"{phrase[:60]}…")


def _either(names: tuple[str, ...]) -> str:
    *first, last = map(repr, names)
    return f"{', '.join(first)} or {last}" if first else last
