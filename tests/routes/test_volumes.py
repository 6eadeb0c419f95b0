"""Tests of lorkd_monailabel.routes.volumes; the rest is tested through the server."""

from types import SimpleNamespace

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from monailabel.interfaces.utils import app as instances

from lorkd_monailabel.routes import volumes
from lorkd_monailabel.sources.uploads import Uploads


@pytest.fixture
def told(tmp_path, monkeypatch):
    """Images that the app was told of."""
    images = []
    kept = Uploads(tmp_path / "volumes")
    monkeypatch.setattr(volumes, "uploads", lambda: kept)
    monkeypatch.setattr(instances, "app_instance", lambda: SimpleNamespace(foresee=images.append))
    return images


def test_a_volume_that_was_sent_is_told_of_and_half_of_one_is_not(tmp_path, told):
    app = FastAPI()
    app.include_router(volumes.router)
    with TestClient(app) as client:
        sent = client.put("/volumes", params={"extension": ".nrrd"}, content=b"volume").json()
        assert sent.keys() == {"sha256", "bytes", "expires"}
        with pytest.raises(ValueError, match="the body is empty"):
            client.put("/volumes", params={"extension": ".nrrd"}, content=b"")
    assert told == [tmp_path / "volumes" / f"{sent['sha256']}.nrrd"]
