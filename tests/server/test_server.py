"""What clients do, through MONAI Label's own client and plain HTTP, with both forms of the server."""

import json
import os

import nibabel
import numpy as np
import pytest
import requests
import SimpleITK as sitk
from monailabel.client import MONAILabelClient

from lorkd_monailabel import __version__
from lorkd_monailabel.departments import DEPARTMENT_IDS
from lorkd_monailabel.predictor import Predictor
from lorkd_monailabel.prompts import resolve
from lorkd_monailabel.volumes import read_volume

# MONAI Label's client closes neither sockets nor files.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")


@pytest.fixture
def client(server, tmp_path):
    """MONAI Label's own."""
    return MONAILabelClient(server.url, tmpdir=str(tmp_path))


def expected(server, image: str, text: str) -> np.ndarray:
    """The label map as it is without a server."""
    volume = read_volume(server.studies / f"{image}.nii.gz")
    return Predictor(server.store).segment(volume, resolve(text)[0]).label_map.array


def department(server, name: str) -> dict:
    """What /info/ says of a department."""
    return next(each for each in server.info()["lorkd"]["departments"] if each["id"] == name)


def test_info_tells_departments_models_and_strategies(client):
    info = client.info()
    ours = info["lorkd"]
    assert (info["version"], ours["version"], ours["device"]) == (__version__, __version__, "cpu")
    assert [each["id"] for each in ours["departments"]] == list(DEPARTMENT_IDS)
    assert next(each for each in ours["departments"] if each["id"] == "abdomen") == {
        "id": "abdomen",
        "name": "abdomen",
        "expert": True,
        "revision": 1,
        "structures": ["liver", "spleen", "left kidney"],
        "problem": None,
    }
    assert next(each for each in ours["departments"] if each["id"] == "head_and_neck") == {
        "id": "head_and_neck",
        "name": "head and neck",
        "expert": False,
        "revision": None,
        "structures": [],
        "problem": None,
    }
    abdomen = info["models"]["abdomen"]
    assert (abdomen["type"], abdomen["dimension"]) == ("segmentation", 3)
    assert abdomen["labels"] == {"liver": 1, "spleen": 2, "left kidney": 3}
    assert "head_and_neck" not in info["models"]
    assert info["models"]["lorkd"]["config"]["text"] == ""
    assert info["models"]["lorkd"]["config"]["department"][0] == "auto"
    assert "abdomen" in info["models"]["lorkd"]["config"]["department"]
    assert set(info["labels"]) >= {"liver", "spleen", "left kidney"}
    assert set(info["strategies"]) == {"random", "first", "uncertainty", "diversity", "uncertainty_diversity"}
    assert info["datastore"]["total"] == len(list(server_images(client)))


def server_images(client) -> list[str]:
    """All image ids."""
    return list(client.datastore()["objects"])


def test_department_model_segments_all_that_its_expert_knows(server, client):
    file, answer = client.infer("abdomen", "ct 1", {"result_extension": ".nii.gz", "result_dtype": "uint8"})
    assert answer["label_names"] == {"liver": 1, "spleen": 2, "left kidney": 3}
    result, image = nibabel.load(file), nibabel.load(server.studies / "ct 1.nii.gz")
    np.testing.assert_allclose(result.affine, image.affine)
    assert result.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(np.asarray(result.dataobj), expected(server, "ct 1", "liver; spleen; left kidney"))
    about = answer["lorkd"]
    assert "found" in [each["status"] for each in about["answers"]]
    assert {(each["department"], each["revision"]) for each in about["answers"]} == {("abdomen", 1)}
    assert sum(each["voxels"] for each in about["answers"]) == np.count_nonzero(result.dataobj)
    assert (about["modality"], about["device"], about["not_understood"]) == ("ct", "cpu", [])
    assert about["seconds"] > 0
    assert all(set(overlap) == {"first", "second", "voxels"} for overlap in about["overlaps"])


def test_text_is_sent_to_the_departments_it_belongs_to(server, client):
    file, answer = client.infer("lorkd", "mri 2", {"text": "trachea, liver; flux", "result_extension": ".nii"})
    assert answer["label_names"] == {"trachea": 1, "liver": 2}
    np.testing.assert_array_equal(nibabel.load(file).dataobj, expected(server, "mri 2", "trachea; liver"))
    np.testing.assert_allclose(
        nibabel.load(file).affine, nibabel.load(server.studies / "mri 2.nii.gz").affine, atol=1e-5
    )
    assert [each["department"] for each in answer["lorkd"]["answers"]] == ["thorax", "abdomen"]
    assert [each["phrase"] for each in answer["lorkd"]["not_understood"]] == ["flux"]
    assert answer["lorkd"]["modality"] == "mri"


def test_department_may_be_fixed(server):
    answer = server.infer("lorkd", "ct 1", {"text": "liver; trachea", "department": "abdomen"}, output="json").json()
    assert answer["label_names"] == {"liver": 1}
    (missed,) = answer["lorkd"]["not_understood"]
    assert (missed["phrase"], missed["message"].count("thorax")) == ("trachea", 2)


def test_department_model_takes_a_text_and_says_what_its_expert_lacks(server):
    answer = server.infer("abdomen", "ct 1", {"text": "pancreas; spleen"}, output="json").json()
    assert answer["label_names"] == {"spleen": 1}
    assert [each["value"] for each in answer["lorkd"]["answers"]] == [None, 1]
    assert answer["lorkd"]["answers"][0]["status"] == "no expert"


def test_lists_of_choices_stand_for_their_first(server):
    params = {"text": ["liver"], "department": ["auto", "abdomen"], "modality": ["mri", "ct"], "result_dtype": []}
    answer = server.infer("lorkd", "ct 1", params, output="json").json()
    assert (answer["label_names"], answer["lorkd"]["modality"]) == ({"liver": 1}, "mri")


def test_nrrd_has_names_and_the_type_asked_for(server, client):
    file, _ = client.infer("lorkd", "ct 1", {"text": "spleen", "result_extension": ".nrrd", "result_dtype": "uint16"})
    image = sitk.ReadImage(file)
    assert (image.GetPixelIDTypeAsString(), image.GetMetaData("Segment0_Name")) == ("16-bit unsigned integer", "spleen")


def test_uploads_and_sessions(server, client):
    file = str(server.studies / "ct 1.nii.gz")
    wanted = expected(server, "ct 1", "liver")
    uploaded, _ = client.infer("lorkd", "", {"text": "liver"}, file=file)
    np.testing.assert_array_equal(nibabel.load(uploaded).dataobj, wanted)
    session = client.create_session(file)["session_id"]
    result, _ = client.infer("lorkd", "", {"text": "liver", "result_extension": ".nii"}, session_id=session)
    np.testing.assert_array_equal(nibabel.load(result).dataobj, wanted)
    client.remove_session(session)


def test_labels_are_saved_and_come_back(server, client):
    before = client.next_sample("first", {})["id"]
    file, answer = client.infer("abdomen", "ct 1", {})
    labels = [{"name": name, "idx": value} for name, value in answer["label_names"].items()]
    saved = client.save_label("ct 1", file, params={"label_info": labels})
    back = client.download_label(saved["label"], "final")
    np.testing.assert_array_equal(nibabel.load(back).dataobj, nibabel.load(file).dataobj)
    assert client.next_sample("first", {})["id"] == before
    assert requests.delete(f"{server.url}/datastore/label", params={"id": "ct 1", "tag": "final"}, timeout=10).ok


def test_result_can_be_saved_as_the_label_to_start_from(server, client):
    assert server.infer("lorkd", "ct 10", {"text": "liver", "save_label": True}, output="json").ok
    back = client.download_label("ct 10", "original")
    np.testing.assert_array_equal(nibabel.load(back).dataobj, expected(server, "ct 10", "liver"))


def test_next_sample_is_an_unlabelled_image(server, client):
    assert client.next_sample("first", {})["id"] == "constant"
    sample = client.next_sample("random", {})
    assert sample["id"] in server_images(client)
    assert os.path.samefile(sample["path"], server.studies / f"{sample['id']}.nii.gz")


def test_new_revision_is_used_at_once(server, make_expert):
    first = server.infer("lorkd", "ct 1", {"text": "trachea"}, output="json").json()["lorkd"]["answers"][0]
    revision = server.store.publish(make_expert("thorax", structures=("esophagus", "trachea"), seed=5))
    second = server.infer("lorkd", "ct 1", {"text": "trachea"}, output="json").json()["lorkd"]["answers"][0]
    assert (first["revision"], second["revision"], department(server, "thorax")["revision"]) == (1, 2, revision)
    assert second["voxels"] == np.count_nonzero(expected(server, "ct 1", "trachea"))
    assert server.info()["models"]["thorax"]["labels"] == {"esophagus": 1, "trachea": 2}


def test_department_appears_without_a_restart(server, make_expert):
    assert "lower_limb" not in server.info()["models"]
    server.store.publish(make_expert("lower_limb", structures=("left femur",)))
    assert server.info()["models"]["lower_limb"]["labels"] == {"left femur": 1}
    assert "lower_limb" in server.info()["models"]["lorkd"]["config"]["department"]
    assert server.infer("lower_limb", "ct 1", output="json").json()["label_names"] == {"left femur": 1}


@pytest.mark.usefixtures("unharmed")
def test_no_result_stays_on_the_server(server):
    reply = server.infer("abdomen", "ct 1", {"result_extension": ".nrrd"})
    assert reply.ok
    assert json.dumps("liver").encode() in reply.content
