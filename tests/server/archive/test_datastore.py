"""The datastore on a real archive: listed, labelled with DICOM SEG, read back whole."""

import time
from pathlib import Path

import nibabel
import numpy as np
import pytest
from dicomweb_client.session_utils import create_session_from_user_pass
from fastapi import HTTPException
from monailabel.config import settings
from monailabel.datastore.dicom import DICOMwebClientX
from monailabel.interfaces.exception import ImageNotFoundException

from lorkd_monailabel.sources.archive import Archive
from lorkd_monailabel.sources.dicomweb import ArchiveStudies
from lorkd_monailabel.sources.opening import open_studies
from lorkd_monailabel.volumes import Grid, read_labels, read_volume

CT, MR, LATE = "1.2.826.0.1.3680043.10.21", "1.2.826.0.1.3680043.10.22", "1.2.826.0.1.3680043.10.23"
SHAPE = (14, 12, 10)
NAMED = {"label_info": [{"name": "liver", "idx": 1}, {"name": "left kidney", "idx": 2}]}


@pytest.fixture
def studies(orthanc, tmp_path):
    """Make a datastore with an empty cache."""
    made = []

    def make(name: str, search_filter=None, expiry_s: float = 300.0, password: str | None = None) -> ArchiveStudies:
        client = DICOMwebClientX(
            url=orthanc.dicomweb, session=create_session_from_user_pass(orthanc.user, password or orthanc.password)
        )
        archive = Archive(client, search_filter or {"Modality": ["CT", "MR"]}, expiry_s)
        made.append(ArchiveStudies(archive, str(tmp_path / name)))
        return made[-1]

    yield make
    orthanc.remove("SEG")
    for each in made:
        each._observer.stop()
        each._observer.join()


def saved(folder: Path, array: np.ndarray, grid: Grid) -> str:
    path = folder / "a label.nii.gz"
    nibabel.save(nibabel.Nifti1Image(array, grid.affine), path)
    return str(path)


def test_lists_ct_and_mr_or_what_the_filter_says(studies):
    assert sorted(studies("a").list_images()) == [CT, MR]
    assert studies("b", {"Modality": "MR"}).list_images() == [MR]
    assert studies("c", {"Modality": "US"}).status() == {"total": 0, "completed": 0, "label_tags": {}}


def test_images_are_fetched_as_they_are(studies, values, own_grid):
    datastore = studies("a")
    for uid, modality in ((CT, "ct"), (MR, "mri")):
        volume = read_volume(datastore.get_image_uri(uid))
        np.testing.assert_array_equal(volume.array, values[uid])
        np.testing.assert_allclose(volume.grid.affine, own_grid.affine, atol=1e-4)
        assert volume.modality == modality
    assert datastore.get_image_uri("1.2.3.999") == ""
    assert datastore.get_image_uri("../../etc") == ""


def test_label_is_read_back_whole_by_a_server_that_never_saw_it(studies, orthanc, tmp_path, labels, own_grid):
    first = studies("first")
    assert first.save_label(CT, saved(tmp_path, labels, own_grid), "final", dict(NAMED)) == CT
    second = studies("second")
    (pair,) = second.datalist()
    array, grid = read_labels(pair["label"])
    np.testing.assert_array_equal(array, labels)
    image = read_volume(pair["image"])
    assert grid == image.grid
    assert second.get_label_info(CT, "final")["label_info"] == NAMED["label_info"]
    assert second.get_labels_by_image_id(CT) == {"final": CT}
    (file,) = orthanc.files(first.get_label_info(CT, "final")["SeriesInstanceUID"])
    assert (file.Modality, file.PatientID, len(file.SegmentSequence)) == ("SEG", "MRN-4711", 2)


def test_lists_are_never_stale(studies, tmp_path, labels, own_grid):
    one, two = studies("one"), studies("two", expiry_s=0.2)
    assert (one.get_labeled_images(), two.get_labeled_images()) == ([], [])
    one.save_label(MR, saved(tmp_path, labels, own_grid), "final", {})
    assert (one.get_labeled_images(), one.get_unlabeled_images()) == ([MR], [CT])
    time.sleep(0.3)
    assert (two.get_labeled_images(), two.get_unlabeled_images()) == ([MR], [CT])


def test_newer_label_of_another_server_replaces_the_one_in_the_cache(studies, tmp_path, labels, own_grid):
    one, two = studies("one", expiry_s=0.0), studies("two", expiry_s=0.0)
    one.save_label(CT, saved(tmp_path, labels, own_grid), "final", dict(NAMED))
    assert read_labels(two.get_label_uri(CT, "final"))[0].max() == 2
    one.save_label(CT, saved(tmp_path, (labels == 1).astype(np.uint8), own_grid), "final", {})
    np.testing.assert_array_equal(read_labels(two.get_label_uri(CT, "final"))[0], labels == 1)


def test_cropped_label_is_whole_again(studies, tmp_path, labels, own_grid):
    affine = own_grid.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ [1, 0, 3]
    cropped = Grid((13, 12, 6), affine)
    studies("a").save_label(CT, saved(tmp_path, labels[1:, :, 3:9], cropped), "final", dict(NAMED))
    np.testing.assert_array_equal(read_labels(studies("b").get_label_uri(CT, "final"))[0], labels)


def test_empty_label(studies, tmp_path, labels, own_grid):
    empty = saved(tmp_path, np.zeros_like(labels), own_grid)
    with pytest.raises(ValueError, match="there is no segment to write; name at least one structure"):
        studies("a").save_label(CT, empty, "final", {})
    studies("a").save_label(CT, empty, "final", dict(NAMED))
    assert not read_labels(studies("b").get_label_uri(CT, "final"))[0].any()


def test_what_an_archive_does_not_do(studies, tmp_path, labels, own_grid):
    datastore = studies("a")
    label = saved(tmp_path, labels, own_grid)
    datastore.save_label(CT, label, "final", dict(NAMED))
    with pytest.raises(ValueError, match="of the archive, which keeps what it has; remove it there"):
        datastore.remove_label(CT, "final")
    with pytest.raises(ValueError, match="images come from the archive"):
        datastore.add_image("x", label, {})
    with pytest.raises(ImageNotFoundException):
        datastore.save_label("1.2.3.999", label, "final", {})
    datastore.save_label(CT, label, "original", {})
    assert datastore.get_label_uri(CT, "original").endswith(f"labels/original/{CT}.nii.gz")
    datastore.remove_label(CT, "original")
    assert not Path(datastore.get_label_uri(CT, "original")).is_file()


def test_series_that_was_still_being_sent(studies, orthanc, tmp_path, make_series):
    values = make_series(tmp_path / "late", uid=LATE, modality="MR", shape=SHAPE)
    files = sorted((tmp_path / "late").iterdir(), key=lambda path: int(path.name.rpartition("_")[2]))
    try:
        for file in files[:6]:
            orthanc.request("POST", "/instances", data=file.read_bytes())
        datastore = studies("a", expiry_s=0.0)
        assert read_volume(datastore.get_image_uri(LATE)).array.shape == (*SHAPE[:2], 6)
        for file in files[6:]:
            orthanc.request("POST", "/instances", data=file.read_bytes())
        np.testing.assert_array_equal(read_volume(datastore.get_image_uri(LATE)).array, values)
    finally:
        query = {"Level": "Series", "Query": {"SeriesInstanceUID": LATE}}
        for each in orthanc.request("POST", "/tools/find", json=query).json():
            orthanc.request("DELETE", f"/series/{each}")


def test_wrong_password_and_no_archive(studies, tmp_path):
    refused = studies("a", password="wrong")
    with pytest.raises(HTTPException, match="the archive answers 401; check --studies and MONAI_LABEL_DICOMWEB_USER"):
        refused.list_images()
    assert "the archive answers 401" in refused.status()["problem"]
    client = DICOMwebClientX(url="http://127.0.0.1:9/dicom-web")
    nobody = ArchiveStudies(Archive(client, {"Modality": "CT"}, 5), str(tmp_path / "nobody"))
    with pytest.raises(HTTPException, match="the archive gives no answer"):
        nobody.get_image_uri(CT)
    nobody._observer.stop()


def test_opened_by_address_with_the_password_of_the_settings(orthanc, tmp_path, monkeypatch):
    for name, value in (("USERNAME", orthanc.user), ("PASSWORD", orthanc.password), ("CACHE_PATH", str(tmp_path))):
        monkeypatch.setattr(settings, f"MONAI_LABEL_DICOMWEB_{name}", value)
    datastore = open_studies(f"{orthanc.dicomweb}/")
    assert sorted(datastore.list_images()) == [CT, MR]
    datastore._observer.stop()
