"""What no server can do: it says why in one sentence, lives on and leaves no file behind."""

import shutil
from dataclasses import replace

import pytest
import requests

from lorkd_monailabel.store import ExpertStore

BOTH = [
    ("abdomen", "nobody", {}, 404, "image 'nobody' is not among the studies"),
    ("abdomen", "text", {}, 400, "text.nii.gz cannot be read as an image"),
    ("abdomen", "void", {}, 400, "void.nii.gz cannot be read as an image"),
    ("abdomen", "cut", {}, 400, "cut.nii.gz cannot be read as an image"),
    ("abdomen", "flat", {}, 400, "flat.nii.gz is 2D (shape (30, 26))"),
    ("abdomen", "series", {}, 400, "series.nii.gz has 4 axes"),
    ("abdomen", "constant", {}, 400, "constant.nii.gz holds one value only"),
    ("abdomen", "nan", {}, 400, "nan.nii.gz holds NaN"),
    ("nobody", "ct 1", {}, 404, "model 'nobody' is unknown; choose one of thorax, abdomen, "),
    ("brain", "ct 1", {}, 400, "brain has no expert (experts exist for: thorax, abdomen"),
    ("lorkd", "ct 1", {}, 400, "the prompt is empty"),
    ("lorkd", "ct 1", {"text": " \n"}, 400, "the prompt is empty"),
    ("lorkd", "ct 1", {"text": "a" * 5000}, 400, "the prompt has 5000 characters"),
    ("lorkd", "ct 1", {"text": "flux capacitor"}, 400, "'flux capacitor' is not a known structure"),
    ("lorkd", "ct 1", {"text": "livre; splen"}, 400, "'livre' is not a known structure; did you mean 'liver'"),
    ("lorkd", "ct 1", {"text": "brainstem"}, 400, "no expert was trained on brainstem (experts exist for: thorax"),
    ("abdomen", "ct 1", {"text": "pancreas"}, 400, "no expert was trained on pancreas"),
    ("abdomen", "ct 1", {"text": "trachea"}, 400, "'trachea' belongs to thorax, not to abdomen"),
    ("lorkd", "ct 1", {"text": "liver", "department": "heart"}, 400, "department 'heart' is unknown; choose one of"),
    ("lorkd", "ct 1", {"text": {"liver": 1}}, 400, "text {'liver': 1} must be text"),
    ("abdomen", "ct 1", {"modality": "pet"}, 400, "modality 'pet' must be one of auto, ct, mri"),
    ("abdomen", "ct 1", {"result_extension": ".jpg"}, 400, "result_extension '.jpg' must be one of .nii.gz, "),
    ("abdomen", "ct 1", {"result_extension": ".dcm"}, 400, "ct 1.nii.gz is no DICOM series"),
    ("abdomen", "ct 1", {"result_dtype": "float16"}, 400, "result_dtype 'float16' must be one of uint8, uint16"),
]
DOOR = [
    ("abdomen", None, {}, 400, "the request names no image"),
    ("abdomen", "ct 1", "{liver", 400, "a part of the request is no JSON"),
    ("abdomen", "ct 1", "[1]", 400, "params must be a JSON object, not list"),
    ("abdomen", "ct 1", {"image": "ct 10"}, 400, "params must not hold 'image'"),
    ("abdomen", "ct 1", {"model": "lorkd"}, 400, "params must not hold 'model'"),
    ("abdomen", "ct 1", {"session": "x"}, 400, "params must not hold 'session'"),
    ("abdomen", "ct 1", {"label_tag": "../x", "save_label": True}, 400, "label_tag '../x' must be a name"),
    ("abdomen", "/etc/hosts", {}, 400, "image '/etc/hosts' must be a name, not a path"),
    ("abdomen", "../studies/ct 1", {}, 400, "image '../studies/ct 1' must be a name, not a path"),
    ("abdomen", "..", {}, 400, "image '..' must be a name, not a path"),
]


def check(server, reply: requests.Response, status: int, words: str) -> None:
    """One sentence with these words; the front door adds a number."""
    assert (reply.status_code, reply.headers["content-type"]) == (status, "application/json")
    body = reply.json()
    assert words in body["detail"]
    assert "\n" not in body["detail"]
    assert "Traceback" not in body["detail"]
    assert str(server.studies) not in body["detail"]
    assert set(body) == ({"detail", "request_id"} if server.form == "door" else {"detail"})


@pytest.mark.usefixtures("unharmed")
@pytest.mark.parametrize(("model", "image", "params", "status", "words"), BOTH)
def test_refusal(server, model, image, params, status, words):
    check(server, server.infer(model, image, params), status, words)


@pytest.mark.usefixtures("unharmed")
@pytest.mark.parametrize("server", ["door"], indirect=True)
@pytest.mark.parametrize(("model", "image", "params", "status", "words"), DOOR)
def test_refusal_at_the_front_door(server, model, image, params, status, words):
    check(server, server.infer(model, image, params), status, words)


@pytest.mark.usefixtures("unharmed")
def test_unknown_strategy(server):
    reply = requests.post(f"{server.url}/activelearning/nearest", json={}, timeout=10)
    check(server, reply, 404, "strategy 'nearest' is unknown; choose one of random, first")


@pytest.fixture
def pelvis(server):
    """The folder of a department without an expert; emptied after the test."""
    folder = server.store.folder / "pelvis"
    folder.mkdir()
    yield folder
    shutil.rmtree(folder)


@pytest.mark.usefixtures("unharmed")
def test_truncated_expert(server, pelvis):
    whole = server.store.path("abdomen", 1).read_bytes()
    (pelvis / "0001.safetensors").write_bytes(whole[: len(whole) // 2])
    check(server, server.infer("pelvis", "ct 1"), 400, "0001.safetensors is damaged")
    check(server, server.infer("lorkd", "ct 1", {"text": "prostate"}), 400, "0001.safetensors is damaged")
    info = server.info()
    assert "is damaged" in next(each["problem"] for each in info["lorkd"]["departments"] if each["id"] == "pelvis")
    assert "is damaged" in info["models"]["pelvis"]["description"]
    assert server.infer("abdomen", "ct 1", output="json").ok


@pytest.mark.usefixtures("unharmed")
def test_expert_of_another_base(server, pelvis, tmp_path, tiny_base, make_expert):
    name, weight = next(iter(tiny_base.weights.items()))
    elsewhere, base = ExpertStore(tmp_path), replace(tiny_base, weights={**tiny_base.weights, name: weight + 1})
    elsewhere.publish_base(base)
    elsewhere.publish(make_expert("pelvis", structures=("prostate",), base_sha256=base.sha256))
    shutil.copy(elsewhere.path("pelvis"), pelvis)
    check(server, server.infer("pelvis", "ct 1"), 400, base.sha256[:12])


@pytest.mark.usefixtures("unharmed")
@pytest.mark.parametrize("server", ["door"], indirect=True)
def test_failed_uploads_are_removed(server):
    upload = {"file": ("x.nii.gz", b"123")}
    check(server, requests.post(f"{server.url}/infer/abdomen", files=upload, timeout=10), 400, "cannot be read")
    label = {"label": ("x.nii.gz", b"123")}
    address = f"{server.url}/datastore/label"
    check(server, requests.put(address, params={"image": "nobody"}, files=label, timeout=10), 404, "nobody not found")
    query = {"image": "ct 1", "tag": "../../x"}
    check(server, requests.put(address, params=query, files=label, timeout=10), 400, "tag '../../x' must be a name")
    check(server, requests.put(address, timeout=10), 422, "query.image: Field required")
