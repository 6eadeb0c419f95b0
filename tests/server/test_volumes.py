"""Volumes that are sent once and used by their hash, against the running front door."""

import hashlib
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import pytest
import requests


@pytest.fixture
def volume(door) -> bytes:
    """A volume's file."""
    return (door.studies / "ct 1.nii.gz").read_bytes()


@pytest.fixture
def folder(door):
    """Where the server keeps volumes."""
    return door.studies.parent / "volumes"


def put(door, content, extension: str = ".nii.gz") -> requests.Response:
    return requests.put(f"{door.url}/lorkd/volumes", params={"extension": extension}, data=content, timeout=30)


def infer(door, sha256, **query) -> requests.Response:
    return door.infer("lorkd", None, {"text": "liver; spleen", "volume": sha256}, output="json", **query)


def test_sent_once_used_often(door, volume):
    sent = put(door, volume).json()
    assert sent["sha256"] == hashlib.sha256(volume).hexdigest()
    assert sent["bytes"] == len(volume)
    about = requests.get(f"{door.url}/lorkd/volumes/{sent['sha256']}", timeout=10).json()
    assert (about["sha256"], about["bytes"]) == (sent["sha256"], sent["bytes"])
    by_id = door.infer("lorkd", "ct 1", {"text": "liver; spleen"}, output="json").json()
    for _ in range(2):
        by_hash = infer(door, sent["sha256"]).json()
        assert by_hash["label_names"] == by_id["label_names"] == {"liver": 1, "spleen": 2}
        assert [each["voxels"] for each in by_hash["lorkd"]["answers"]] == [
            each["voxels"] for each in by_id["lorkd"]["answers"]
        ]


def test_same_volume_at_once_from_many(door, volume, folder):
    with ThreadPoolExecutor(6) as pool:  # of an iterator comes a body in chunks, without a length
        answers = list(pool.map(lambda _: put(door, iter([volume[:5000], volume[5000:]])), range(12)))
    assert {each.status_code for each in answers} == {200}
    assert len(list(folder.glob(f"{hashlib.sha256(volume).hexdigest()}*"))) == 1


def test_half_an_upload_leaves_nothing(door, folder):
    put(door, b"something, so that the folder is there")
    before = set(folder.iterdir())
    address = urlsplit(door.url)
    with socket.create_connection((address.hostname, address.port)) as half:
        head = f"PUT /lorkd/volumes HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Length: 3000000\r\n\r\n"
        half.sendall(head.encode() + bytes(1_500_000))
        time.sleep(0.3)
    end = time.monotonic() + 10
    while set(folder.iterdir()) != before and time.monotonic() < end:
        time.sleep(0.05)
    assert set(folder.iterdir()) == before


@pytest.mark.parametrize(
    ("sha256", "status", "words"),
    [
        ("0" * 64, 404, "volume 000000000000… is not here, or not any more; send it again"),
        ("../../etc/passwd", 400, "must be"),
        ("/etc/passwd", 400, "must be"),
        ("", 400, "names no image"),
        (7, 400, "must be a SHA-256"),
        (["a"], 400, "must be a SHA-256"),
    ],
)
def test_unknown_volumes(door, sha256, status, words):
    reply = infer(door, sha256)
    assert (reply.status_code, "\n" in reply.json()["detail"]) == (status, False)
    assert words in reply.json()["detail"]


@pytest.mark.parametrize(
    ("content", "extension", "words"),
    [(b"", ".nii.gz", "the body is empty"), (b"x", ".py", "must be one of .nii.gz"), (b"x", "/../x.nii", "must be")],
)
def test_refused_volumes(door, content, extension, words):
    reply = put(door, content, extension)
    assert (reply.status_code, set(reply.json())) == (400, {"detail", "request_id"})
    assert words in reply.json()["detail"]


def test_no_image_is_refused_as_one(door):
    sent = put(door, b"no volume at all").json()
    reply = infer(door, sent["sha256"])
    assert reply.status_code == 400
    assert "cannot be read as an image" in reply.json()["detail"]


def test_documented(door):
    paths = requests.get(f"{door.url}/openapi.json", timeout=10).json()["paths"]
    assert "application/octet-stream" in paths["/lorkd/volumes"]["put"]["requestBody"]["content"]
    assert "get" in paths["/lorkd/volumes/{sha256}"]
