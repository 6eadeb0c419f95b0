"""A folder of studies with volume files and DICOM series, as MONAI Label's endpoints see it."""

import logging
import threading
import time
from pathlib import Path

import nibabel
import numpy as np
import pytest

from lorkd_monailabel.dicom_grids import source_series
from lorkd_monailabel.sources.folders import FolderStudies
from lorkd_monailabel.volumes import read_labels, read_volume

ONE, TWO = "1.2.3.10", "1.2.3.11"
EXTENSIONS = ("*.nii.gz", "*.nii")


@pytest.fixture
def root(tmp_path, make_series):
    """One volume file and one series."""
    folder = tmp_path / "studies"
    make_series(folder / "Doe^Jane", uid=ONE)
    nibabel.save(nibabel.Nifti1Image(np.arange(60, dtype=np.int16).reshape(3, 4, 5), np.eye(4)), folder / "ct 1.nii.gz")
    return folder


@pytest.fixture
def studies(root):
    return FolderStudies(str(root), extensions=EXTENSIONS)


@pytest.fixture
def label(tmp_path):
    path = tmp_path / "label.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.ones((11, 9, 6), np.uint8), np.eye(4)), path)
    return str(path)


def test_images_are_files_and_series(studies):
    assert sorted(studies.list_images()) == [ONE, "ct 1"]
    assert sorted(studies.get_unlabeled_images()) == [ONE, "ct 1"]
    assert studies.status()["total"] == 2
    assert studies.get_image_uri("nobody") == ""


def test_series_is_served_as_one_volume_file(studies, root):
    path = studies.get_image_uri(ONE)
    assert path.endswith(f"{ONE}.nii.gz")
    assert read_volume(path).array.shape == (11, 9, 6)
    assert len(source_series(Path(path))) == 6  # so that a prediction can be a DICOM SEG
    assert studies.get_image_uri("ct 1") == str((root / "ct 1.nii.gz").resolve())


def test_information_names_no_patient(studies, caplog):
    caplog.set_level(logging.DEBUG)
    studies.refresh()
    info = studies.get_image_info(ONE)
    assert (info["Modality"], info["SeriesInstanceUID"], info["name"]) == ("CT", ONE, ONE)
    for text in (str(studies.json()), str(info), caplog.text):
        assert "Doe" not in text
        assert "MRN" not in text


def test_labels_are_stored_as_for_any_image(studies, root, label):
    assert studies.save_label(ONE, label, "final", {"label_info": [{"name": "liver", "idx": 1}]}) == ONE
    assert (root / "labels" / "final" / f"{ONE}.nii.gz").is_file()
    assert studies.get_labeled_images() == [ONE]
    assert studies.get_unlabeled_images() == ["ct 1"]
    (pair,) = studies.datalist()
    assert read_volume(pair["image"]).array.shape == read_labels(pair["label"])[0].shape
    again = FolderStudies(str(root), extensions=EXTENSIONS)
    assert again.get_label_info(ONE, "final")["label_info"] == [{"name": "liver", "idx": 1}]


def test_labelled_series_that_is_no_volume_is_left_out_of_the_list(root, make_series, label, caplog):
    make_series(root / "tilted", uid=TWO, shear_mm=0.5)
    studies = FolderStudies(str(root), extensions=EXTENSIONS)
    for uid in (ONE, TWO):
        studies.save_label(uid, label, "final", {})
    assert [ONE in pair["image"] for pair in studies.datalist()] == [True]
    assert f"series {TWO} are sheared" in caplog.text


def test_dicom_files_are_not_removed(studies, root):
    with pytest.raises(ValueError, match="is a DICOM series, which is not removed from here"):
        studies.remove_image(ONE)
    assert len(list((root / "Doe^Jane").iterdir())) == 6
    studies.remove_image("ct 1")
    assert not (root / "ct 1.nii.gz").exists()


# watchdog warns where a folder comes with folders in it: it may begin to watch one of them twice
@pytest.mark.filterwarnings("ignore:Callback with id:RuntimeWarning")
def test_series_that_is_copied_in_appears_when_it_is_whole(root, make_series):
    studies = FolderStudies(str(root), extensions=EXTENSIONS, auto_reload=True)
    try:
        assert TWO not in studies.list_images()
        make_series(root / "new" / "deep", uid=TWO)
        end = time.monotonic() + 20
        while TWO not in studies.list_images() and time.monotonic() < end:
            time.sleep(0.1)
        assert read_volume(studies.get_image_uri(TWO)).array.shape == (11, 9, 6)
    finally:
        studies._observer.stop()
        studies._observer.join()


def test_a_request_during_a_refresh_does_not_wait_for_one_that_waits_for_it(studies):
    """``status`` catches up while it has its turn; files change while another thread looks at the folders."""
    update, threads = studies._index.update, []

    def slow():
        studies._index.update = update
        studies._changed = time.monotonic() - 60
        threads.append(threading.Thread(target=studies.status, daemon=True))
        threads[1].start()
        time.sleep(0.3)  # for it to get as far as it can
        return update()

    studies._index.update = slow
    studies._changed = time.monotonic() - 60
    threads.append(threading.Thread(target=studies.get_image_uri, args=("ct 1",), daemon=True))
    threads[0].start()
    threads[0].join(timeout=10)
    threads[1].join(timeout=10)
    assert not any(thread.is_alive() for thread in threads)
