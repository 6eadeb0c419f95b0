"""Endpoints in threads, and a client that goes."""

import asyncio
import json
import threading
import time
import uuid

import anyio
import httpx
import pytest
from fastapi import APIRouter, FastAPI, Form
from monailabel.interfaces.utils import app as instances

from lorkd_monailabel.front_door.offload import offload, offload_inference, with_job


class Jobs:
    """Stands in for the app's jobs: notes what was cancelled."""

    def __init__(self):
        self.cancelled = threading.Event()
        self.id = None

    def cancel(self, job):
        self.id = job
        self.cancelled.set()


@pytest.fixture
def jobs(monkeypatch):
    made = Jobs()
    monkeypatch.setattr(instances, "app_instance", lambda: type("App", (), {"jobs": made}))
    return made


def application(endpoint, wrap):
    router = APIRouter()
    router.add_api_route("/infer", endpoint, methods=["POST"])
    wrap(router)
    app = FastAPI()
    app.include_router(router)
    return app


def test_blocking_endpoints_run_side_by_side():
    async def endpoint():
        time.sleep(0.3)
        return threading.get_ident()

    app = application(endpoint, offload)

    async def run():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as client:
            began = time.monotonic()
            replies = await asyncio.gather(*(client.post("/infer") for _ in range(3)))
            return {reply.json() for reply in replies}, time.monotonic() - began

    threads, seconds = asyncio.run(run())
    assert len(threads) == 3
    assert seconds < 0.8


def test_the_job_gets_an_id_where_the_client_gave_none():
    job, arguments = with_job({"params": '{"text": "liver"}', "model": "lorkd"})
    assert uuid.UUID(job)
    assert json.loads(arguments["params"]) == {"text": "liver", "job": job}
    assert with_job({"params": json.dumps({"job": "mine"})})[0] == "mine"
    for params in ("{", "[]", "3", "[" * 100_000):
        assert with_job({"params": params}) == ("", {"params": params})
    assert with_job({"wsi": 1}) == ("", {"wsi": 1})


def test_a_client_that_goes_has_its_job_cancelled(jobs):
    seen = {}

    async def endpoint(params: str = Form("{}")):
        seen["params"] = json.loads(params)
        assert jobs.cancelled.wait(10)
        return {}

    app = application(endpoint, offload_inference)

    async def run():
        gone = asyncio.Event()
        messages = [{"type": "http.request", "body": b"params=%7B%7D", "more_body": False}]

        async def receive():
            if messages:
                return messages.pop()
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message):
            pass

        scope = {
            "type": "http",
            "method": "POST",
            "path": "/infer",
            "query_string": b"",
            "headers": [(b"content-type", b"application/x-www-form-urlencoded")],
        }
        pending = asyncio.create_task(app(scope, receive, send))
        await asyncio.sleep(0.3)
        assert not jobs.cancelled.is_set()
        gone.set()
        await asyncio.wait_for(pending, 10)

    asyncio.run(run())
    assert jobs.id == seen["params"]["job"]


def test_too_many_are_told_to_come_later(jobs, monkeypatch):
    monkeypatch.setattr("lorkd_monailabel.front_door.offload.PENDING", 1)
    inside, over = threading.Event(), threading.Event()

    async def endpoint(params: str = Form("{}")):
        inside.set()
        over.wait(10)
        return {}

    app = application(endpoint, offload_inference)

    async def run():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as client:
            first = asyncio.create_task(client.post("/infer", data={"params": "{}"}))
            await anyio.to_thread.run_sync(inside.wait)
            second = await client.post("/infer", data={"params": "{}"})
            over.set()
            return second, await first

    second, first = asyncio.run(run())
    assert (second.status_code, second.headers["Retry-After"], first.status_code) == (429, "60", 200)
    assert not jobs.cancelled.is_set()
