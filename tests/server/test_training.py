"""Training on a real server: started by MONAI Label's own client, watched, stopped, resumed, published."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import requests
from monailabel.client import MONAILabelClient

from lorkd_monailabel.departments import DEPARTMENT_IDS
from lorkd_monailabel.store import ExpertStore
from tests.server.conftest import Server, started, wait_for

# MONAI Label's client closes neither sockets nor files.
pytestmark = [pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"), pytest.mark.timeout(300)]

OPTIONS = {"steps": 150, "batch_size": 2, "workers": 0, "augment": False}
SECONDS = 120


@pytest.fixture(scope="module")
def server(tmp_path_factory, root, tiny_base, make_expert) -> Iterator[Server]:
    """One of its own, for its store changes."""
    experts = (make_expert(), make_expert("thorax", structures=("heart", "trachea")))
    with started("door", tmp_path_factory.mktemp("training"), root, tiny_base, experts) as server:
        wait_for(server)
        yield server


@pytest.fixture
def client(server, tmp_path) -> MONAILabelClient:
    return MONAILabelClient(server.url, tmpdir=str(tmp_path))


@pytest.fixture(scope="module")
def labels(server, tmp_path_factory) -> None:
    """Final labels of liver and spleen on three images, submitted as Slicer does."""
    client = MONAILabelClient(server.url, tmpdir=str(tmp_path_factory.mktemp("client")))
    names = [{"name": "liver", "idx": 1}, {"name": "spleen", "idx": 2}]
    for image in ("ct 1", "ct 10", "mri 2"):
        grid = nibabel.load(server.studies / f"{image}.nii.gz")
        array = np.zeros(grid.shape, np.uint8)
        array[5:15, 5:15, 5:15], array[18:25, 5:15, 5:15] = 1, 2
        path = tmp_path_factory.mktemp("label") / "label.nii.gz"
        nibabel.save(nibabel.Nifti1Image(array, grid.affine), path)
        client.save_label(image, str(path), params={"label_info": names})


def contents(store: ExpertStore) -> dict[str, bytes]:
    return {str(path.relative_to(store.folder)): path.read_bytes() for path in store.folder.rglob("*.safetensors")}


def runs(server) -> list[dict[str, Any]]:
    return requests.get(f"{server.url}/lorkd/training", timeout=10).json()


def run(server, number: str) -> dict[str, Any]:
    return requests.get(f"{server.url}/lorkd/training/{number}", params={"lines": 100}, timeout=10).json()


def until(server, number: str, wanted: Any) -> dict[str, Any]:
    """What the route says of a run as soon as it is as wanted."""
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        state = run(server, number)
        if wanted(state):
            return state
        time.sleep(0.1)
    pytest.fail(f"waited in vain: {state}")


def test_before_anything_is_labelled_it_says_what_is_missing(server):
    reply = requests.post(f"{server.url}/lorkd/training", json={"department": "abdomen"}, timeout=10)
    assert reply.status_code == 400
    assert reply.json()["detail"].startswith("0 of the images have a submitted label, but one to train on and one to")
    assert runs(server) == []


@pytest.mark.parametrize(
    ("order", "status", "words"),
    [
        ({"department": "heart"}, 400, "department 'heart' is unknown"),
        ({"department": "brain"}, 400, "brain has no expert to retrain (experts exist for: thorax, abdomen)"),
        ({"task": "decompose"}, 400, "start the server with --conf foundation FILE"),
        ({"department": "abdomen", "options": {"epochs": 3}}, 400, "option 'epochs' is unknown; a training takes"),
        ({"department": "abdomen", "options": {"batch_size": 0}}, 400, "batch_size 0 must be in 1..1024"),
        ({"department": "abdomen", "options": {"train_ds": "x"}}, 400, "option 'train_ds' is unknown"),
        ({"department": "abdomen", "steps": 0}, 422, "steps"),
        ({"department": "abdomen", "options": {"labels": "x" * 110_000}}, 413, "larger than 100 KiB"),
    ],
)
def test_what_can_not_be_trained_is_refused_before_a_process_starts(server, labels, order, status, words):
    reply = requests.post(f"{server.url}/lorkd/training", json=order, timeout=10)
    assert (reply.status_code, words in reply.json()["detail"]) == (status, True), reply.text
    assert runs(server) == []


def test_what_could_be_trained_is_told_for_each_department(server, labels):
    told = requests.get(f"{server.url}/lorkd/training/departments", timeout=10).json()
    assert [each["department"] for each in told] == list(DEPARTMENT_IDS)
    found = {each.pop("department"): each for each in told}
    counts = {"liver": 3, "spleen": 3}
    assert found["abdomen"] == {"labels": 3, "structures": counts, "trainable": True, "reason": ""}
    reason = "no image has a label with a structure of thorax; label two at least and submit them"
    assert found["thorax"] == {"labels": 0, "structures": {}, "trainable": False, "reason": reason}
    assert found["brain"]["reason"].startswith("brain has no expert to retrain (experts exist for: thorax, abdomen)")


def test_the_stock_clients_see_the_tasks_and_their_options(server):
    trainers = server.info()["trainers"]
    assert set(trainers) == {"finetune_abdomen", "finetune_thorax"}
    config = trainers["finetune_abdomen"]["config"]
    assert (config["steps"], config["force"], config["tags"]) == (200, False, "final")


def test_a_training_is_watched_stopped_resumed_and_published(server, labels, client):
    before = contents(server.store)
    first = client.train_start("finetune_abdomen", OPTIONS)["id"]
    seen = until(server, first, lambda state: state["stage"] == "train" and state["step"] >= 3)
    stats = next(iter(server.info()["train_stats"].values()))
    queued = requests.post(f"{server.url}/lorkd/training", json={"department": "thorax"}, timeout=10).json()
    taken = requests.delete(f"{server.url}/lorkd/training/{queued['id']}", timeout=10).json()
    assert client.train_stop()["status"] == "STOPPED"
    stopped = until(server, first, lambda state: state["state"] not in ("running", "stopping"))

    assert (seen["state"], seen["task"], seen["steps"]) == ("running", "finetune_abdomen", 150)
    assert seen["loss"] > 0
    assert seen["seconds_left"] > 0
    assert seen["losses"].keys() == {"abdomen"}
    assert seen["cases"] == {"train": 2, "validation": 1, "left_out": 0} or seen["cases"]["train"] == 1
    assert {"epoch", "total_epochs", "best_metric", "current_time", "train", "eval"} <= stats.keys()
    assert (stats["total_epochs"], stats["lorkd"]["id"]) == (150, first)
    assert (queued["state"], queued["position"], taken["state"]) == ("queued", 1, "stopped")
    assert (stopped["state"], stopped["result"]) == ("stopped", {})
    assert 3 <= stopped["step"] < 150
    assert "run again to go on" in stopped["message"]
    assert contents(server.store) == before

    second = client.train_start("finetune_abdomen", {**OPTIONS, "force": True})["id"]
    steps = []
    done = until(
        server,
        second,
        lambda state: (
            (state["stage"] == "train" and steps.append(state["step"])) or state["state"] in ("done", "failed")
        ),
    )
    while (status := client.train_status())["status"] == "RUNNING":  # its process has to end yet
        time.sleep(0.1)
    after = contents(server.store)
    assert (done["state"], status["status"]) == ("done", "DONE"), done
    assert min(filter(None, steps)) > stopped["step"]
    assert done["result"]["abdomen"]["revision"] == 2
    assert done["dice"]["abdomen"]["structures"].keys() == {"liver", "spleen"}
    assert done["dice"]["abdomen"]["current"] is not None
    assert after.keys() - before.keys() == {"abdomen/0002.safetensors"}
    assert {name: after[name] for name in before} == before
    assert next(iter(server.info()["train_stats"].values()))["total_time"]
    lines = requests.get(f"{server.url}/lorkd/audit", timeout=10).json()["lines"]
    publication = next(line for line in lines if line["action"] == "publish")
    assert (publication["department"], publication["revision"], publication["training"]) == ("abdomen", 2, second)
    answer = server.infer("abdomen", "ct 1", {"text": "liver", "result_extension": ".nii.gz"})
    assert b'"revision": 2' in answer.content or b'"revision":2' in answer.content


def test_a_client_may_wait_for_a_short_training(server, labels):
    wait = {"run_sync": "true"}
    short = {"steps": 1, "batch_size": 1, "workers": 2, "force": True}
    before = server.store.newest("abdomen")
    reply = requests.post(f"{server.url}/train/finetune_abdomen", params=wait, json=short, timeout=100)
    assert (reply.status_code, reply.json()["lorkd"]["state"]) == (200, "done"), reply.text
    assert server.store.newest("abdomen") == before + 1
    refused = requests.post(f"{server.url}/train/finetune_abdomen", params=wait, json={"steps": 0}, timeout=100)
    assert (refused.status_code, "steps 0 must be in 1.." in refused.json()["detail"]) == (400, True)


def test_a_run_that_is_over_or_unknown_can_not_be_stopped(server, labels):
    unknown = requests.delete(f"{server.url}/lorkd/training/{'0' * 8}", timeout=10)
    over = runs(server)
    assert unknown.status_code == 404
    assert over
    for state in over:
        reply = requests.delete(f"{server.url}/lorkd/training/{state['id']}", timeout=10)
        assert (reply.status_code, "there is nothing to stop" in reply.json()["detail"]) == (400, True)


def test_states_and_logs_are_for_the_owner_alone(server, labels):
    folder = Path(server.log.parent / "tree" / "lorkd_monailabel" / "model" / "training" / "runs")
    logs = list(folder.glob("*.log"))
    assert logs
    assert {path.stat().st_mode & 0o077 for path in logs} == {0}
