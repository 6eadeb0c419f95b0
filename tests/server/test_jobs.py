"""Inferences as jobs of a real server: progress, cancel, turns; and what else an answer says."""

import gzip
import os
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests

from lorkd_monailabel.predictor import Predictor
from lorkd_monailabel.prompts import resolve
from lorkd_monailabel.volumes import read_volume

PATIENCE_SECONDS = 30


class Sent:
    """A request for inference under way, in a thread of its own."""

    def __init__(self, door: Any, threads: ThreadPoolExecutor, image: str, client: str) -> None:
        self.door = door
        self.id = str(uuid.uuid4())
        params = {"text": "liver; spleen", "job": self.id, "client_id": client}
        self.reply: Future[requests.Response] = threads.submit(door.infer, "lorkd", image, params, output="json")
        wait_until(lambda: self.get().ok)

    def get(self) -> requests.Response:
        return requests.get(f"{self.door.url}/lorkd/jobs/{self.id}", timeout=10)

    def status(self) -> dict[str, Any]:
        return self.get().json()

    def cancel(self) -> dict[str, Any]:
        return requests.delete(f"{self.door.url}/lorkd/jobs/{self.id}", timeout=10).json()


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


@pytest.fixture
def send(door) -> Iterator[Callable[..., Sent]]:
    """Send a request to infer; whatever still runs at the end is cancelled."""
    sent: list[Sent] = []
    with ThreadPoolExecutor(8) as threads:

        def start(image: str, client: str = "someone") -> Sent:
            sent.append(Sent(door, threads, image, client))
            return sent[-1]

        yield start
        for each in sent:
            each.cancel()


def test_progress_is_seen_and_cancel_ends_it_within_two_seconds(send):
    running = send("large")
    wait_until(lambda: running.status()["stage"] == "abdomen" and running.status()["done"] > 20)
    first, second = running.status(), running.status()
    assert first["state"] == "running"
    assert first["title"] == "liver, spleen"
    assert 20 < first["done"] <= second["done"] < second["total"]
    assert first["total"] == second["total"] > 1000
    assert not running.reply.done()
    begin = time.monotonic()
    assert running.cancel() == {"cancelled": True}
    reply = running.reply.result(PATIENCE_SECONDS)
    assert time.monotonic() - begin < 2
    assert reply.status_code == 409
    assert "cancelled after" in reply.json()["detail"]
    after = running.status()
    assert (after["state"], after["message"]) == ("cancelled", reply.json()["detail"])
    assert after["done"] < after["total"]
    assert running.cancel() == {"cancelled": False}


def processor_seconds(door: Any) -> float:
    """What the server's process has used so far."""
    after_name = Path(f"/proc/{door.process.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(after_name[11]) + int(after_name[12])) / os.sysconf("SC_CLK_TCK")


def used_in_a_second(door: Any) -> float:
    before = processor_seconds(door)
    time.sleep(1)
    return processor_seconds(door) - before


def test_server_computes_no_more_after_a_cancel(send, door):
    running = send("large")
    wait_until(lambda: running.status()["done"] > 20)
    busy = used_in_a_second(door)
    running.cancel()
    running.reply.result(PATIENCE_SECONDS)
    assert used_in_a_second(door) < busy / 3


def test_two_clients_take_turns(send, door):
    first = send("large", "a")
    wait_until(lambda: first.status()["state"] == "running")
    jobs = [send("ct 1", "a"), send("ct 1", "a"), send("ct 1", "a"), send("ct 1", "b")]
    assert [job.status()["position"] for job in jobs] == [1, 3, 4, 2]
    first.cancel()
    for job in jobs:
        assert job.reply.result(PATIENCE_SECONDS).ok
    listed = [each["id"] for each in requests.get(f"{door.url}/lorkd/jobs", timeout=10).json()]
    ended = [each for each in listed if each in {job.id for job in jobs}]
    assert ended == [jobs[number].id for number in (2, 1, 3, 0)]  # last first


def test_queued_job_that_is_cancelled_never_runs(send):
    first = send("large", "a")
    wait_until(lambda: first.status()["state"] == "running")
    second = send("ct 1", "b")
    assert second.status()["state"] == "queued"
    assert second.cancel() == {"cancelled": True}
    reply = second.reply.result(PATIENCE_SECONDS)
    assert (reply.status_code, reply.json()["detail"]) == (409, "the job was cancelled before it began")
    assert first.status()["state"] == "running"


def test_client_that_hangs_up_stops_its_job(door):
    job = str(uuid.uuid4())
    with pytest.raises(requests.ReadTimeout):
        requests.post(
            f"{door.url}/infer/lorkd",
            params={"image": "large", "output": "json"},
            data={"params": f'{{"text": "liver", "job": "{job}"}}'},
            timeout=1,
        )
    begin = time.monotonic()
    wait_until(lambda: requests.get(f"{door.url}/lorkd/jobs/{job}", timeout=10).json()["state"] == "cancelled")
    assert time.monotonic() - begin < 2


def test_failed_job_says_why(door):
    job = str(uuid.uuid4())
    reply = door.infer("lorkd", "constant", {"text": "liver", "job": job}, output="json")
    status = requests.get(f"{door.url}/lorkd/jobs/{job}", timeout=10).json()
    assert reply.status_code == 400
    assert (status["state"], status["message"]) == ("failed", reply.json()["detail"])


@pytest.mark.parametrize("job", ["1", "../x", 7, {"a": 1}, "x" * 5000])
def test_ids_are_uuids(door, job):
    reply = door.infer("lorkd", "ct 1", {"text": "liver", "job": job}, output="json")
    assert reply.status_code == 400
    assert "job" in reply.json()["detail"]


def test_unknown_job_and_taken_id(send, door):
    for method in ("GET", "DELETE"):
        reply = requests.request(method, f"{door.url}/lorkd/jobs/{uuid.uuid4()}", timeout=10)
        assert (reply.status_code, "is unknown" in reply.json()["detail"]) == (404, True)
    running = send("large")
    wait_until(lambda: running.status()["state"] == "running")
    reply = door.infer("lorkd", "ct 1", {"text": "liver", "job": running.id}, output="json")
    assert reply.status_code == 400
    assert "give each its own id" in reply.json()["detail"]
    assert running.status()["state"] == "running"


def test_an_answer_says_what_was_done(server):
    job = str(uuid.uuid4())
    params = {"text": "liver; pancreas; trachea; flux", "job": job}
    answer = server.infer("lorkd", "ct 1", params, output="json").json()
    about = answer["lorkd"]
    volume = read_volume(server.studies / "ct 1.nii.gz")
    expected = Predictor(server.store).segment(volume, resolve("liver; pancreas; trachea")[0])
    assert about["job"] == job
    liver, pancreas, trachea = about["answers"]
    assert answer["label_names"] == {"liver": 1, "trachea": 2}
    for each, wanted in zip((liver, trachea), (expected.answers[0], expected.answers[2]), strict=True):
        assert (each["status"], each["voxels"], each["ml"]) == (wanted.status, wanted.voxels, wanted.ml)
        assert each["confidence"] == wanted.confidence
        assert each["expert"] == f"{each['department']}/{each['revision']:04d}"
    assert (pancreas["status"], pancreas["expert"], pancreas["confidence"]) == ("no expert", None, None)
    (missed,) = about["not_understood"]
    assert (missed["phrase"], missed["status"]) == ("flux", "not understood")
    assert set(about["stages"]) == {"queue", "read", "prepare", "windows", "merge", "write"}
    assert 0 < sum(about["stages"].values()) <= about["seconds"] + 0.01
    assert about["fallback"] is None


def test_everything_is_what_the_experts_know(server):
    answer = server.infer("lorkd", "ct 1", {"text": "everything in the abdomen"}, output="json").json()
    assert answer["label_names"] == {"liver": 1, "spleen": 2, "left kidney": 3}
    assert {each["phrase"] for each in answer["lorkd"]["answers"]} == {"everything in the abdomen"}
    departments = {
        each["department"]
        for each in server.infer("lorkd", "ct 1", {"text": "all"}, output="json").json()["lorkd"]["answers"]
    }
    assert departments >= {"abdomen", "thorax"}
    assert (
        server.infer("abdomen", "ct 1", {"text": "all"}, output="json").json()["label_names"] == answer["label_names"]
    )


def test_segmentation_file_keeps_overlaps(server):
    reply = server.infer(
        "lorkd", "mri 2", {"text": "liver; spleen; left kidney", "result_extension": ".seg.nrrd"}, output="image"
    )
    head, body = reply.content.split(b"\n\n", 1)
    fields = dict(line.split(":=" if ":=" in line else ": ", 1) for line in head.decode().splitlines()[1:])
    voxels = np.frombuffer(gzip.decompress(body), "u1").reshape(
        [int(size) for size in fields["sizes"].split()], order="F"
    )
    volume = read_volume(server.studies / "mri 2.nii.gz")
    prediction = Predictor(server.store).segment(volume, resolve("liver; spleen; left kidney")[0], keep_overlaps=True)
    assert prediction.layers is not None
    assert prediction.label_map.overlaps != ()
    assert len(voxels) == len(prediction.layers.arrays) > 1
    for number, (segment, mask) in enumerate(prediction.layers.masks()):
        layer, value = int(fields[f"Segment{number}_Layer"]), int(fields[f"Segment{number}_LabelValue"])
        assert fields[f"Segment{number}_Name"] == segment.structure.name
        np.testing.assert_array_equal(voxels[layer] == value, mask)


def test_vocabulary_is_sent_when_it_has_changed(door, make_expert):
    reply = requests.get(f"{door.url}/lorkd/vocabulary", timeout=10)
    body = reply.json()
    abdomen = next(each for each in body["departments"] if each["id"] == "abdomen")
    liver = next(each for each in abdomen["structures"] if each["name"] == "liver")
    assert (abdomen["revision"], liver["expert"]) == (door.store.served("abdomen"), True)
    assert (liver["snomed"], liver["snomed_meaning"], liver["snomed_side"]) == ("10200004", "Liver", None)
    kidney = next(each for each in abdomen["structures"] if each["name"] == "left kidney")
    assert (kidney["snomed_meaning"], kidney["snomed_side"]) == ("Kidney", ["7771000", "Left"])
    assert not next(each for each in abdomen["structures"] if each["name"] == "pancreas")["expert"]
    assert next(each for each in body["groups"] if each["name"] == "floating rib")["structures"][0] == "left rib 11"
    etag = {"If-None-Match": reply.headers["ETag"]}
    again = requests.get(f"{door.url}/lorkd/vocabulary", headers=etag, timeout=10)
    assert (again.status_code, again.content) == (304, b"")
    door.store.publish(make_expert("spine", structures=("L1 vertebra",)))
    changed = requests.get(f"{door.url}/lorkd/vocabulary", headers=etag, timeout=10)
    assert changed.status_code == 200
    assert changed.headers["ETag"] != reply.headers["ETag"]


def test_text_is_resolved_without_an_image(door):
    body = {"text": "kidneys; brain stemm; all ribs, left", "department": "auto"}
    reply = requests.post(f"{door.url}/lorkd/resolve", json=body, timeout=10).json()
    left, right = reply["targets"][:2]
    assert left == {
        "phrase": "kidneys",
        "structure": "left kidney",
        "department": "abdomen",
        "expert": True,
        "revision": 1,
    }
    assert (right["structure"], right["expert"]) == ("right kidney", False)
    assert len(reply["targets"]) == 14
    (missed,) = reply["not_understood"]
    assert (missed["phrase"], missed["status"]) == ("brain stemm", "not understood")
    assert "brainstem" in missed["candidates"]
    assert "did you mean" in missed["message"]
    assert requests.post(f"{door.url}/lorkd/resolve", json={"text": " "}, timeout=10).status_code == 400
    assert requests.post(f"{door.url}/lorkd/resolve", json={"text": "x" * 4001}, timeout=10).status_code == 422
