"""What the server says of whether it can work."""

import pytest
from fastapi import Response
from monailabel.interfaces.utils import app as instances

from lorkd_monailabel.routes import health
from lorkd_monailabel.store import ExpertStore


@pytest.fixture
def app(tmp_path, monkeypatch, tiny_base, make_expert):
    """An app with a store of one expert and a folder of studies."""
    store = ExpertStore(tmp_path / "store")
    store.publish_base(tiny_base)
    store.publish(make_expert())
    (tmp_path / "studies").mkdir()
    made = type("App", (), {"store": store, "studies": str(tmp_path / "studies")})
    monkeypatch.setattr(instances, "app_instance", lambda: made)
    return made


def ready():
    response = Response()
    told = health.ready(response)
    return response.status_code, told.store, told.studies


def test_ready(app):
    assert ready() == (200, True, True)


def test_a_store_that_is_damaged_or_empty(app, tmp_path):
    path = app.store.path("abdomen")
    path.write_bytes(b"damaged")
    assert ready() == (503, False, True)
    app.store = ExpertStore(tmp_path / "none")
    assert ready() == (503, False, True)


def test_studies_that_are_gone(app, tmp_path):
    (tmp_path / "studies").rmdir()
    assert ready() == (503, True, False)


def test_an_archive_that_does_not_answer_is_asked_now_and_then_only(app, monkeypatch):
    asked = []
    monkeypatch.setattr(health, "_answers", lambda address: bool(asked.append(address)))
    app.studies = "http://127.0.0.1:9/dicom-web"
    assert [ready() for _ in range(3)] == [(503, True, False)] * 3
    assert asked == ["http://127.0.0.1:9/dicom-web"]
    monkeypatch.undo()
    assert health._answers("http://127.0.0.1:9/dicom-web") is False


def test_alive():
    assert health.health().status == "ok"
