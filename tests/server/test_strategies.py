"""Which image is next; the datastore is MONAI Label's own, on an empty folder of images."""

import time

import pytest
from monailabel.datastore.local import LocalDatastore

from lorkd_monailabel.tasks.strategies import First, Random


@pytest.fixture
def datastore(tmp_path):
    """Four images without labels."""
    for name in ("case 10", "case 2", "b", "20"):
        (tmp_path / f"{name}.nii.gz").write_bytes(b"")
    return LocalDatastore(str(tmp_path))


def label(datastore, image: str, folder) -> None:
    """Give an image its final label."""
    (folder / "label.nii.gz").write_bytes(b"")
    datastore.save_label(image, str(folder / "label.nii.gz"), "final", {})


def test_first_counts_numbers(datastore, tmp_path):
    served = []
    while image := First()({"strategy": "first"}, datastore):
        served.append(image["id"])
        label(datastore, image["id"], tmp_path)
    assert served == ["20", "b", "case 2", "case 10"]


def test_random_prefers_what_was_not_served(datastore):
    now = int(time.time())
    for image in ("case 10", "case 2", "b"):
        datastore.update_image_info(image, {"strategy": {"random": {"ts": now}}})
    chosen = [Random()({"strategy": "random"}, datastore) for _ in range(50)]
    assert {each["id"] for each in chosen} == {"20"}
    assert all(now < each["weight"] <= now + 60 for each in chosen)


def test_random_chooses_though_all_were_served_this_second(datastore):
    for image in ("case 10", "case 2", "b", "20"):
        datastore.update_image_info(image, {"strategy": {"random": {"ts": int(time.time()) + 5}}})
    assert len({Random()({"strategy": "random"}, datastore)["id"] for _ in range(200)}) == 4


def test_nothing_is_left(datastore, tmp_path):
    for image in ("case 10", "case 2", "b", "20"):
        label(datastore, image, tmp_path)
    assert Random()({"strategy": "random"}, datastore) is None
    assert First()({"strategy": "first"}, datastore) is None
