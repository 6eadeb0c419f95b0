"""Revisions on a real server: listed, compared, rolled back, pinned; a request that runs keeps its own."""

import concurrent.futures
import json
import time
from collections.abc import Iterator
from typing import Any

import nibabel
import numpy as np
import pytest
import requests

from lorkd_monailabel.candidates import candidate_ids, keep
from lorkd_monailabel.store import ExpertStore
from tests.server.conftest import Server, started, wait_for

pytestmark = pytest.mark.timeout(300)

JOB = "5a1c2b3d-0000-4000-8000-000000000000"


@pytest.fixture(scope="module")
def server(tmp_path_factory, root, tiny_base, make_expert) -> Iterator[Server]:
    """One of its own, for its store changes: two revisions of the abdomen."""
    about = {"trained_on": ["aa", "bb"], "validated_on": ["cc"]}
    experts = (
        make_expert(metrics={"liver": 0.5}, about=about),
        make_expert(seed=1, parent=1, metrics={"liver": 0.75}, structures=("liver",)),
        make_expert("thorax", structures=("heart", "trachea")),
    )
    with started("door", tmp_path_factory.mktemp("revisions"), root, tiny_base, experts) as server:
        wait_for(server)
        medium = np.random.default_rng(0).normal(0, 300, (40, 40, 40)).astype(np.int16)
        nibabel.save(nibabel.Nifti1Image(medium, np.diag([3.0, 3.0, 3.0, 1.0])), server.studies / "medium.nii.gz")
        while "medium" not in requests.get(f"{server.url}/datastore/?output=all", timeout=10).json()["objects"]:
            time.sleep(0.1)
        yield server


def get(server, path: str, status: int = 200, **query: Any) -> Any:
    reply = requests.get(f"{server.url}/lorkd/experts{path}", params=query, timeout=30)
    assert reply.status_code == status, reply.text
    return reply.json()


def post(server, path: str, body: Any = None, status: int = 200) -> Any:
    reply = requests.post(f"{server.url}/lorkd/experts{path}", json=body, timeout=30)
    assert reply.status_code == status, reply.text
    return reply.json()


def newest_line(server) -> dict[str, Any]:
    lines = requests.get(f"{server.url}/lorkd/audit", timeout=10).json()["lines"]
    return next(line for line in reversed(lines) if "/" not in line["action"])


def answered_by(server, image: str = "ct 1", **options: Any) -> int:
    """The revision that answers a request."""
    reply = server.infer("abdomen", image, {"text": "liver", "result_extension": ".nii.gz", **options}, output="json")
    return reply.json()["lorkd"]["answers"][0]["revision"]


def test_what_there_is(server):
    abdomen = next(each for each in get(server, "") if each["department"] == "abdomen")
    assert (abdomen["served"], abdomen["pinned"], abdomen["revisions"]) == (2, None, 2)
    told = get(server, "/abdomen")
    assert [(each["revision"], each["parent"], each["dice"]) for each in told["revisions"]] == [
        (2, 1, 0.75),
        (1, 0, 0.5),
    ]
    assert get(server, "/abdomen/1")["cases"] == ["aa", "bb"]
    found = get(server, "/abdomen/diff", a=1, b=2)
    assert found["metrics"]["liver"] == {"a": 0.5, "b": 0.75, "change": 0.25}
    assert found["structures"] == {"added": [], "removed": ["spleen"], "kept": 1}
    assert found["cases"]["removed"] == ["aa", "bb"]


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "words"),
    [
        ("GET", "/heart", None, 400, "department 'heart' is unknown"),
        ("GET", "/brain", None, 404, "brain has no expert (experts exist for: thorax, abdomen)"),
        ("GET", "/abdomen/99", None, 404, "abdomen has no revision 99; it has 1 to"),
        ("GET", "/abdomen/two", None, 422, "revision"),
        ("GET", "/abdomen/diff?a=1", None, 422, "b"),
        ("GET", "/abdomen/diff?a=1&b=99", None, 404, "abdomen has no revision 99"),
        ("GET", "/..%2Fbase", None, 400, "department '..' must be a name, not a path"),
        ("POST", "/abdomen/rollback", {"revision": 99}, 404, "abdomen has no revision 99"),
        ("POST", "/abdomen/rollback", {}, 422, "revision"),
        ("POST", "/abdomen/pin", {"revision": "x"}, 422, "revision"),
        ("POST", "/abdomen/pin", {"revision": 1, "more": 1}, 422, "more"),
        ("POST", "/abdomen/candidates/0001/publish", None, 404, "abdomen has no candidate '0001'"),
        ("DELETE", "/abdomen/candidates/%5C..", None, 400, "must be a name, not a path"),
    ],
)
def test_what_can_not_be(server, method, path, body, status, words):
    before = sorted(server.store.folder.rglob("*.safetensors"))
    address = f"{server.url}/lorkd/experts{path}"
    reply = requests.Session().send(requests.Request(method, address, json=body).prepare(), timeout=30)
    assert (reply.status_code, words in reply.json()["detail"]) == (status, True), reply.text
    assert sorted(server.store.folder.rglob("*.safetensors")) == before


def test_a_pin_is_served_until_it_is_taken_off_and_all_is_noted(server):
    assert answered_by(server) == 2
    assert post(server, "/abdomen/pin", {"revision": 1}) == {
        "department": "abdomen",
        "published": None,
        "served": 1,
        "pinned": 1,
    }
    assert (newest_line(server)["action"], newest_line(server)["revision"]) == ("pin", 1)
    figures = requests.get(f"{server.url}/lorkd/metrics", timeout=10).text
    assert 'lorkd_revision{department="abdomen"} 1.0' in figures
    assert answered_by(server) == 1
    assert ExpertStore(server.store.folder).served("abdomen") == 1  # as a server that is started anew asks
    rolled = post(server, "/abdomen/rollback", {"revision": 1})
    assert (rolled["published"], rolled["served"]) == (server.store.newest("abdomen"), 1)
    line = newest_line(server)
    assert (line["action"], line["department"], line["revision"]) == ("roll back", "abdomen", 1)
    assert line["published"] == rolled["published"]
    assert post(server, "/abdomen/pin", {"revision": None})["served"] == rolled["published"]
    assert answered_by(server) == rolled["published"]
    assert newest_line(server)["action"] == "unpin"


def test_a_candidate_is_published_or_removed(server, make_expert):
    first, second = (keep(server.store, make_expert(seed=seed, metrics={"liver": 0.1})) for seed in (7, 8))
    told = get(server, "/abdomen")["candidates"]
    assert {each["id"]: each["metrics"] for each in told} == {first: {"liver": 0.1}, second: {"liver": 0.1}}
    before = server.store.newest("abdomen")
    assert answered_by(server) == before
    assert post(server, f"/abdomen/candidates/{first}/publish")["published"] == before + 1
    removed = requests.delete(f"{server.url}/lorkd/experts/abdomen/candidates/{second}", timeout=30)
    assert (removed.status_code, removed.content) == (204, b"")
    assert candidate_ids(server.store, "abdomen") == ()
    assert answered_by(server) == before + 1


def test_a_request_that_runs_keeps_its_revision(server):
    before = server.store.newest("abdomen")
    with concurrent.futures.ThreadPoolExecutor(1) as other:
        answer = other.submit(answered_by, server, "medium", job=JOB)
        end = time.monotonic() + 60
        job = f"{server.url}/lorkd/jobs/{JOB}"
        while time.monotonic() < end:
            state = requests.get(job, timeout=10).json()
            if state.get("stage") == "abdomen" and state["done"] >= 1:
                break
            time.sleep(0.02)
        published = post(server, "/abdomen/rollback", {"revision": 1})["published"]
        running = requests.get(job, timeout=10).json()
        revision = answer.result(timeout=120)
    assert (running["state"], revision, published) == ("running", before, before + 1), json.dumps(running)
    assert answered_by(server) == published
