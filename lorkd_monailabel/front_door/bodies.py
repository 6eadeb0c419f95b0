"""Middleware: checks the address and the body of a request as it arrives, before anything of it lies on the disk."""

import json
from urllib.parse import parse_qsl, unquote

from fastapi import HTTPException
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lorkd_monailabel.front_door.checks import check_name, check_value
from lorkd_monailabel.front_door.errors import answer
from lorkd_monailabel.front_door.visits import visit

NAMES = ("image", "label", "id", "tag", "session_id")
"""Query parameters that name something, so that they are never a path."""

ANY_PATH = "path"
"""Part of an address that may have slashes."""

WITH_BODY = ("POST", "PUT", "PATCH")
"""Methods; what others say of a body is a left-over of the client's last request, and none will come."""

SESSION = "/session/"


class Bodies:
    """Middleware: refuses names that are paths, bodies that are too large, and JSON that is not sound.

    Args:
        app: the application behind it.
        upload_bytes: most bytes of a body.
        params_bytes: most bytes of a body that is JSON.
    """

    def __init__(self, app: ASGIApp, *, upload_bytes: int, params_bytes: int) -> None:
        self.app = app
        self.upload_bytes = upload_bytes
        self.params_bytes = params_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers 400 or 413 itself, or passes the request on."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        if (scope["method"], visit().route) == ("PUT", SESSION):
            scope, receive = await with_own_boundary(scope, receive)
        headers = Headers(scope=scope)
        is_json = scope["method"] in WITH_BODY and "json" in headers.get("content-type", "").lower()
        limit = self.params_bytes if is_json else self.upload_bytes
        try:
            check_address(scope)
            length = headers.get("content-length", "0")
            if not length.isdecimal() or int(length) > limit:
                raise too_large(limit)
            receive = counted(receive, limit)
            if is_json:
                receive = await checked(receive)
        except HTTPException as error:
            return await answer(error.status_code, error.detail)(scope, receive, send)
        except RecursionError:
            return await answer(400, "the body is nested too deeply; send it flat")(scope, receive, send)
        except ValueError as error:
            return await answer(400, str(error))(scope, receive, send)
        await self.app(scope, receive, send)


def check_address(scope: Scope) -> None:
    """Check what the address names, and note the image in the visit.

    Raises:
        ValueError: a name is a path, or holds what no name holds.
    """
    here = visit()
    for key, value in parse_qsl(scope["query_string"].decode("latin-1")):
        if key in NAMES:
            check_name(key, value)
            if key in ("image", "label", "id"):
                here.image = value
    for key, value in here.parameters.items():
        if key != ANY_PATH:
            check_name(key, value)
        elif ".." in unquote(unquote(value)).replace("\\", "/").split("/") or "\0" in unquote(value):
            raise ValueError("the address must not go up with ..; write it out")


def too_large(limit: int) -> HTTPException:
    """Make the refusal of a body over the limit."""
    size = f"{limit // 1024**2} MiB" if limit >= 1024**2 else f"{limit // 1024} KiB"
    return HTTPException(413, f"the body is larger than {size}; the operator may raise the limit")


async def with_own_boundary(scope: Scope, receive: Receive) -> tuple[Scope, Receive]:
    """Read a form's boundary from the form: MONAI Label's client, signed in, sends the header of its last request.

    Returns:
        The scope, and what gives the body from its beginning.
    """
    message = await receive()
    line, end, _ = message.get("body", b"").partition(b"\r\n")
    if end and line.startswith(b"--") and len(line) < 80:
        others = [(key, value) for key, value in scope["headers"] if key != b"content-type"]
        form = b'multipart/form-data; boundary="' + line[2:].replace(b'"', b"") + b'"'
        scope = {**scope, "headers": [*others, (b"content-type", form)]}
    return scope, beginning_with(message, receive)


def counted(receive: Receive, limit: int) -> Receive:
    """Pass a body on until it is too large, whatever its header says."""
    seen = 0

    async def limited() -> Message:
        nonlocal seen
        message = await receive()
        seen += len(message.get("body", b""))
        if seen > limit:
            raise too_large(limit)
        return message

    return limited


async def checked(receive: Receive) -> Receive:
    """Read a body that is JSON, and check it.

    Returns:
        What gives the body once more.

    Raises:
        ValueError: it is not sound. What is no JSON at all is left to the application to refuse.
    """
    body, more = b"", True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            break
        body += message.get("body", b"")
        more = message.get("more_body", False)
    try:
        value = json.loads(body) if body else None
    except json.JSONDecodeError as error:
        raise ValueError(f"the body is no JSON ({error}); send an object like {{}}") from error
    except UnicodeDecodeError as error:
        raise ValueError("the body is no UTF-8; send JSON in UTF-8") from error
    check_value(value, key="the body")
    if isinstance(value, dict) and isinstance(value.get("client_id"), str):
        visit().client = value["client_id"][:100]
    return beginning_with({"type": "http.request", "body": body, "more_body": False}, receive)


def beginning_with(message: Message, receive: Receive) -> Receive:
    """Give a message once more, and then what comes after it."""
    first = True

    async def again() -> Message:
        nonlocal first
        if first:
            first = False
            return message
        return await receive()

    return again
