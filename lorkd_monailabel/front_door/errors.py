"""Errors in one form: ``{"detail": one sentence, "request_id": …}``. What the client can mend is 4xx."""

import json
from collections.abc import Callable, Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException as StarletteHTTPException

from lorkd_monailabel.front_door.visits import visit
from lorkd_monailabel.sliding_window import Cancelled

UNEXPECTED = "the server failed unexpectedly; tell its administrator the request_id"


def answer(status: int, detail: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """Make the response to a request that failed. The sentence goes to the client only: it may name an image."""
    printable = detail.encode("utf-8", "backslashreplace").decode()
    return JSONResponse({"detail": printable, "request_id": visit().request_id}, status, headers)


def add_error_handlers(app: FastAPI) -> None:
    """Turn exceptions into responses; one that is not listed becomes 500 further out, with no more than a number."""
    from monailabel.interfaces.exception import ImageNotFoundException, LabelNotFoundException, MONAILabelException

    described: dict[type[Exception], Callable[[Any], tuple[int, str]]] = {
        StarletteHTTPException: lambda error: (error.status_code, str(error.detail)),
        RequestValidationError: lambda error: (422, _first_problem(error)),
        json.JSONDecodeError: lambda error: (
            400,
            f"a part of the request is no JSON ({error}); send an object like {{}}",
        ),
        RecursionError: lambda error: (400, "a part of the request is nested too deeply; send it flat"),
        OverflowError: lambda error: (400, "a number in the request is too large"),
        ValueError: lambda error: (400, str(error)),
        FileNotFoundError: lambda error: (404, str(error)),
        PermissionError: lambda error: (403, str(error)),
        Cancelled: lambda error: (409, str(error)),
        MONAILabelException: lambda error: (400, error.msg),
        ImageNotFoundException: lambda error: (404, error.msg),
        LabelNotFoundException: lambda error: (404, error.msg),
    }

    def handle(kind: type[Exception]) -> Callable[[Request, Exception], JSONResponse]:
        return lambda request, error: answer(*described[kind](error), getattr(error, "headers", None))

    for kind in described:
        app.add_exception_handler(kind, handle(kind))


def _first_problem(error: RequestValidationError) -> str:
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
