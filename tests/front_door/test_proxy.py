"""The way to a DICOMweb server, here a small one on a loopback port."""

import asyncio
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from fastapi import HTTPException, Request
from monailabel.config import settings

from lorkd_monailabel.front_door.proxy import proxied


@pytest.fixture
def archive(monkeypatch):
    """A DICOMweb server that notes what it is asked."""
    seen = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            seen.append((self.command, self.path, dict(self.headers), body))
            self.send_response(302 if "instances" in self.path else 200)
            self.send_header("Content-Type", "application/dicom+json")
            self.send_header("Location", "http://evil.example/")
            self.send_header("Set-Cookie", "secret=1")
            self.end_headers()
            self.wfile.write(b"[]")

        do_POST = do_GET

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(settings, "MONAI_LABEL_STUDIES", f"http://127.0.0.1:{server.server_port}/dicom-web/")
    monkeypatch.setattr(settings, "MONAI_LABEL_DICOMWEB_USERNAME", "orthanc")
    monkeypatch.setattr(settings, "MONAI_LABEL_DICOMWEB_PASSWORD", "secret")
    yield seen
    server.shutdown()
    server.server_close()


def ask(path, *, method="GET", op="qido", query=b"", body=b""):
    async def receive():
        return {"type": "http.request", "body": body, "more_body": False}

    headers = [(b"authorization", b"Bearer ours"), (b"cookie", b"a=b"), (b"accept", b"application/dicom+json")]
    scope = {"type": "http", "method": method, "path": "/x", "query_string": query, "headers": headers}
    return asyncio.run(proxied(Request(scope, receive), op, path))


def test_what_goes_on_and_what_comes_back(archive):
    reply = ask("studies/1.2.3/series", query=b"limit=2&fuzzy=true")
    ((method, path, headers, _),) = archive
    assert (method, path) == ("GET", "/dicom-web/studies/1.2.3/series?limit=2&fuzzy=true")
    assert headers["Authorization"].startswith("Basic ")
    assert "Cookie" not in headers
    assert (reply.status_code, reply.body) == (200, b"[]")
    assert set(reply.headers) == {"content-type", "content-length"}


def test_bodies_go_on_and_redirections_are_not_followed(archive):
    ask("studies", method="POST", op="stow", body=b"dicom")
    assert archive[0][0] == "POST"
    assert archive[0][3] == b"dicom"
    assert ask("instances").status_code == 302
    assert len(archive) == 2


@pytest.mark.parametrize(
    "path",
    ["../system", "studies/../../system", "system", "studies/..", "studies//x", "studies/a?b", "studies@evil", ""],
)
def test_paths_that_lead_elsewhere(archive, path):
    with pytest.raises(ValueError, match="is not one of DICOMweb"):
        ask(path)
    assert archive == []


def test_no_archive_behind(monkeypatch):
    monkeypatch.setattr(settings, "MONAI_LABEL_STUDIES", "/studies")
    with pytest.raises(HTTPException) as caught:
        ask("studies")
    assert caught.value.status_code == 404
    monkeypatch.setattr(settings, "MONAI_LABEL_STUDIES", "http://127.0.0.1:9")
    with pytest.raises(HTTPException) as caught:
        ask("studies")
    assert caught.value.status_code == 502
