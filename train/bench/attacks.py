"""Hostile requests, as a table: paths, addresses of other servers, sizes, types, characters, nested JSON."""

import io
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

BOUNDARY = "lorkd-boundary"


@dataclass(frozen=True)
class Attack:
    """A request, with an address that is sent as it stands.

    Attributes:
        method: of HTTP.
        path: with the query.
        body: as sent.
        headers: besides the length.
    """

    method: str
    path: str
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


def attacks(folder: Path) -> Iterator[Attack]:
    """Give every request of the table.

    Args:
        folder: in which the server lives; the requests try to read and write beside its own.
    """
    yield from _names(folder)
    yield from _addresses(folder)
    yield from _options(folder)
    yield from _bodies()
    yield from _uploads(folder)


def _paths(folder: Path) -> list[str]:
    """Names that lead elsewhere, or that no name is."""
    secret = folder / "outside" / "secret.nii"
    up = ["../pwn", "../outside/secret.nii", "..", ".", "../../../../../../etc/passwd", "....//....//pwn", "..\\pwn"]
    absolute = [str(secret), str(secret.with_suffix("")), "/etc/passwd", "C:\\pwn", "\\\\host\\share", "~/pwn", "//pwn"]
    coded = ["%2e%2e%2fpwn", "..%2fpwn", "..%252fpwn", "%c0%ae%c0%ae/pwn", "..;/pwn", "file:///etc/passwd"]
    strange = [
        "\0",
        "a\0.nii",
        "a\nb",
        "a\r\nX-Injected: 1",
        "\u202egnp.exe",
        "\ufffe",
        "e\u0301" * 150,
        "x" * 5000,
        " ",
    ]
    programs = ["$(touch pwn)", "`touch pwn`", "; touch pwn", "| touch pwn", "{{7*7}}", "$__import__('os')", "%s%n"]
    markup = ["<script>alert(1)</script>", "' OR 1=1 --", "../../pwn\0.nii.gz", "CON", "nul.txt", "-rf", "*", "?"]
    return [*up, *absolute, *coded, *strange, *programs, *markup]


def _names(folder: Path) -> Iterator[Attack]:
    upload, form = _form("file", "x.nii.gz", b"no image")
    label, label_form = _form("label", "x.nii.gz", b"no image")
    for name in _paths(folder):
        coded = quote(name, safe="", errors="surrogatepass")
        for key in ("image", "id", "label"):
            yield Attack("GET", f"/datastore/{'image' if key == 'image' else 'label'}?{key}={coded}&tag={coded}")
        yield Attack("PUT", f"/datastore/image?image={coded}", upload, form)
        yield Attack("PUT", f"/datastore/label?image=small&tag={coded}", label, label_form)
        yield Attack("DELETE", f"/datastore/image?id={coded}")
        yield Attack("DELETE", f"/datastore/label?id=small&tag={coded}")
        yield Attack("POST", f"/infer/abdomen?image={coded}")
        yield Attack("POST", f"/infer/{coded}?image=small")
        yield Attack("POST", f"/infer/abdomen?session_id={coded}")
        yield Attack("GET", f"/session/{coded}?image=true")
        yield Attack("DELETE", f"/session/{coded}")
        yield Attack("POST", f"/train/{coded}", b"{}", {"Content-Type": "application/json"})
        yield Attack("GET", f"/lorkd/volumes/{coded}")
        yield Attack("GET", f"/lorkd/jobs/{coded}")
        yield Attack("GET", f"/lorkd/audit?image={coded}")


def _addresses(folder: Path) -> Iterator[Attack]:
    for root in ("/static", "/ohif", "/proxy/dicom", "/proxy/dicom/wado", "/session", "/model", ""):
        for rest in (
            "/../../../../etc/passwd",
            "/%2e%2e/%2e%2e/etc/passwd",
            "/..%5c..%5cpwn",
            f"/..{folder}/outside/secret.txt",
        ):
            yield Attack("GET", root + rest)
    for host in ("http://169.254.169.254/latest/meta-data", "http://127.0.0.1:22", "file:///etc/passwd", "gopher://x"):
        yield Attack("GET", f"/proxy/dicom/{quote(host, safe='')}")
        yield Attack("GET", f"/proxy/dicom/{host}")
        options = json.dumps({"tracking_uri": host, "url": host}).encode()
        yield Attack("POST", "/train/abdomen", options, {"Content-Type": "application/json"})
    for method in ("TRACE", "CONNECT", "PATCH", "PROPFIND", "OPTIONS"):
        yield Attack(method, "/info/")
    yield Attack("POST", "/reload")
    yield Attack("GET", "/info/", headers={"Host": "evil.example"})
    yield Attack("POST", "/activelearning/random", b"{}", {"Origin": "http://evil.example"})
    yield Attack("GET", "/info/", headers={"Authorization": "Bearer " + "x" * 5000})
    yield Attack("GET", "/logs/?lines=99999999999999999999999")
    yield Attack("GET", "/logs/?lines=-1&refresh=-5")
    yield Attack("GET", "/logs/gpu")
    yield Attack("GET", "/datastore/dataset?limit_cases=-99999999999999999999")


def _options(folder: Path) -> Iterator[Attack]:
    secret = str(folder / "outside" / "secret.nii")
    values: list[Any] = [
        None,
        True,
        -1,
        10**400,
        1e308,
        "",
        "x" * 10_000,
        [],
        {},
        [[]],
        ["a"] * 1000,
        {"a": 1},
        "\0",
        "../pwn",
        secret,
    ]
    keys = ["text", "department", "modality", "result_extension", "result_dtype", "label_tag", "save_label", "job"]
    keys += ["client_id", "image", "model", "label", "session", "device", "logging", "volume", "label_info", "timeout"]
    for key in keys:
        for value in values:
            yield _infer(json.dumps({key: value}))
    for text in (
        "",
        "null",
        "1",
        "[]",
        '"x"',
        "{",
        "{'a': 1}",
        "{}{}",
        "NaN",
        '{"a": NaN}',
        '{"a": 1e999}',
        '{"a": "\\ud800"}',
    ):
        yield _infer(text)
    for depth in (10, 100, 10_000, 100_000):
        yield _infer('{"text":' + "[" * depth + "]" * depth + "}")
        yield _infer('{"a":' * depth + "1" + "}" * depth)
        yield Attack("POST", "/train/", b"[" * depth, {"Content-Type": "application/json"})
        yield Attack("POST", "/infer/wsi/abdomen?image=small", b"[" * depth, {"Content-Type": "application/json"})


def _bodies() -> Iterator[Attack]:
    as_json = {"Content-Type": "application/json"}
    bodies = [b"", b"null", b"[]", b"1", b'"x"', b"{", b"\xff\xfe", b"\x00" * 100, b'{"a": NaN}', b'{"name": "../x"}']
    for path in (
        "/train/",
        "/train/abdomen",
        "/scoring/dice",
        "/activelearning/random",
        "/batch/infer/none",
        "/lorkd/training",
    ):
        for body in bodies:
            yield Attack("POST", path, body, as_json)
        yield Attack("POST", path, b'{"a": "' + b"x" * 200_000 + b'"}', as_json)
    for path in ("/datastore/image/info?image=small", "/datastore/label/info?label=small&tag=final"):
        for text in ("[1]", "null", "{", '{"a": NaN}', "x" * 200_000):
            body = f"info={quote(text)}".encode()
            yield Attack("PUT", path, body, {"Content-Type": "application/x-www-form-urlencoded"})
    for kind in (
        "multipart/form-data",
        "multipart/form-data; boundary=",
        "multipart/form-data; boundary=x",
        "text/plain",
        "x",
    ):
        yield Attack("PUT", "/datastore/image?image=x", b"--x\r\n\r\n", {"Content-Type": kind})


def _uploads(folder: Path) -> Iterator[Attack]:
    for name in (
        "main.py",
        "datastore_v2.json",
        "../../pwn.nii.gz",
        "/pwn.nii.gz",
        "a\0.nii",
        "x" * 400 + ".nii",
        ".nii",
        "",
        "x.pt",
    ):
        for method, path, key in (
            ("PUT", "/datastore/image?image=new", "file"),
            ("PUT", "/datastore/label?image=small", "label"),
            ("POST", "/infer/abdomen", "file"),
            ("PUT", "/session/", "files"),
            ("PUT", "/model/abdomen", "file"),
        ):
            body, form = _form(key, name, b"no image")
            yield Attack(method, path, body, form)
    for member in ("../../pwn", "/pwn", str(folder / "outside" / "pwn")):
        body, form = _form("files", "x.tar", _tar(member))
        yield Attack("PUT", "/session/?uncompress=true", body, form)
    for rest in ("?extension=../x", "?extension=.py", "?extension=%00", ""):
        yield Attack("PUT", f"/lorkd/volumes{rest}", b"no image")
    yield Attack("PUT", "/datastore/image?image=x", b"", {"Content-Type": "application/json"})


def _infer(params: str) -> Attack:
    body = f"params={quote(params)}".encode()
    return Attack("POST", "/infer/none?image=small", body, {"Content-Type": "application/x-www-form-urlencoded"})


def _form(key: str, name: str, content: bytes) -> tuple[bytes, dict[str, str]]:
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{key}"; filename="{name}"\r\n\r\n'.encode()
    form = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
    return head + content + f"\r\n--{BOUNDARY}--\r\n".encode(), form


def _tar(name: str) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        member = tarfile.TarInfo(name)
        member.size = 3
        archive.addfile(member, io.BytesIO(b"pwn"))
    return file.getvalue()
