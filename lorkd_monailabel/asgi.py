"""The front door: MONAI Label's own web application, with threads, checked requests and errors in one form.

``monailabel start_server --app … --studies … --uvicorn_app lorkd_monailabel.asgi:app``. MONAI Label's endpoints block
the only thread that answers, so that nothing else is served while one inference runs; here they run in threads. Errors
are JSON: ``{"detail": one sentence, "request_id": …}``. ``build`` is where further rules and routes belong.
"""

import asyncio
import functools
import json
import logging
import uuid
from collections.abc import Callable, Coroutine
from typing import Any
from urllib.parse import parse_qsl

import anyio
import anyio.to_thread
from fastapi import APIRouter, BackgroundTasks, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from lorkd_monailabel.compat import allow_pydicom_3

INFERENCES = 2
"""Requests for inference at a time: one computes while the other reads or writes; the rest wait outside."""

NAMES = {"image", "label", "id", "tag", "session_id"}
"""Query parameters that name something, so that they are never a path."""

FORBIDDEN_PARAMS = {"model", "image", "label", "session", "session_id", "file", "description"}
"""What MONAI Label would let ``params`` override after the request was checked."""

Endpoint = Callable[..., Coroutine[Any, Any, Any]]
_LOG = logging.getLogger(__name__)


def build() -> FastAPI:
    """Makes the application that uvicorn serves."""
    allow_pydicom_3()
    from monailabel.endpoints import (
        activelearning,
        batch_infer,
        datastore,
        infer,
        info,
        logs,
        model,
        scoring,
        session,
        train,
        wsi_infer,
    )

    infer.run_inference = checked(tidied(infer.run_inference))
    datastore.add_image = tidied(datastore.add_image)
    datastore.save_label = tidied(datastore.save_label)
    inferences = anyio.CapacityLimiter(INFERENCES)
    for endpoints in (infer, wsi_infer):
        offload(endpoints.router, inferences)
    for endpoints in (activelearning, batch_infer, datastore, info, logs, model, scoring, session, train):
        offload(endpoints.router, None)

    from monailabel.app import app  # after that, for it takes the routes over as they are

    app.router.routes[:] = [route for route in app.router.routes if getattr(route, "path", None) != "/reload"]
    app.add_middleware(RefusePaths)
    add_error_handlers(app)
    return app


def offload(router: APIRouter, limiter: anyio.CapacityLimiter | None) -> None:
    """Makes every endpoint of a router run in a thread, at most as many at a time as the limiter has."""
    for route in router.routes:
        route.endpoint = _in_thread(route.endpoint, limiter)  # type: ignore[attr-defined]


def _in_thread(endpoint: Endpoint, limiter: anyio.CapacityLimiter | None) -> Endpoint:
    @functools.wraps(endpoint)
    async def call(**arguments: Any) -> Any:
        return await anyio.to_thread.run_sync(lambda: asyncio.run(endpoint(**arguments)), limiter=limiter)

    return call


def checked(run_inference: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps MONAI Label's function for a request to infer: the checks come first."""

    @functools.wraps(run_inference)
    def run(
        background_tasks: BackgroundTasks, model: str, image: str, session_id: str, params: str, file: Any, *others: Any
    ) -> Any:
        check_params(params)
        check_source(image, session_id, file)
        return run_inference(background_tasks, model, image, session_id, params, file, *others)

    return run


def tidied(receive: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps a function of MONAI Label that receives an upload: a failure leaves no file behind."""

    @functools.wraps(receive)
    def run(background_tasks: BackgroundTasks, *arguments: Any) -> Any:
        try:
            return receive(background_tasks, *arguments)
        except BaseException:
            for task in background_tasks.tasks:  # they remove the upload, but run after success only
                task.func(*task.args, **task.kwargs)
            raise

    return run


def check_params(params: str) -> None:
    """Checks the options that come with a request to infer.

    Raises:
        ValueError: they are no JSON object, override what was checked, or save under a tag that is no name.
    """
    options = json.loads(params or "{}")
    if not isinstance(options, dict):
        raise ValueError(f"params must be a JSON object, not {type(options).__name__}; write {{}} for none")
    for key in sorted(FORBIDDEN_PARAMS.intersection(options)):
        raise ValueError(f"params must not hold {key!r}; give it in the address of the request")
    if _is_path(str(options.get("label_tag", ""))):
        raise ValueError(f"label_tag {options['label_tag']!r} must be a name, not a path; use letters and digits")


def check_source(image: str, session_id: str, file: Any) -> None:
    """Checks where the image of a request to infer comes from.

    Raises:
        FileNotFoundError: the studies lack the image, or the session is unknown or over.
        ValueError: nothing is named.
    """
    from monailabel.interfaces.utils.app import app_instance

    if not (image or session_id or file):
        raise ValueError("the request names no image; give image=<id of a study>, a session_id, or a file")
    if image and not app_instance().datastore().get_image_uri(image):
        raise FileNotFoundError(f"image {image!r} is not among the studies; choose one of them or upload it")
    sessions = app_instance().sessions()  # None where the operator switched them off
    if session_id and (sessions is None or not sessions.get_session(session_id)):
        raise FileNotFoundError(f"session {session_id!r} is unknown or over; upload the image again")


class RefusePaths:
    """Middleware: refuses paths where a name is expected, before any endpoint uses it to read or write a file.

    Args:
        app: the application behind it.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers 400 itself, or passes the request on."""
        if scope["type"] == "http":
            for key, value in parse_qsl(scope["query_string"].decode("latin-1")):
                if key in NAMES and _is_path(value):
                    refusal = f"{key} {value!r} must be a name, not a path; take it from the list of studies"
                    return await answer(Request(scope), 400, refusal)(scope, receive, send)
        await self.app(scope, receive, send)


def _is_path(value: str) -> bool:
    return any(part in value for part in ("/", "\\", "\0")) or value in (".", "..")


def answer(request: Request, status: int, detail: str, error: Exception | None = None) -> JSONResponse:
    """Makes the response to a request that failed, and notes it in the log, by a number that both have."""
    request_id = uuid.uuid4().hex[:12]
    level, trace = (logging.ERROR, error) if status >= 500 else (logging.INFO, None)
    _LOG.log(level, "%s %s, request %s: %s", request.method, request.url.path, request_id, detail, exc_info=trace)
    return JSONResponse({"detail": detail, "request_id": request_id}, status, getattr(error, "headers", None))


def add_error_handlers(app: FastAPI) -> None:
    """Turns exceptions into responses: what the client can mend is 4xx, all else 500 with no more than a number."""
    from monailabel.interfaces.exception import ImageNotFoundException, LabelNotFoundException, MONAILabelException

    described: dict[type[Exception], Callable[[Any], tuple[int, str]]] = {
        StarletteHTTPException: lambda error: (error.status_code, str(error.detail)),
        RequestValidationError: lambda error: (422, _first_problem(error)),
        json.JSONDecodeError: lambda error: (
            400,
            f"a part of the request is no JSON ({error}); send an object like {{}}",
        ),
        ValueError: lambda error: (400, str(error)),
        FileNotFoundError: lambda error: (404, str(error)),
        MONAILabelException: lambda error: (400, error.msg),
        ImageNotFoundException: lambda error: (404, error.msg),
        LabelNotFoundException: lambda error: (404, error.msg),
        Exception: lambda error: (500, "the server failed unexpectedly; tell its administrator the request_id"),
    }

    def handle(kind: type[Exception]) -> Callable[[Request, Exception], JSONResponse]:
        return lambda request, error: answer(request, *described[kind](error), error=error)

    for kind in described:
        app.add_exception_handler(kind, handle(kind))


def _first_problem(error: RequestValidationError) -> str:
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"


app = build()
