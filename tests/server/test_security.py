"""Each hole of MONAI Label's own server, tried at the front door of a real one: it is shut, and nothing is written."""

import io
import json
import socket
import tarfile
import time
import uuid
import zipfile
from urllib.parse import urlencode, urlsplit

import pytest
import requests

from tests.server.answers import raw, refused

PATIENT = "Meier Hans 19700101"


def tree(server):
    """Every file around the server but its logs, its audit log and what Python compiles."""
    return {
        path: path.stat().st_mtime_ns
        for path in server.studies.parent.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix not in {".log", ".pyc", ".lock"}
        if path.name not in {"audit.jsonl", "audit.key"}
    }


@pytest.fixture
def untouched(door):
    """After the test no file is new, changed or gone, and the server answers."""
    before = tree(door)
    yield
    end = time.monotonic() + 5  # an upload is removed after the reply
    while tree(door) != before and time.monotonic() < end:
        time.sleep(0.05)
    assert tree(door) == before
    assert requests.get(f"{door.url}/info/", timeout=30).ok


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize(
    "name", ["../pwn1", "..%2fpwn1", "/etc/pwn", "a/b", "..", ".hidden", "a\0b", "a\nb", "x" * 300]
)
def test_upload_of_an_image_writes_nowhere_else(door, image, name):
    reply = requests.put(
        f"{door.url}/datastore/image", params={"image": name}, files={"file": ("x.nii.gz", image)}, timeout=30
    )
    assert refused(reply).startswith("image")


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("name", ["main.py", "datastore_v2.json", "x.sh", "x.nii.gz.exe"])
def test_upload_of_what_is_no_image(door, image, name):
    reply = requests.put(
        f"{door.url}/datastore/image", params={"image": "new"}, files={"file": (name, image)}, timeout=30
    )
    assert "must be one of .nii, .nii.gz" in refused(reply)


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("tag", ["../../pwndir", "/etc", "..", "a b"])
def test_label_is_saved_nowhere_else(door, image, tag):
    params = {"image": "ct 1", "tag": tag}
    reply = requests.put(f"{door.url}/datastore/label", params=params, files={"label": ("x.nii.gz", image)}, timeout=30)
    assert refused(reply).startswith("tag")


def tar_of(name, *, link=None):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        member = tarfile.TarInfo(name)
        if link:
            member.type, member.linkname = tarfile.SYMTYPE, link
            archive.addfile(member)
        else:
            member.size = 4
            archive.addfile(member, io.BytesIO(b"pwnd"))
    return "x.tar", file.getvalue()


def zip_of(name):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(name, b"pwnd")
    return "x.zip", file.getvalue()


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize(
    "archive",
    [
        tar_of("../../pwn2"),
        tar_of("/etc/pwn2"),
        tar_of("inside", link="/etc/passwd"),
        zip_of("../pwn2"),
        ("x.tar", b"no archive"),
    ],
    ids=["tar up", "tar absolute", "tar link", "zip up", "none"],
)
def test_archive_of_a_session_unpacks_nowhere_else(door, archive):
    reply = requests.put(f"{door.url}/session/", params={"uncompress": True}, files={"files": archive}, timeout=30)
    assert "the archive" in refused(reply)


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize(
    "options",
    [
        {"name": "../../../x"},
        {"train_ds": "/etc/passwd"},
        {"val_ds": [{"image": "/etc/passwd"}]},
        {"tracking_uri": "http://127.0.0.1:9/x"},
        {"bundle_path": "studies"},
        {"abdomen": {"bundle_path": "studies"}},
    ],
)
def test_options_of_a_training_choose_no_file_and_no_address(door, options):
    assert "must" in refused(requests.post(f"{door.url}/train/", json=options, timeout=30))


@pytest.mark.usefixtures("untouched")
def test_unknown_tasks_start_no_process(door):
    for path in ("train/none", "scoring/none", "batch/infer/none"):
        assert "is unknown" in refused(requests.post(f"{door.url}/{path}", json={}, timeout=30), 404)
    assert "is unknown" in refused(requests.post(f"{door.url}/train/", json={"model": "none"}, timeout=30), 404)
    assert "must be no path" in refused(requests.post(f"{door.url}/train/", json={"model": "../x"}, timeout=30))


@pytest.mark.usefixtures("untouched")
def test_no_file_of_the_server_is_read_as_an_image(door, tmp_path, image):
    secret = tmp_path / "secret.nii.gz"
    secret.write_bytes(image)
    assert door.infer("abdomen", str(secret)).status_code == 400
    for params in ({"image": str(secret)}, {"label": str(secret)}, {"volume": str(secret)}, {"x": [str(secret)]}):
        assert door.infer("abdomen", "ct 1", params).status_code == 400
    assert door.infer("abdomen", None, session_id=str(tmp_path)).status_code == 400
    for query in ({"image": str(secret)}, {"image": "../studies/ct 1"}):
        assert requests.get(f"{door.url}/datastore/image", params=query, timeout=30).status_code == 400


@pytest.mark.usefixtures("untouched")
def test_the_doors_that_are_off(door):
    assert raw(door, "GET", "/proxy/dicom/../system")[0] in (400, 404)
    assert raw(door, "GET", "/proxy/dicom/studies")[0] == 404
    assert raw(door, "POST", "/reload")[0] == 404
    files = {"file": ("x.pt", b"pwnd")}
    assert requests.put(f"{door.url}/model/abdomen", files=files, timeout=30).status_code == 405
    assert requests.delete(f"{door.url}/model/abdomen", timeout=30).status_code == 405


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize(
    "path",
    ["/ohif/../../../../etc/passwd", "/static/../../config.py", "/static/%2e%2e/%2e%2e/config.py", "/session/.."],
)
def test_addresses_that_go_up(door, path):
    status, text = raw(door, "GET", path)
    assert status in (400, 404)
    assert "root:" not in text
    assert "MONAI_LABEL_" not in text


@pytest.mark.usefixtures("untouched")
def test_pages_of_other_sites_are_not_let_in(door):
    page = {"Origin": "https://evil.example"}
    reply = requests.get(f"{door.url}/info/", headers=page, timeout=30)
    assert not {key for key in reply.headers if key.lower().startswith("access-control")}
    assert requests.options(f"{door.url}/info/", headers=page, timeout=30).status_code == 405
    assert requests.post(f"{door.url}/activelearning/first", headers=page, timeout=30).status_code == 403
    assert raw(door, "GET", "/info/", headers={"Host": "evil.example"})[0] in (400, 403)


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize(
    ("params", "part"),
    [
        ('{"text": ' + "[" * 100_000, "nested too deeply"),
        ('{"text": "' + "x" * 110_000 + '"}', "longer than 100 KiB"),
        ('{"x": 1e999}', "finite number"),
        ('{"x": NaN}', "finite number"),
        ('{"x": "\\ud800"}', "half a character"),
    ],
)
def test_options_that_are_no_sound_json(door, params, part):
    assert part in refused(door.infer("abdomen", "ct 1", params))


@pytest.mark.usefixtures("untouched")
def test_no_option_is_evaluated(door, tmp_path):
    ran = tmp_path / "ran"
    expression = f"$__import__('pathlib').Path('{ran}').touch()"
    options = {"text": "liver", "displayable_configs": {"x": expression}, "x": expression}
    assert door.infer("abdomen", "ct 1", options, output="json").status_code in (200, 400)
    assert door.infer("abdomen", "ct 1", {"text": expression}, output="json").status_code == 400
    for name in ("labels", "tags", "displayable_configs"):
        reply = requests.post(f"{door.url}/train/finetune_abdomen", json={name: expression}, timeout=30)
        assert reply.status_code == 400
    assert not ran.exists()


def test_no_log_names_a_patient(door, image):
    address = f"{door.url}/datastore/image?image={PATIENT}"
    assert requests.put(address, files={"file": (f"{PATIENT}.nii.gz", image)}, timeout=30).ok
    assert door.infer("abdomen", PATIENT, {"text": "liver", "save_label": True}, output="json").ok
    assert door.infer("abdomen", PATIENT, {"text": "no such thing"}).status_code == 400
    assert door.infer("abdomen", f"{PATIENT}x").status_code == 404
    requests.get(f"{door.url}/session/{PATIENT}", timeout=30)
    label = {"label": (f"{PATIENT}.nii.gz", image)}
    assert requests.put(f"{door.url}/datastore/label?image={PATIENT}", files=label, timeout=30).ok
    requests.post(f"{door.url}/activelearning/first", json={}, timeout=30)
    assert requests.delete(f"{door.url}/datastore/image?id={PATIENT}", timeout=30).ok
    logs = [door.log, *door.log.parent.glob("tree/lorkd_monailabel/logs/*")]
    assert len(logs) > 1
    for path in [*logs, door.store.folder / "audit.jsonl"]:
        text = path.read_text(encoding="utf-8")
        assert "PUT /datastore/image" in text
        assert not {"Meier", "19700101"} & set(text.replace(".", " ").replace("/", " ").replace('"', " ").split())
    lines = requests.get(f"{door.url}/lorkd/audit", params={"image": PATIENT}, timeout=30).json()["lines"]
    actions = ["PUT /datastore/image", "POST /infer/{model}", "POST /infer/{model}", "PUT /datastore/label"]
    assert [line["action"] for line in lines] == [*actions, "DELETE /datastore/image"]


def test_work_stops_when_its_client_goes(door):
    name = str(uuid.uuid4())
    body = urlencode({"params": json.dumps({"job": name, "text": "liver"})}).encode()
    lines = [
        "POST /infer/abdomen?image=large&output=json HTTP/1.1",
        "Host: localhost",
        f"Content-Length: {len(body)}",
        "Content-Type: application/x-www-form-urlencoded",
    ]
    with socket.create_connection((urlsplit(door.url).hostname, urlsplit(door.url).port)) as connection:
        connection.sendall("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
        wait_until(lambda: job(door, name).get("state") == "running")
    wait_until(lambda: job(door, name)["state"] == "cancelled")
    assert job(door, name)["state"] == "cancelled"


def job(server, name):
    return requests.get(f"{server.url}/lorkd/jobs/{name}", timeout=30).json()


def wait_until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
