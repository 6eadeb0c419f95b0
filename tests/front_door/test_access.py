"""Who is let in: guests of this machine, holders of tokens, pages of other sites."""

import asyncio
import json

import pytest

from lorkd_monailabel.front_door.access import Access, is_loopback
from lorkd_monailabel.front_door.roles import Role
from lorkd_monailabel.front_door.tokens import TokenFile, add
from lorkd_monailabel.front_door.users import Users
from lorkd_monailabel.front_door.visits import begin

NOBODY = Users(None, None)


def ask(path, *, method="GET", users=NOBODY, server="127.0.0.1", host="127.0.0.1:8000", headers=None, **options):
    """Send a request; gives the status, the visit and the answer."""
    sent = []

    async def inside(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})

    async def send(message):
        sent.append(message)

    async def run():
        here = begin()
        lines = {"host": host, **(headers or {})}
        scope = {
            "type": "http",
            "method": method,
            "path": path,
            "server": (server, 8000),
            "headers": [(key.encode(), value.encode()) for key, value in lines.items()],
        }
        await Access(inside, users=users, **options)(scope, None, send)
        return here

    here = asyncio.run(run())
    return sent[0]["status"], here, json.loads(sent[1]["body"])


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:8000", "[::1]:8000", "127.9.9.9"])
def test_guest_of_this_machine_may_do_everything(host):
    status, here, _ = ask("/logs/", host=host)
    assert (status, here.role, here.route, here.user) == (200, Role.ADMIN, "/logs/", "")


@pytest.mark.parametrize(
    "host", ["evil.example", "10.0.0.7:8000", "", "localhost.evil.example", "127.0.0.1.evil.example"]
)
def test_name_that_was_bent_to_this_machine_is_refused(host):
    # a page can make a browser believe that its own name has the address 127.0.0.1
    assert ask("/info/", host=host)[0] == 403
    assert ask("/info/", host=host, open=True)[0] == 200


def test_other_machines_need_tokens_or_an_open_door():
    status, _, body = ask("/info/", server="10.0.0.7")
    assert (status, body["detail"]) == (
        403,
        "without tokens this server serves its own machine only; start it with tokens or --open",
    )
    assert ask("/info/", server="10.0.0.7", open=True)[0] == 200
    assert ask("/logs/", server="10.0.0.7", open=True)[0] == 403
    assert ask("/lorkd/health", server="10.0.0.7")[0] == 200


@pytest.fixture
def tokens(tmp_path):
    """A token for each role, and who has it."""
    path = tmp_path / "tokens.json"
    made = {role: add(path, role, role) for role in ("viewer", "annotator", "trainer", "admin")}
    return Users(TokenFile(path), None), made


@pytest.mark.parametrize(
    ("method", "path", "least"),
    [
        ("GET", "/info/", "viewer"),
        ("POST", "/infer/lorkd", "viewer"),
        ("PUT", "/datastore/label", "annotator"),
        ("POST", "/train/abdomen", "trainer"),
        ("GET", "/logs/", "admin"),
        ("DELETE", "/datastore/image", "admin"),
    ],
)
def test_each_role_may_what_those_before_it_may(tokens, method, path, least):
    users, made = tokens
    order = list(made)
    for role, token in made.items():
        status, here, _ = ask(path, method=method, users=users, headers={"authorization": f"Bearer {token}"})
        assert (status, here.user) == (200 if order.index(role) >= order.index(least) else 403, role)


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer lorkd_wrong", "Basic YTpi", "bearer  ", "Bearer \xe4"])
def test_without_a_right_token(tokens, header):
    status, _, body = ask("/info/", users=tokens[0], headers={} if header is None else {"authorization": header})
    assert status == 401
    assert set(body) == {"detail", "request_id"}
    assert ask("/lorkd/health", users=tokens[0])[0] == 200
    assert ask("/auth/", users=tokens[0])[0] == 200


def test_pages_of_other_sites(tokens):
    page = {"origin": "https://evil.example"}
    assert ask("/infer/lorkd", method="POST", headers=page)[0] == 403
    assert ask("/infer/lorkd", method="POST", headers=page, origins=("https://evil.example",))[0] == 200
    assert ask("/infer/lorkd", method="POST", headers={"origin": "http://127.0.0.1:8000"})[0] == 200
    assert ask("/infer/lorkd", method="POST", headers={"origin": "null"})[0] == 403


def test_what_is_not_there():
    assert ask("/nothing")[0] == 404
    status, _, body = ask("/info/", method="PATCH")
    assert (status, body["detail"]) == (405, "PATCH is not possible here; use GET")
    assert ask("/api/info/", prefix="/api")[0] == 200
    assert ask("/info/", method="PATCH", prefix="/api")[0] == 405


def test_own_addresses():
    assert [is_loopback(host) for host in ("127.0.0.1", "::1", "localhost", "::1%lo")] == [True] * 4
    assert [is_loopback(host) for host in ("0.0.0.0", "10.1.1.1", "", "127.0.0.1.nip.io")] == [False] * 4
