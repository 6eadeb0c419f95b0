"""Tests of `lorkd serve`: what it refuses, and what it starts."""

import datetime
import importlib.metadata
import importlib.util
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID

from lorkd_monailabel.commands import serve
from lorkd_monailabel.front_door.tokens import add
from lorkd_monailabel.store import ExpertStore


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Commands that would have taken the place of this process."""
    commands: list[list[str]] = []
    monkeypatch.setattr(serve, "become", lambda command, variables: commands.append(command) or 0)
    return commands


def refusal(outcome) -> str:
    """The one sentence."""
    assert (outcome.status, outcome.out) == (2, "")
    (line,) = outcome.err.splitlines()
    return line.removeprefix("lorkd: ")


def test_the_command(lorkd: Callable, here: Path, store: ExpertStore, port: int, started: list[list[str]]) -> None:
    (here / "studies").mkdir()
    outcome = lorkd("serve", "studies", "--store", store.folder, "--port", port, "--device", "cpu")
    assert (outcome.status, outcome.err) == (0, "")
    assert f"paste into Slicer: http://127.0.0.1:{port} " in outcome.out
    (command,) = started
    assert command[:4] == [sys.executable, "-m", "monailabel.main", "start_server"]
    assert command[4:] == [
        *("--app", str(serve.APP), "--studies", str(here / "studies"), "--host", "127.0.0.1", "--port", str(port)),
        *("--conf", "store", str(store.folder), "--conf", "device", "cpu"),
        *("--uvicorn_app", "lorkd_monailabel.asgi:app"),
    ]


def test_a_foundation_to_decompose(lorkd: Callable, here: Path, port: int, started: list[list[str]]) -> None:
    sentence = refusal(lorkd("serve", ".", "--port", port, "--foundation", "none"))
    assert sentence == "foundation none is not a file that exists; check --foundation"
    assert started == []
    (here / "foundation.safetensors").write_bytes(b"")
    assert lorkd("serve", ".", "--port", port, "--foundation", "foundation.safetensors").status == 0
    (command,) = started
    where = command.index("foundation")
    assert command[where - 1 : where + 2] == ["--conf", "foundation", str(here / "foundation.safetensors")]


def test_plain_and_the_servers_own_store(
    lorkd: Callable, port: int, started: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "2.4.4")
    arguments = ("--port", port, "--plain", "--host", "0.0.0.0")
    sentence = refusal(lorkd("serve", "https://pacs.example/dicom-web", *arguments))
    assert sentence == "--plain has no tokens; serve this machine only, or omit --plain (or add --open)"
    outcome = lorkd("serve", "https://pacs.example/dicom-web", *arguments, "--open")
    assert outcome.status == 0
    assert f"http://{socket.gethostname()}:{port}" in outcome.out
    assert outcome.err == "lorkd: whoever reaches this address can read the studies; be sure of the network\n"
    (command,) = started
    assert command[7] == "https://pacs.example/dicom-web"
    assert not {"--conf", "--uvicorn_app"}.intersection(command)


def test_other_machines_are_served_with_tokens_or_on_request(
    lorkd: Callable, here: Path, port: int, started: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    anywhere = ("serve", ".", "--port", port, "--host", "0.0.0.0")
    sentence = refusal(lorkd(*anywhere))
    assert sentence.startswith("host 0.0.0.0 is open to other machines, but there are no tokens; make one with lorkd")
    assert started == []
    outcome = lorkd(*anywhere, "--open")
    assert outcome.err == "lorkd: whoever reaches this address can read the studies; be sure of the network\n"
    assert "--conf open true --uvicorn_app" in " ".join(started[-1])
    add(here / "tokens.json", "anna", "annotator")
    outcome = lorkd(*anywhere, "--tokens", "tokens.json")
    assert "Slicer asks for a user name and a password" in outcome.out
    assert "go over the network unencrypted" in outcome.err
    assert f"--conf tokens {here / 'tokens.json'}" in " ".join(started[-1])
    monkeypatch.setenv("MONAI_LABEL_AUTH_ENABLE", "true")
    assert lorkd(*anywhere).status == 0


def test_tokens_of_the_app_are_used_where_they_are(
    lorkd: Callable, here: Path, port: int, started: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve, "SERVERS_TOKENS", here / "tokens.json")
    lorkd("serve", ".", "--port", port)
    assert "tokens" not in started[-1]
    add(here / "tokens.json", "anna", "annotator")
    lorkd("serve", ".", "--port", port)
    assert "tokens" in started[-1]
    (here / "tokens.json").write_text("[]", encoding="utf-8")
    assert refusal(lorkd("serve", ".", "--port", port)).startswith(f"tokens {here / 'tokens.json'} is damaged")


def test_https(lorkd: Callable, here: Path, port: int, started: list[list[str]]) -> None:
    for name in ("one", "two"):
        write_certificate(here / name)
    outcome = lorkd("serve", ".", "--port", port, "--tls-cert", "one.crt", "--tls-key", "one.key")
    assert f"paste into Slicer: https://127.0.0.1:{port} " in outcome.out
    options = ["--ssl_certfile", str(here / "one.crt"), "--ssl_keyfile", str(here / "one.key")]
    assert started[-1][-6:-2] == options
    for certificate, key, message in (
        ("one.crt", "two.key", "are no certificate and its key without a password"),
        ("one.key", "one.crt", "are no certificate and its key"),
        ("no.crt", "one.key", "no.crt is not a file that exists"),
    ):
        assert message in refusal(lorkd("serve", ".", "--port", port, "--tls-cert", certificate, "--tls-key", key))
    assert "needs both" in refusal(lorkd("serve", ".", "--port", port, "--tls-cert", "one.crt"))


def test_folder_for_all_that_is_written(lorkd: Callable, here: Path, port: int, started: list[list[str]]) -> None:
    for _ in range(2):
        assert lorkd("serve", ".", "--port", port, "--work", "state").status == 0
    assert started[-1][started[-1].index("--app") + 1] == str(here / "state")
    assert (here / "state" / "main.py").read_text(encoding="utf-8") == serve.WORK_MAIN
    assert serve.environment(here / "state")["MONAI_LABEL_SESSION_PATH"] == str(here / "state" / "sessions")
    (here / "state" / "main.py").write_text("other", encoding="utf-8")
    assert "holds an app of its own" in refusal(lorkd("serve", ".", "--port", port, "--work", "state"))


def test_further_options(lorkd: Callable, here: Path, port: int, started: list[list[str]]) -> None:
    lorkd("serve", ".", "--port", port, "--conf", "allow", "proxy", "--conf", "max_upload_mib", "10")
    assert "--conf allow proxy --conf max_upload_mib 10 --uvicorn_app" in " ".join(started[-1])


def write_certificate(path: Path) -> None:
    """Write a certificate of our own and its key."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(x509.random_serial_number()).not_valid_before(now)
    certificate = builder.not_valid_after(now + datetime.timedelta(days=1)).sign(key, hashes.SHA256())
    path.with_suffix(".crt").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    kinds = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path.with_suffix(".key").write_bytes(key.private_bytes(*kinds))


def test_what_can_not_be(lorkd: Callable, here: Path, port: int, started: list[list[str]]) -> None:
    (here / "file").write_text("")
    for studies in ("no", "file"):
        sentence = refusal(lorkd("serve", studies, "--port", port))
        assert sentence == f"studies {studies} is not a folder that exists; make it, or check the path"
    assert refusal(lorkd("serve", ".", "--port", port, "--store", "no")).startswith("store no is not a folder")
    assert refusal(lorkd("serve", ".", "--port", 70000)) == "port 70000 must be in 1..65535; 8000 is usual"
    assert refusal(lorkd("serve", ".", "--port", port, "--host", "256.1.1.1")).startswith("host '256.1.1.1' is unknown")
    assert refusal(lorkd("serve", ".", "--port", port, "--device", "gpu")).startswith("device 'gpu' is unknown")
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = other.getsockname()[1]
        sentence = refusal(lorkd("serve", ".", "--port", taken))
    assert sentence.startswith(f"port {taken} of 127.0.0.1 can't be used (Address already in use); choose another with")
    assert started == []
    assert [path.name for path in here.iterdir()] == ["file"]


def test_monai_label_must_be_there(
    lorkd: Callable, here: Path, port: int, started: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "3.0.1")
    sentence = refusal(lorkd("serve", ".", "--port", port, "--plain"))
    assert sentence.startswith("MONAI Label's own application needs pydicom 2, not 3.0.1; omit --plain, or run: pip")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert refusal(lorkd("serve", ".", "--port", port)) == (
        "MONAI Label is not installed, and the server needs it; run: pip install 'lorkd-monailabel[server]'"
    )
    assert started == []


@pytest.mark.parametrize(
    ("host", "expected"), [("127.0.0.1", "http://127.0.0.1:80"), ("::1", "http://[::1]:80"), ("pc", "http://pc:80")]
)
def test_addresses(host: str, expected: str) -> None:
    assert serve.address(host, 80) == expected


def test_the_package_is_importable_in_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "elsewhere")
    assert serve.environment()["PYTHONPATH"] == os.pathsep.join([str(serve.APP.parent), "elsewhere"])
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(serve.APP.parent))
    assert serve.environment()["PYTHONPATH"] == "elsewhere"
    monkeypatch.delenv("PYTHONPATH")
    assert "PYTHONPATH" not in serve.environment()
