"""What the app makes of its --conf keys; the rest is tested through the servers."""

import logging
from threading import current_thread

import nibabel
import numpy as np

from lorkd_monailabel import shipped
from lorkd_monailabel.app import LoRKDApp
from lorkd_monailabel.departments import DEPARTMENT_IDS
from lorkd_monailabel.tasks import last_volume


def test_without_a_shipped_store_there_is_an_empty_one(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(shipped, "STORE", tmp_path / "nowhere")
    with caplog.at_level(logging.WARNING):
        made = LoRKDApp(str(tmp_path / "app"), str(tmp_path / "studies"), {"device": "cpu", "stor": "x"})
    assert made.store.folder == tmp_path / "app" / "model" / "store"
    assert set(made.info()["models"]) == {"lorkd"}
    assert [each["expert"] for each in made.info()["lorkd"]["departments"]] == [False] * len(DEPARTMENT_IDS)
    assert "--conf stor is unknown and has no effect; known are store, device" in caplog.text
    assert "holds no expert" in caplog.text


def test_the_image_that_a_client_is_given_is_read_ahead(tmp_path, monkeypatch):
    monkeypatch.setattr(shipped, "STORE", tmp_path / "nowhere")
    array = np.zeros((4, 5, 6), np.int16)
    array[0] = -1000
    (tmp_path / "studies").mkdir()
    nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), tmp_path / "studies" / "ct.nii.gz")
    made = LoRKDApp(str(tmp_path / "app"), str(tmp_path / "studies"), {"device": "cpu"})
    read, readers = last_volume.read_volume, []
    monkeypatch.setattr(last_volume, "read_volume", lambda path: readers.append(current_thread()) or read(path))
    assert made.next_sample({"strategy": "first"})["id"] == "ct"
    image = tmp_path / "studies" / "ct.nii.gz"
    assert made.last.read(image, "auto", lambda: None).array.shape == (4, 5, 6)
    assert len(readers) == 1
    assert readers[0] is not current_thread()
