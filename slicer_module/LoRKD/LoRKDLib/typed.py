"""What people type: the address of a server, and a prompt. Pure Python."""

import re
from typing import Any

AUTO = "auto"
_ADDRESS = re.compile(r"(https?://)?([\w.-]*|\[[\da-f:.]+\])(:\d{1,5})?(/[^\s?#@]*)?", re.IGNORECASE)


def server_url(text: str) -> str:
    """Give the address that ``:8001``, ``host``, ``https://host/path/`` or nothing mean, with MONAI Label's port.

    Raises:
        ValueError: it can be no address of a server.
    """
    found = _ADDRESS.fullmatch(text.strip())
    scheme, host, port, path = found.groups("") if found else ("", "", "", "")
    if not found or (scheme and not host) or int(port[1:] or 0) > 65535:
        raise ValueError(text.strip())
    rest = path.rstrip("/")
    return f"{scheme}{host}{port}{rest}" if scheme else f"http://{host or '127.0.0.1'}{port or ':8000'}{rest}"


def phrases(text: str) -> list[str]:
    """Split a prompt at ; and line ends: trimmed, each phrase once, whatever its case."""
    found: dict[str, str] = {}
    for piece in re.split("[;\n]", text):
        phrase = " ".join(piece.split())
        found.setdefault(phrase.lower(), phrase)
    return [phrase for phrase in found.values() if phrase]


def typed_phrase(text: str, position: int) -> tuple[int, str]:
    """Give where the phrase that ends at the cursor begins, and what there is of it."""
    phrase = re.split("[;\n]", text[:position])[-1].lstrip()
    return position - len(phrase), phrase


def names(vocabulary: dict[str, Any], department: str) -> list[str]:
    """Give what of a server's vocabulary a department's experts know: structures, their other names, groups of them."""
    departments = [each for each in vocabulary.get("departments", []) if department in (AUTO, each["id"])]
    known = [structure for each in departments for structure in each["structures"] if structure["expert"]]
    found = {name for structure in known for name in (structure["name"], *structure["synonyms"])}
    groups = {group["name"] for group in vocabulary.get("groups", []) if found.issuperset(group["structures"])}
    return sorted(found | groups, key=str.lower)
