"""MONAI Label's endpoints in threads: they block the only thread that answers, so that nothing else would be served."""

import asyncio
import contextlib
import functools
import inspect
import json
import uuid
from collections.abc import Callable, Coroutine
from typing import Any

import anyio
import anyio.to_thread
from fastapi import APIRouter, HTTPException, Request

Endpoint = Callable[..., Coroutine[Any, Any, Any]]

PENDING = 32
"""Inferences at a time, waiting ones with them. Which of them computes is for the app's jobs to say."""


def offload(router: APIRouter) -> None:
    """Make every endpoint of a router run in a thread."""
    for route in router.routes:
        route.endpoint = _in_thread(route.endpoint)  # type: ignore[attr-defined]


def offload_inference(router: APIRouter) -> None:
    """Make every endpoint of a router run in a thread that is told to stop when its client has gone."""
    limiter = anyio.CapacityLimiter(PENDING)
    for route in router.routes:
        route.endpoint = _watched(route.endpoint, limiter)  # type: ignore[attr-defined]


def _in_thread(endpoint: Endpoint) -> Endpoint:
    @functools.wraps(endpoint)
    async def call(**arguments: Any) -> Any:
        return await anyio.to_thread.run_sync(lambda: finished(endpoint(**arguments)))

    return call


def _watched(endpoint: Endpoint, limiter: anyio.CapacityLimiter) -> Endpoint:
    """Wrap an endpoint that infers; FastAPI reads its signature, to which the request is added."""

    @functools.wraps(endpoint)
    async def call(the_request: Request, **arguments: Any) -> Any:
        if limiter.available_tokens < 1:
            raise HTTPException(429, f"{PENDING} inferences wait already; try again in a minute", {"Retry-After": "60"})
        job, arguments = with_job(arguments)
        watch = asyncio.create_task(cancel_when_gone(the_request, job))
        try:
            return await anyio.to_thread.run_sync(lambda: finished(endpoint(**arguments)), limiter=limiter)
        finally:
            watch.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watch

    signature = inspect.signature(endpoint)
    added = inspect.Parameter("the_request", inspect.Parameter.KEYWORD_ONLY, annotation=Request)
    call.__signature__ = signature.replace(parameters=[*signature.parameters.values(), added])  # type: ignore[attr-defined]
    return call


def finished(endpoint: Coroutine[Any, Any, Any]) -> Any:
    """Run an endpoint to its end, without the cost of a loop for it: MONAI Label's wait for nothing."""
    try:
        endpoint.send(None)
    except StopIteration as end:
        return end.value
    endpoint.close()
    raise RuntimeError("an endpoint of MONAI Label waits for something; run it on the server's own loop")


def with_job(arguments: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Give the job that the options of an inference name, and the arguments; one is put in where there is none.

    Options that are no JSON object stay as they are, for the checks to refuse.
    """
    try:
        options = json.loads(arguments.get("params") or "{}")
    except (ValueError, RecursionError):
        return "", arguments
    if not isinstance(options, dict) or "params" not in arguments:
        return "", arguments
    job = options.get("job") or str(uuid.uuid4())
    return str(job), {**arguments, "params": json.dumps({**options, "job": job})}


async def cancel_when_gone(request: Request, job: str) -> None:
    """Cancel a job as soon as the client of its request has gone."""
    from monailabel.interfaces.utils.app import app_instance

    while (await request.receive())["type"] != "http.disconnect":
        pass
    if job:
        app_instance().jobs.cancel(job)
