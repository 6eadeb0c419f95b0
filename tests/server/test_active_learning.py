"""Active learning on a real server, with MONAI Label's own client: who gets which case, why, and how soon."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import nibabel
import numpy as np
import pytest
import requests
from monailabel.client import MONAILabelClient

from tests.server.conftest import Server, started, wait_for

# MONAI Label's client closes neither sockets nor files.
pytestmark = [pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"), pytest.mark.timeout(240)]

BOTH = "uncertainty_diversity"
GOOD = {"ct 1", "ct 10", "mri 2"}
PATIENCE_SECONDS = 60


@pytest.fixture(scope="module")
def server(tmp_path_factory, root, tiny_base, make_expert) -> Iterator[Server]:
    """One of its own, for its queue of cases changes."""
    folder = tmp_path_factory.mktemp("active_learning")
    with started("door", folder, root, tiny_base, (make_expert(),), conf={"reservation_minutes": "5"}) as server:
        (server.studies / "large.nii.gz").unlink()  # before the server looks; the windows of the tiny base are tiny
        wait_for(server)
        yield server


def client(server: Server, name: str) -> MONAILabelClient:
    return MONAILabelClient(server.url, tmpdir=str(server.temporary), client_id=name)


def listed(server: Server, department: str = "abdomen", **query: Any) -> dict[str, Any]:
    reply = requests.get(f"{server.url}/lorkd/active-learning/{department}", params=query, timeout=10)
    assert reply.ok, reply.text
    return reply.json()


def test_active_learning_from_the_first_question_to_a_label(server, tmp_path):
    begin = time.monotonic()
    first = client(server, "annotator 1").next_sample(BOTH, {"department": "abdomen"})
    assert time.monotonic() - begin < 2
    assert first["path"].endswith(f"{first['id']}.nii.gz")
    assert first["lorkd"]["scored"] == 0
    assert first["lorkd"]["strategy"] == "order"
    assert time.time() < first["lorkd"]["reserved_until"] <= time.time() + 300

    end = time.monotonic() + PATIENCE_SECONDS
    while (found := listed(server))["scored"] < 3 or found["scoring"]:
        assert time.monotonic() < end, f"waited in vain: {found}"
        time.sleep(0.2)
    scored = {each["image"]: each["uncertainty"] for each in found["cases"]}
    assert {image for image, uncertainty in scored.items() if uncertainty is not None} >= GOOD - {first["id"]}
    free = [each for each in found["cases"] if each["reserved_by"] is None]
    assert [each["place"] for each in free] == list(range(1, len(free) + 1))
    (reserved,) = (each for each in found["cases"] if each["reserved_by"])
    assert (reserved["image"], reserved["reserved_by"], reserved["place"]) == (first["id"], "annotator 1", None)
    assert found["strategy"] == BOTH

    second = client(server, "annotator 2").next_sample(BOTH, {"department": "abdomen"})
    assert second["id"] == free[0]["image"]
    assert second["lorkd"]["strategy"] == BOTH
    assert second["lorkd"]["uncertainty"] == free[0]["uncertainty"]
    again = client(server, "annotator 2").next_sample(BOTH, {"department": "abdomen"})
    assert again["id"] == second["id"]
    assert again["lorkd"]["reserved_until"] > second["lorkd"]["reserved_until"]

    grid = nibabel.load(server.studies / f"{second['id']}.nii.gz")
    nibabel.save(nibabel.Nifti1Image(np.zeros(grid.shape, np.uint8), grid.affine), tmp_path / "label.nii.gz")
    client(server, "annotator 2").save_label(second["id"], str(tmp_path / "label.nii.gz"))
    assert second["id"] not in {each["image"] for each in listed(server)["cases"]}
    third = client(server, "annotator 2").next_sample(BOTH, {"department": "abdomen"})
    assert third["id"] not in (first["id"], second["id"])


def test_two_clients_at_once_never_get_the_same(server):
    with ThreadPoolExecutor(4) as threads:
        names = [f"hurried {number}" for number in range(4)]
        given = list(threads.map(lambda name: client(server, name).next_sample(BOTH, {}).get("id"), names))
    assert len(set(given)) == 4


def test_a_reservation_is_ended(server):
    image = client(server, "on holiday").next_sample("first", {})["id"]
    address = f"{server.url}/lorkd/active-learning/reservations/{image}"
    assert requests.delete(address, timeout=10).json() == {"released": True}
    assert requests.delete(address, timeout=10).json() == {"released": False}
    assert image not in {each["image"] for each in listed(server)["cases"] if each["reserved_by"]}


@pytest.mark.parametrize(
    ("department", "query", "status", "words"),
    [
        ("nose", {}, 400, "department 'nose' is unknown"),
        ("abdomen", {"measure": "revisions"}, 400, "has 1 revision, but two are compared"),
        ("abdomen", {"strategy": "guess"}, 422, "strategy"),
        ("abdomen", {"limit": 0}, 422, "limit"),
    ],
)
def test_what_can_not_be_listed_is_said(server, department, query, status, words):
    reply = requests.get(f"{server.url}/lorkd/active-learning/{department}", params=query, timeout=10)
    assert (reply.status_code, words in reply.json()["detail"]) == (status, True), reply.text


def test_what_can_not_be_chosen_by_is_said(server):
    reply = requests.post(f"{server.url}/activelearning/uncertainty", json={"measure": "foundation"}, timeout=10)
    assert reply.status_code == 400
    assert reply.json()["detail"].startswith("the server knows no foundation")


def test_without_an_expert_the_list_says_so(server):
    found = listed(server, "pelvis")
    assert (found["strategy"], found["pool"]) == ("order", 0)
    assert found["reason"] == "pelvis has no expert yet, so cases come in the order of their names"
