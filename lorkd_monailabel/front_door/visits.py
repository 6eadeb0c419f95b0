"""A visit: what the front door knows of the request that is being served, in whatever thread."""

import uuid
from contextvars import ContextVar
from dataclasses import dataclass, field

from lorkd_monailabel.front_door.roles import Role


@dataclass
class Visit:
    """One request.

    Attributes:
        request_id: number that the client, the log and the audit log share.
        route: its template, never the address itself, which may name a patient.
        user: who sent it, as the token says; empty without tokens.
        role: what the user may do.
        client: the client's own id, where it tells one.
        image: the image that the request is about; for the audit log's reference only, and never logged.
        parameters: the parts of the address that the template names.
    """

    request_id: str = field(default_factory=lambda: uuid.uuid4().hex[:12])
    route: str = "unmatched"
    user: str = ""
    role: Role = Role.ANYONE
    client: str = ""
    image: str = ""
    parameters: dict[str, str] = field(default_factory=dict)


_VISIT: ContextVar[Visit | None] = ContextVar("visit", default=None)


def visit() -> Visit:
    """Give the visit of this request; an empty one where there is no request."""
    return _VISIT.get() or Visit(request_id="")


def begin() -> Visit:
    """Begin a visit; threads and tasks that are started from here on belong to it."""
    new = Visit()
    _VISIT.set(new)
    return new
