"""The whole way on a real archive: MONAI Label's own client, our front door, Orthanc."""

import json
import os
import shutil
import socket
import sys
import time

import highdicom
import nibabel
import numpy as np
import pydicom
import pytest
import requests
from monailabel.client import MONAILabelClient

from lorkd_monailabel.store import ExpertStore
from lorkd_monailabel.volumes import read_labels

# MONAI Label's client closes neither sockets nor files.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")

CT, MR = "1.2.826.0.1.3680043.10.21", "1.2.826.0.1.3680043.10.22"
OTHERS = "1.2.826.0.1.3680043.10.24"
"""Series of another patient: of one, no case could validate what the other taught."""


@pytest.fixture(scope="module")
def server(orthanc, run_server, root, tmp_path_factory, tiny_base, make_expert):
    """The front door in front of the archive; its address and its log."""
    folder = tmp_path_factory.mktemp("server")
    store = ExpertStore(folder / "store")
    store.publish_base(tiny_base)
    store.publish(make_expert("abdomen", structures=("liver", "spleen", "left kidney")))
    app = folder / "tree" / "lorkd_monailabel"
    made = ("__pycache__", "store", "bin", "lib", "logs", "model")
    shutil.copytree(root / "lorkd_monailabel", app, ignore=shutil.ignore_patterns(*made))
    (folder / "temporary").mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "monailabel.main", "start_server", "--app", str(app), "--studies"]
    command += [orthanc.dicomweb, "--host", "127.0.0.1", "--port", str(port), "--conf", "store", str(store.folder)]
    command += ["--conf", "device", "cpu", "--uvicorn_app", "lorkd_monailabel.asgi:app"]
    environment = {
        **os.environ,
        "TMPDIR": str(folder / "temporary"),
        "MONAI_LABEL_DICOMWEB_USERNAME": orthanc.user,
        "MONAI_LABEL_DICOMWEB_PASSWORD": orthanc.password,
        "MONAI_LABEL_DICOMWEB_CACHE_PATH": str(folder / "cache"),
        "MONAI_LABEL_SESSION_PATH": str(folder / "sessions"),
        "OMP_NUM_THREADS": "1",
    }
    url = f"http://127.0.0.1:{port}"
    with run_server(command, folder / "log", f"{url}/info/", cwd=app.parent, env=environment):
        yield url, folder / "log", folder / "temporary"


def test_stock_client_works_on_the_archive(server, orthanc, tmp_path, own_grid):
    url, log, _ = server
    client = MONAILabelClient(url, tmpdir=str(tmp_path))
    assert client.info()["datastore"]["total"] == 2
    file, answer = client.infer("abdomen", CT, {"result_extension": ".nii.gz"})
    array, grid = read_labels(file)
    np.testing.assert_allclose(grid.affine, own_grid.affine, atol=1e-4)
    assert answer["lorkd"]["modality"] == "ct"
    names = [{"name": name, "idx": value} for name, value in answer["label_names"].items()]
    saved_as = client.save_label(CT, file, params={"label_info": names})
    assert client.info()["datastore"]["completed"] == 1
    assert client.next_sample("first", {})["id"] == MR
    np.testing.assert_array_equal(read_labels(client.download_label(saved_as["label"], "final"))[0], array)
    everything = json.dumps([client.info(), client.datastore(), requests.get(f"{url}/logs/", timeout=10).text])
    assert "MRN-4711" not in everything + log.read_text(errors="replace")
    assert "Jane" not in everything + log.read_text(errors="replace")
    orthanc.remove("SEG")


def test_prediction_comes_as_dicom_seg(server, tmp_path):
    url, _, temporary = server
    before = {each.name for each in temporary.iterdir()}

    def infer(**query) -> requests.Response:
        params = {"text": "liver; left kidney"}
        reply = requests.post(
            f"{url}/infer/lorkd", params={"image": CT, **query}, data={"params": json.dumps(params)}, timeout=60
        )
        assert reply.ok, reply.text
        return reply

    reply = infer(output="dicom_seg")
    assert reply.headers["content-type"] == "application/dicom"
    (tmp_path / "a.dcm").write_bytes(reply.content)
    file = highdicom.seg.segread(tmp_path / "a.dcm")
    assert [str(each.SegmentLabel) for each in file.SegmentSequence] == ["liver", "left kidney"]
    made = file.SegmentSequence[0].SegmentationAlgorithmIdentificationSequence[0]
    assert "abdomen" in made.AlgorithmParameters
    counts = {each["structure"]: each["voxels"] for each in infer(output="json").json()["lorkd"]["answers"]}
    for number, name in enumerate(("liver", "left kidney"), start=1):
        frames = file.pixel_array.reshape(-1, file.Rows, file.Columns)
        own = [
            group.SegmentIdentificationSequence[0].ReferencedSegmentNumber == number
            for group in file.PerFrameFunctionalGroupsSequence
        ]
        assert np.count_nonzero(frames[own]) >= counts[name] > 0
    time.sleep(0.2)
    assert {each.name for each in temporary.iterdir() if each.is_file()} <= before


@pytest.fixture
def other_patient(orthanc, make_series, tmp_path, own_grid):
    """A second patient in the archive while the test runs."""
    make_series(tmp_path / "other", uid=OTHERS, shape=own_grid.shape)
    for file in (tmp_path / "other").iterdir():
        dataset = pydicom.dcmread(file)
        dataset.PatientID, dataset.StudyInstanceUID = "MRN-4712", "1.2.826.0.1.3680043.12"
        dataset.save_as(file)
        orthanc.request("POST", "/instances", data=file.read_bytes())
    yield
    orthanc.remove("SEG")
    (found,) = orthanc.request(
        "POST", "/tools/find", json={"Level": "Patient", "Query": {"PatientID": "MRN-4712"}}
    ).json()
    orthanc.request("DELETE", f"/patients/{found}")


@pytest.mark.timeout(300)
def test_an_expert_learns_from_what_was_stored_in_the_archive(server, other_patient, labels, own_grid, tmp_path):
    url, _, _ = server
    client = MONAILabelClient(url, tmpdir=str(tmp_path))
    nibabel.save(nibabel.Nifti1Image(labels, own_grid.affine), tmp_path / "label.nii.gz")
    names = [{"name": "liver", "idx": 1}, {"name": "spleen", "idx": 2}]
    end = time.monotonic() + 60
    while client.info()["datastore"]["total"] < 3 and time.monotonic() < end:  # what it lists stands for 5 s
        time.sleep(0.2)
    for series in (CT, OTHERS):
        client.save_label(series, str(tmp_path / "label.nii.gz"), params={"label_info": names})
    told = requests.get(f"{url}/lorkd/training/departments", timeout=30).json()
    abdomen = next(each for each in told if each["department"] == "abdomen")
    options = {"batch_size": 1, "workers": 0, "force": True}
    order = {"department": "abdomen", "steps": 1, "options": options}
    run = requests.post(f"{url}/lorkd/training", json=order, timeout=10).json()
    end = time.monotonic() + 120  # its process takes as long to start as the server did
    while run["state"] in ("queued", "running") and time.monotonic() < end:
        time.sleep(0.2)
        run = requests.get(f"{url}/lorkd/training/{run['id']}", timeout=10).json()
    assert (abdomen["structures"], abdomen["trainable"]) == ({"liver": 2, "spleen": 2}, True)
    assert (run["state"], run["cases"]) == ("done", {"train": 1, "validation": 1, "left_out": 0}), run
    assert run["result"]["abdomen"]["revision"] == 2
    _, answer = client.infer("abdomen", CT, {"text": "liver"})
    assert answer["lorkd"]["answers"][0]["revision"] == 2
