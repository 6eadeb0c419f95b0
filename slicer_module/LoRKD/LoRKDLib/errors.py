"""What went wrong with a request, in one sentence that says what to do."""

import json
from typing import Any, NamedTuple

from slicer.i18n import tr as _


class Problem(NamedTuple):
    """What is known of a request that failed.

    Attributes:
        address: of the server.
        status: of HTTP; 0 where no answer came.
        kind: ``refused``, ``host``, ``timeout``, ``tls``, ``closed``, ``redirect`` or empty.
        body: of the answer.
        detail: of Qt, for what has no kind.
    """

    address: str
    status: int = 0
    kind: str = ""
    body: bytes = b""
    detail: str = ""


def sentence(problem: Problem) -> str:
    """Say what is wrong and what to do about it."""
    told = _detail(problem.body)
    if problem.status == 400 and told:
        return f"{told}."
    text = _by_status(problem.status) if problem.status >= 300 else _by_kind(problem.kind)
    said = text.format(address=problem.address, detail=told or problem.detail, status=problem.status)
    return f"{said} {_('The server says:')} {told}" if told and "{detail}" not in text else said


def _by_kind(kind: str) -> str:
    return {
        "refused": _("No server answers at {address}. Start it there, or correct the address."),
        "host": _("There is no machine of that name: {address}. Correct the address."),
        "timeout": _("The server at {address} does not answer in time. Try again, or ask its operator."),
        "tls": _("The certificate of {address} is not trusted ({detail}). Nothing was sent; ask the operator."),
        "closed": _("The server at {address} broke off. See whether it still runs, then connect again."),
    }.get(kind, _("The server at {address} can't be reached: {detail}."))


def _by_status(status: int) -> str:
    return {
        401: _("The server wants a token, or does not know this one. Enter it under Server and connect again."),
        403: _("This token may not do that. Ask the operator for a role that may."),
        404: _("{address} does not have that."),
        409: _("Cancelled on the server."),
        413: _("That is more than the server takes. Crop the volume, or ask the operator."),
        429: _("The server is busy with as many requests as it takes. Try again in a while."),
        503: _("The server is not ready. Try again in a while."),
    }.get(
        status,
        _("{address} answered with an error ({status}). Its log says more; ask the operator.")
        if status >= 500
        else _("{address} sends requests on to another address. Enter that one.")
        if status < 400
        else _("{address} refused the request ({status})."),
    )


def _detail(body: bytes) -> str:
    """Give the server's own sentence; FastAPI's list of what is wrong with a request counts as one."""
    try:
        told: Any = json.loads(body)["detail"]
    except (ValueError, KeyError, TypeError):
        return ""
    if isinstance(told, list):
        told = "; ".join(str(each.get("msg", "")) for each in told if isinstance(each, dict))
    return str(told)[:500].rstrip(".") if told else ""
