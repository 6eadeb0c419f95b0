"""What goes wrong with a server, and what the panel says of it."""

import http.server
import socket
import threading

import pytest


class Answers(http.server.BaseHTTPRequestHandler):
    """Says at /info/ the status, type and body that its server holds, and has nothing else."""

    def do_GET(self):
        status, kind, body = self.server.reply if self.path == "/info/" else (404, "text/plain", b"")
        self.server.seen.append(self.headers.get("Authorization"))
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Location", "http://127.0.0.1:9/")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_args):
        """Say nothing."""


@pytest.fixture
def answering():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        server.seen = []
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def connect(qtbot, panel, address):
    panel.ui.serverCombo.setEditText(address)
    panel.ui.connectButton.click()
    qtbot.waitUntil(lambda: "…" not in panel.ui.serverLabel.text, timeout=10_000)
    return panel.ui.serverLabel.text


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (401, b'{"detail": "no token"}', ["wants a token", "The server says: no token"]),
        (403, b"{}", ["ask the operator for a role"]),
        (404, b"nothing", ["does not have that"]),
        (400, b'{"detail": "x must be 1; write 1"}', ["x must be 1; write 1."]),
        (400, b"", ["refused the request (400)"]),
        (422, b'{"detail": [{"msg": "field required"}]}', ["refused the request (422)", "field required"]),
        (500, b"Internal Server Error", ["answered with an error (500)"]),
        (500, b'{"detail": "why {it} failed"}', ["why {it} failed"]),
        (503, b'{"detail": "full"}', ["not ready", "full"]),
        (307, b"", ["sends requests on to another address"]),
        (200, b"<html>", ["is no MONAI Label server"]),
        (200, b'{"name": "x"}', ["is no MONAI Label server"]),
        (200, b"[]", ["is no MONAI Label server"]),
    ],
)
def test_each_answer_has_its_sentence(qtbot, panel, answering, status, body, words):
    answering.reply = (status, "application/json", body)
    said = connect(qtbot, panel, f"127.0.0.1:{answering.server_port}")
    assert [word for word in words if word.lower() not in said.lower()] == [], said
    assert panel.ui.departmentCombo.count == 0
    assert not panel.ui.applyButton.enabled


def test_a_server_that_is_not_there(qtbot, panel):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    assert "No server answers at http://127.0.0.1" in connect(qtbot, panel, f":{port}")


def test_what_is_no_address(qtbot, panel):
    assert "is no address" in connect(qtbot, panel, "ftp://x")


def test_a_server_that_keeps_silent(qtbot, panel, monkeypatch):
    from LoRKDLib.client import Client

    monkeypatch.setattr(Client.call, "__kwdefaults__", {"seconds": 0.2, "sending": None})
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        assert "does not answer in time" in connect(qtbot, panel, f":{silent.getsockname()[1]}")


def test_tls_is_checked(qtbot, panel, tmp_path):
    import datetime
    import ssl

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    made = x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + datetime.timedelta(days=1))
    certificate = made.sign(key, hashes.SHA256())
    plain = serialization.NoEncryption()
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
    (tmp_path / "pem").write_bytes(pem + certificate.public_bytes(serialization.Encoding.PEM))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "pem")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        server.seen = []
        server.handle_error = lambda *_args: None
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        said = connect(qtbot, panel, f"https://localhost:{server.server_port}")
        server.shutdown()
        thread.join()
    assert "is not trusted" in said
    assert server.seen == []


def test_a_token_goes_with_every_call_and_is_not_kept(qtbot, panel, answering, tmp_path):
    answering.reply = (
        200,
        "application/json",
        b'{"models": {}, "lorkd": {"version": "1", "device": "x", "departments": []}}',
    )
    panel.ui.tokenEdit.setText("secret-token")
    connect(qtbot, panel, f":{answering.server_port}")
    assert set(answering.seen) == {"Bearer secret-token"}
    assert len(answering.seen) >= 2
    import qt

    qt.QSettings().sync()
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files
    assert [path for path in files if b"secret-token" in path.read_bytes()] == []
    node = panel.logic.getParameterNode().parameterNode
    assert "secret-token" not in str(node)


def test_addresses_are_remembered_the_last_first(qtbot, panel, answering):
    answering.reply = (200, "application/json", b'{"models": {}}')
    connect(qtbot, panel, f":{answering.server_port}")
    connect(qtbot, panel, f"localhost:{answering.server_port}/")
    port = answering.server_port
    combo = panel.ui.serverCombo
    known = [f"http://localhost:{port}", f"http://127.0.0.1:{port}"]
    assert [combo.itemText(index) for index in range(combo.count)] == known
