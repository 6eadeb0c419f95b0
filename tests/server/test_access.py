"""A real server with tokens: who may do what, limits of uploads, and the optional doors."""

import hashlib
import json
import time
import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests

from lorkd_monailabel.front_door.tokens import add
from tests.server.answers import raw, refused
from tests.server.conftest import started, wait_for


@pytest.fixture(scope="module")
def guarded(tmp_path_factory, root, tiny_base, make_expert):
    """A server with tokens, a small limit and the optional doors open, and the tokens by role."""
    folder = tmp_path_factory.mktemp("guarded")
    tokens = {role: add(folder / "tokens.json", role, role) for role in ("viewer", "annotator", "trainer", "admin")}
    conf = {"tokens": str(folder / "tokens.json"), "max_upload_mib": "1", "allow": "proxy,models"}
    with started("door", folder, root, tiny_base, [make_expert()], conf=conf) as server:
        wait_for(server)
        yield server, {role: {"Authorization": f"Bearer {token}"} for role, token in tokens.items()}


def test_without_a_token_nothing_is_told(guarded):
    server, _ = guarded
    for path in (
        "info/",
        "datastore/",
        "logs/",
        "lorkd/metrics",
        "lorkd/audit",
        "train/",
        "session/x",
        "proxy/dicom/x",
    ):
        reply = requests.get(f"{server.url}/{path}", timeout=30)
        assert (reply.status_code, reply.headers["WWW-Authenticate"]) == (401, "Bearer")
    assert requests.get(f"{server.url}/lorkd/ready", timeout=30).ok
    assert (
        requests.get(f"{server.url}/info/", headers={"Authorization": "Bearer lorkd_x"}, timeout=30).status_code == 401
    )


def test_roles_on_the_real_server(guarded):
    server, headers = guarded
    upload = {"file": ("x.pt", b"x")}
    for role, status in (("viewer", 403), ("annotator", 403), ("trainer", 403)):
        assert (
            requests.put(f"{server.url}/model/x", files=upload, headers=headers[role], timeout=30).status_code == status
        )
        assert requests.get(f"{server.url}/logs/", headers=headers[role], timeout=30).status_code == status
    assert requests.get(f"{server.url}/lorkd/audit", headers=headers["admin"], timeout=30).ok
    query = {"id": "ct 1", "tag": "final"}
    for role in ("viewer", "annotator"):
        reply = requests.delete(f"{server.url}/datastore/label", params=query, headers=headers[role], timeout=30)
        assert reply.status_code == 403


def test_who_may_only_look_saves_no_label_by_inferring(guarded):
    server, headers = guarded
    query, data = {"image": "ct 1", "output": "json"}, {"params": json.dumps({"save_label": True, "text": "liver"})}
    reply = requests.post(f"{server.url}/infer/lorkd", params=query, data=data, headers=headers["viewer"], timeout=60)
    assert refused(reply, 403).startswith("save_label needs the role annotator")
    assert not (server.studies / "labels" / "original" / "ct 1.nii.gz").exists()


def test_jobs_are_seen_and_cancelled_by_their_user_alone_or_a_trainer(guarded):
    server, headers = guarded
    job = str(uuid.uuid4())
    params = {"text": "liver", "job": job, "client_id": "annotator"}  # what it calls itself counts for nothing
    address = f"{server.url}/lorkd/jobs/{job}"

    def infer():
        query, data = {"image": "large", "output": "json"}, {"params": json.dumps(params)}
        address = f"{server.url}/infer/lorkd"
        return requests.post(address, params=query, data=data, headers=headers["viewer"], timeout=60)

    def listed(role):
        jobs = requests.get(f"{server.url}/lorkd/jobs", headers=headers[role], timeout=10).json()
        return job in {each["id"] for each in jobs}

    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(infer)
        while not listed("admin"):
            time.sleep(0.02)
        seen = {role: listed(role) for role in headers}
        asked = {role: requests.get(address, headers=headers[role], timeout=10).status_code for role in headers}
        stopped = requests.delete(address, headers=headers["annotator"], timeout=10)
        state = requests.get(address, headers=headers["viewer"], timeout=10).json()["state"]
        own = requests.delete(address, headers=headers["viewer"], timeout=10).json()
    assert seen == {"viewer": True, "annotator": False, "trainer": True, "admin": True}
    assert asked == {"viewer": 200, "annotator": 404, "trainer": 200, "admin": 200}
    assert (stopped.status_code, state in ("queued", "running"), own) == (404, True, {"cancelled": True})
    assert running.result().status_code == 409


def test_an_expert_is_downloaded_published_by_upload_and_never_deleted(guarded):
    server, headers = guarded
    admin = {"headers": headers["admin"], "timeout": 30}
    path = server.store.path("abdomen")
    about = requests.get(f"{server.url}/model/info/abdomen", **admin).json()
    assert about["checksum"] == "SHA256:" + hashlib.sha256(path.read_bytes()).hexdigest()
    assert requests.get(f"{server.url}/model/abdomen", **admin).content == path.read_bytes()
    before = server.store.revisions("abdomen")

    def put(model, content):
        return requests.put(f"{server.url}/model/{model}", files={"file": ("any.pt", content)}, **admin)

    assert "the upload" in refused(put("abdomen", b"no expert"))
    assert refused(put("thorax", path.read_bytes())) == "the upload holds an expert of abdomen, not of thorax"
    assert refused(put("lorkd", path.read_bytes()), 404).startswith("model 'lorkd' has no file")
    assert server.store.revisions("abdomen") == before
    published = put("abdomen", path.read_bytes())
    assert published.json()["revision"] == before[-1] + 1, published.text
    assert server.store.load("abdomen").structures == server.store.load("abdomen", before[-1]).structures
    kept = requests.delete(f"{server.url}/model/abdomen", **admin)
    assert refused(kept) == "revisions of 'abdomen' are never deleted; pin another one, or roll back"
    assert server.store.revisions("abdomen") == (*before, before[-1] + 1)


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")  # the client leaves its sockets to the collector
def test_stock_client_signs_in_with_name_and_token(guarded):
    from monailabel.client import MONAILabelClient

    server, headers = guarded
    client = MONAILabelClient(server.url)
    assert client.auth_enabled()
    client.update_auth(client.auth_token("annotator", headers["annotator"]["Authorization"].split()[1]))
    assert client.auth_valid_token()
    assert "abdomen" in client.info()["models"]
    wrong = requests.post(f"{server.url}/auth/token", data={"username": "annotator", "password": "x"}, timeout=30)
    assert wrong.status_code == 401


def test_upload_over_the_limit_is_refused_before_it_lies_on_the_disk(guarded):
    server, headers = guarded
    before = {path: path.stat().st_size for path in server.temporary.iterdir()}
    address = f"{server.url}/datastore/image?image=big"
    many = requests.put(address, files={"file": ("x.nii", b"0" * 2**21)}, headers=headers["annotator"], timeout=30)
    assert "larger than 1 MiB" in refused(many, 413)

    def chunks():
        yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="x.nii"\r\n\r\n'
        for _ in range(40):
            yield b"0" * 2**15

    form = {**headers["annotator"], "Content-Type": "multipart/form-data; boundary=b"}
    unsaid = requests.put(address, data=chunks(), headers=form, timeout=30)
    assert "larger than 1 MiB" in refused(unsaid, 413)
    assert {path: path.stat().st_size for path in server.temporary.iterdir()} == before
    assert not (server.studies / "big.nii").exists()


def test_proxy_leads_to_dicomweb_only(guarded):
    server, headers = guarded
    for path in ("/proxy/dicom/../system", "/proxy/dicom/%2e%2e/system", "/proxy/dicom/studies/../../system"):
        assert raw(server, "GET", path, headers=headers["viewer"])[0] in (400, 404)
    assert raw(server, "GET", "/proxy/dicom/studies", headers=headers["viewer"])[0] == 404
