"""What happens to addresses and bodies as they arrive."""

import asyncio
import json

import pytest

from lorkd_monailabel.front_door.bodies import Bodies
from lorkd_monailabel.front_door.visits import begin, visit


async def echo(scope, receive, send):
    """Answer with the length of the body."""
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": str(len(body)).encode()})


def ask(parts, *, query="", headers=(), parameters=None, upload=100, params=50, method="PUT", route="/x", app=echo):
    """Send a request in parts; gives status, text, and how many parts were taken."""
    taken, sent = 0, []

    async def receive():
        nonlocal taken
        taken += 1
        return {"type": "http.request", "body": parts[taken - 1], "more_body": taken < len(parts)}

    async def send(message):
        sent.append(message)

    async def run():
        here = begin()
        here.parameters, here.route = parameters or {}, route
        scope = {"type": "http", "method": method, "path": "/x", "query_string": query.encode(), "headers": headers}
        await Bodies(app, upload_bytes=upload, params_bytes=params)(scope, receive, send)
        return visit()

    here = asyncio.run(run())
    return sent[0]["status"], sent[1]["body"].decode(), taken, here


JSON = [(b"content-type", b"application/json")]


def test_a_body_within_the_limit_passes():
    assert ask([b"a" * 50, b"b" * 50])[:3] == (200, "100", 2)


def test_a_body_that_says_it_is_too_large_is_not_read():
    status, text, taken, _ = ask([b"a"], headers=[(b"content-length", b"101")])
    assert (status, taken) == (413, 0)
    assert json.loads(text)["detail"] == "the body is larger than 0 KiB; the operator may raise the limit"


@pytest.mark.parametrize("method", ["GET", "HEAD", "DELETE"])
def test_for_a_body_that_never_comes_nobody_waits(method):
    left_over = [*JSON, (b"content-length", b"30")]  # of the last request of MONAI Label's client, when it signed in
    status, text, taken, _ = ask([b""], headers=left_over, method=method)
    assert (status, text, taken) == (200, "0", 1)  # taken by the application


@pytest.mark.parametrize("stale", [JSON, [(b"content-type", b"multipart/form-data; boundary=old")], []])
def test_the_form_of_a_session_says_itself_what_its_boundary_is(stale):
    seen = []

    async def app(scope, receive, send):
        seen.append(dict(scope["headers"])[b"content-type"])
        await echo(scope, receive, send)

    form = [b"--new\r\nContent-Disposition: form-data", b"\r\n\r\nx\r\n--new--\r\n"]
    status, text, taken, _ = ask(form, headers=stale, route="/session/", app=app)
    assert (status, text, taken) == (200, str(sum(map(len, form))), 2)
    assert seen == [b'multipart/form-data; boundary="new"']


def test_a_body_that_lies_is_cut():
    from fastapi import HTTPException

    with pytest.raises(HTTPException, match="larger than") as caught:
        ask([b"a" * 60, b"b" * 60, b"c" * 60], headers=[(b"content-length", b"10")])
    assert caught.value.status_code == 413


def test_json_is_read_once_and_given_again():
    assert ask([b'{"a":', b" 1}"], headers=JSON)[:3] == (200, "8", 2)
    assert ask([json.dumps({"client_id": "me"}).encode()], headers=JSON)[3].client == "me"


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"{", 400, "the body is no JSON"),
        (b"\xff\xfe\xfd", 400, "the body is no"),
        (b'{"a": "/x"}', 400, "must be no path"),
        (b"[" * 20 + b"]" * 20, 400, "nested more than 16 deep"),
        (b'"' + b"a" * 60 + b'"', 413, "the body is larger"),
    ],
)
def test_json_that_is_refused(body, status, message):
    answer = ask([body], headers=JSON)
    assert answer[0] == status
    assert message in answer[1]


def test_json_nested_beyond_the_parser():
    assert ask([b"[" * 100_000], headers=JSON, params=200_000)[0] == 400


@pytest.mark.parametrize("query", ["image=..%2Fx", "id=%00", "tag=a%20b", "session_id=%2Fetc", "label=a%0Ab"])
def test_names_in_the_query(query):
    assert ask([b""], query=query)[0] == 400


def test_the_image_is_noted_for_the_audit_log():
    assert ask([b""], query="image=ct+1&tag=final")[3].image == "ct 1"


@pytest.mark.parametrize(
    ("key", "value", "status"),
    [
        ("path", "a/b", 200),
        ("path", "a/../b", 400),
        ("path", "a/%2e%2e/b", 400),
        ("path", "..\\b", 400),
        ("model", "../x", 400),
        ("model", "lorkd", 200),
        ("job_id", "..", 400),
    ],
)
def test_parts_of_the_address(key, value, status):
    assert ask([b""], parameters={key: value})[0] == status
