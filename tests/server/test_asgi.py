"""What the front door adds: threads, a number for each failure, and fewer doors."""

import time
from concurrent.futures import ThreadPoolExecutor

import requests


def test_info_answers_while_an_inference_runs(door):
    waits = []
    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(door.infer, "abdomen", "large", {}, output="json")
        time.sleep(0.3)  # the request is on its way
        while not running.done():
            begin = time.perf_counter()
            door.info()
            waits.append(time.perf_counter() - begin)
            time.sleep(0.02)
    assert running.result().ok
    assert len(waits) > 10
    assert sorted(waits)[len(waits) // 2] < 0.150


def test_inferences_that_come_together_do_not_mix(door):
    texts = ["liver", "spleen; liver", "trachea", "left kidney", "spleen", "liver; left kidney"]
    alone = [door.infer("lorkd", "ct 1", {"text": text}, output="json").json()["lorkd"]["answers"] for text in texts]
    with ThreadPoolExecutor(len(texts)) as threads:
        replies = threads.map(lambda text: door.infer("lorkd", "ct 1", {"text": text}, output="json"), texts)
        assert [reply.json()["lorkd"]["answers"] for reply in replies] == alone


def test_unexpected_failure_is_told_by_its_number_only(door):
    # MONAI Label itself takes for granted that this is an object
    reply = requests.put(f"{door.url}/datastore/image/info", params={"image": "ct 1"}, data={"info": "[1]"}, timeout=10)
    assert (reply.status_code, set(reply.json())) == (500, {"detail", "request_id"})
    assert reply.json()["detail"] == "the server failed unexpectedly; tell its administrator the request_id"
    log = door.log.read_text(encoding="utf-8")
    assert f"request {reply.json()['request_id']}: the server failed unexpectedly" in log
    assert "TypeError: list indices must be integers" in log


def test_reload_is_gone(door):
    reply = requests.post(f"{door.url}/reload", timeout=10)
    assert (reply.status_code, reply.json()["detail"]) == (404, "Not Found")


def test_stock_pages_are_there(door):
    assert requests.get(f"{door.url}/", timeout=10).ok
    assert "/infer/{model}" in requests.get(f"{door.url}/openapi.json", timeout=10).json()["paths"]
    assert "lorkd_monailabel" in requests.get(f"{door.url}/logs/", params={"text": True}, timeout=10).text
