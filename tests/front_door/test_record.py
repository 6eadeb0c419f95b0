"""A request that fails unexpectedly is answered with its number, logged without its words, and audited."""

import asyncio
import json
import logging

import pytest
from monailabel.interfaces.utils import app as instances

from lorkd_monailabel.audit import Audit
from lorkd_monailabel.front_door.record import Record
from lorkd_monailabel.front_door.visits import visit


@pytest.fixture
def audit(tmp_path, monkeypatch):
    """The audit log of an app that is nothing else."""
    log = Audit(tmp_path / "audit.jsonl")
    monkeypatch.setattr(instances, "app_instance", lambda: type("App", (), {"audit": log}))
    return log


def ask(inside, method="PUT"):
    sent = []

    async def send(message):
        sent.append(message)

    asyncio.run(Record(inside)({"type": "http", "method": method, "path": "/x", "headers": []}, None, send))
    headers = {key.decode(): value.decode() for key, value in sent[0]["headers"]}
    return sent[0]["status"], headers, sent[1]["body"]


async def fine(scope, receive, send):
    visit().route, visit().user, visit().image = "/datastore/label", "anna", "Meier"
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


async def broken(scope, receive, send):
    visit().route = "/datastore/label"
    raise TypeError("Meier")


def test_unexpected_failure_is_told_by_its_number_only(audit, caplog):
    with caplog.at_level(logging.INFO):
        status, headers, body = ask(broken)
    assert status == 500
    assert json.loads(body) == {
        "detail": "the server failed unexpectedly; tell its administrator the request_id",
        "request_id": headers["x-request-id"],
    }
    failed, line = caplog.records
    assert (failed.getMessage(), failed.exc_info[0]) == ("PUT /datastore/label failed", TypeError)
    assert line.fields["status"] == 500


def test_what_may_change_something_is_audited(audit):
    _, headers, _ = ask(fine)
    (line,) = audit.lines(image="Meier")
    assert (line["action"], line["user"], line["status"]) == ("PUT /datastore/label", "anna", 200)
    assert line["request_id"] == headers["x-request-id"]
    assert "Meier" not in audit.path.read_text(encoding="utf-8")
    ask(fine, method="GET")
    assert len(audit.lines()) == 1


def test_an_audit_log_that_cannot_be_written_does_not_stop_the_work(audit, caplog):
    audit.path.mkdir()
    assert ask(fine)[0] == 200
    assert "the audit log can't be written" in caplog.text
