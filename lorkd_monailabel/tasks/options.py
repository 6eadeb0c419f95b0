"""Options of a request: what clients send in ``params``, read and checked."""

import re
import uuid
from typing import Any

Request = dict[str, Any]

CLIENT_CHARACTERS = 200
_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


def text(request: Request, name: str) -> str:
    """Gives an option; clients that chose nothing send all choices, or none.

    Raises:
        ValueError: it is no text.
    """
    value = request.get(name)
    if isinstance(value, list):
        value = value[0] if value else None
    if value is not None and not isinstance(value, str):
        raise ValueError(f"{name} {value!r} must be text; put it in quotation marks")
    return (value or "").strip()


def choice(request: Request, name: str, known: tuple[str, ...]) -> str:
    """Gives an option that has only the values given; the first of them when it is left out.

    Raises:
        ValueError: it is none of them.
    """
    value = text(request, name).lower() or known[0]
    if value not in known:
        raise ValueError(f"{name} {value!r} must be one of {', '.join(filter(None, known))}; or leave it out")
    return value


def job_id(request: Request) -> str:
    """Gives the id that the client chose for its job, or a new one.

    Raises:
        ValueError: it is no UUID.
    """
    given = text(request, "job")
    if given and not _UUID.fullmatch(given):
        raise ValueError(f"job {given[:60]!r} must be a UUID; make a new one for each request, or leave it out")
    return given or str(uuid.uuid4())


def client_id(request: Request) -> str:
    """Gives the name of the client, by which jobs take turns; empty where it gave none.

    Raises:
        ValueError: it is no text, or too long.
    """
    given = text(request, "client_id")
    if len(given) > CLIENT_CHARACTERS:
        raise ValueError(f"client_id has {len(given)} characters, but may have {CLIENT_CHARACTERS}; use a shorter one")
    return given
