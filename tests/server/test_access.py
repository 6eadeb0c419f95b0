"""A real server with tokens: who may do what, limits of uploads, and the optional doors."""

import json
import time

import pytest
import requests

from lorkd_monailabel.front_door.tokens import add
from tests.server.answers import raw, refused
from tests.server.conftest import started


@pytest.fixture(scope="module")
def guarded(tmp_path_factory, root, tiny_base, make_expert):
    """A server with tokens, a small limit and the optional doors open, and the tokens by role."""
    folder = tmp_path_factory.mktemp("guarded")
    tokens = {role: add(folder / "tokens.json", role, role) for role in ("viewer", "annotator", "trainer", "admin")}
    conf = {"tokens": str(folder / "tokens.json"), "max_upload_mib": "1", "allow": "proxy,models"}
    with started("door", folder, root, tiny_base, [make_expert()], conf=conf) as server:
        end = time.monotonic() + 90
        while time.monotonic() < end and server.process.poll() is None:
            try:
                if requests.get(f"{server.url}/lorkd/health", timeout=10).ok:
                    break
            except requests.ConnectionError:
                time.sleep(0.1)
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
