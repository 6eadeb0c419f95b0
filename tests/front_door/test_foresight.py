"""Tests of lorkd_monailabel.front_door.foresight."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi.responses import FileResponse
from monailabel.interfaces.utils import app as instances

from lorkd_monailabel.front_door.foresight import foresee, tell


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Images that an app was told of; it has one session."""
    images: list[str] = []
    session = SimpleNamespace(image="/sessions/1/ct.nrrd")
    sessions = SimpleNamespace(get_session=lambda number: session if number == "1" else None)
    app = SimpleNamespace(foresee=images.append, sessions=lambda: sessions)
    monkeypatch.setattr(instances, "app_instance", lambda: app)
    return images


def test_an_image_that_is_downloaded_or_comes_with_a_session_is_told_of(told: list[str]) -> None:
    def download(image: str, check_only: bool = False) -> Any:
        return {} if check_only else FileResponse(f"/studies/{image}.nii.gz")

    datastore = SimpleNamespace(download_image=download)
    session = SimpleNamespace(create_session=lambda number: {"session_id": number})
    foresee(datastore, session)
    assert datastore.download_image("ct", check_only=True) == {}
    assert session.create_session("gone") == {"session_id": "gone"}
    assert told == []
    assert datastore.download_image("ct").path == "/studies/ct.nii.gz"
    assert session.create_session("1") == {"session_id": "1"}
    assert told == ["/studies/ct.nii.gz", "/sessions/1/ct.nrrd"]


def test_another_app_is_not_told(monkeypatch: pytest.MonkeyPatch, told: list[str]) -> None:
    tell(Path("/studies/ct.nii.gz"))
    monkeypatch.setattr(instances, "app_instance", object)
    tell(Path("/studies/mr.nii.gz"))
    assert told == [Path("/studies/ct.nii.gz")]
