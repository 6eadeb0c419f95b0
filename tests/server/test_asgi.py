"""What the front door adds: threads, a number for each failure, and fewer doors."""

import time
import uuid
from concurrent.futures import ThreadPoolExecutor

import requests


def test_info_answers_while_an_inference_runs(door):
    job, waits = str(uuid.uuid4()), []
    address = f"{door.url}/lorkd/jobs/{job}"
    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(door.infer, "abdomen", "large", {"job": job}, output="json")
        while requests.get(address, timeout=30).json().get("stage") != "abdomen":
            time.sleep(0.05)
        for _ in range(30):
            begin = time.perf_counter()
            door.info()
            waits.append(time.perf_counter() - begin)
            time.sleep(0.02)
        assert requests.get(address, timeout=30).json()["state"] == "running"
        requests.delete(address, timeout=30)
    assert running.result().status_code == 409
    assert sorted(waits)[len(waits) // 2] < 0.150


def test_inferences_that_come_together_do_not_mix(door):
    texts = ["liver", "spleen; liver", "trachea", "left kidney", "spleen", "liver; left kidney"]
    alone = [door.infer("lorkd", "ct 1", {"text": text}, output="json").json()["lorkd"]["answers"] for text in texts]
    with ThreadPoolExecutor(len(texts)) as threads:
        replies = threads.map(lambda text: door.infer("lorkd", "ct 1", {"text": text}, output="json"), texts)
        assert [reply.json()["lorkd"]["answers"] for reply in replies] == alone


def test_every_answer_has_its_number(door):
    reply = requests.get(f"{door.url}/info/", timeout=10)
    refused = requests.get(f"{door.url}/session/none", timeout=10)
    assert refused.json()["request_id"] == refused.headers["X-Request-ID"]
    assert len({reply.headers["X-Request-ID"], refused.headers["X-Request-ID"]}) == 2


def test_reload_is_gone(door):
    reply = requests.post(f"{door.url}/reload", timeout=10)
    assert (reply.status_code, reply.json()["detail"]) == (404, "Not Found")


def test_stock_pages_are_there(door):
    assert requests.get(f"{door.url}/", timeout=10).ok
    assert "/infer/{model}" in requests.get(f"{door.url}/openapi.json", timeout=10).json()["paths"]
    assert "lorkd_monailabel" in requests.get(f"{door.url}/logs/", params={"text": True}, timeout=10).text


def test_what_watches_over_the_server(door):
    assert requests.get(f"{door.url}/lorkd/health", timeout=10).json()["status"] == "ok"
    ready = requests.get(f"{door.url}/lorkd/ready", timeout=10)
    assert (ready.status_code, ready.json()) == (200, {"ready": True, "store": True, "studies": True})
    door.infer("abdomen", "ct 1", {"text": "liver"}, output="json")
    lines = requests.get(f"{door.url}/lorkd/metrics", timeout=10).text.splitlines()
    assert any(
        line.startswith('lorkd_requests_total{method="POST",route="/infer/{model}",status="200"}') for line in lines
    )
    assert 'lorkd_revision{department="abdomen"} 1.0' in lines
    assert requests.get(f"{door.url}/logs/gpu", timeout=10).ok
    assert "lorkd_jobs_running 0.0" in lines
