"""Volumes that are kept by their content: budgets, ends, and what is left of half a one."""

import hashlib
import os
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from lorkd_monailabel.sources.uploads import Incoming, TooLarge, Uploads


@pytest.fixture
def kept(tmp_path):
    return Uploads(tmp_path / "volumes", expiry_s=100, most_bytes=100, most_files=3, largest_bytes=60)


def send(uploads, content: bytes, kind: str = ".nii"):
    incoming = Incoming(uploads, kind)
    try:
        for start in range(0, len(content), 7):
            incoming.write(content[start : start + 7])
        return incoming.keep()
    finally:
        incoming.close()


def age(uploads, sha256: str, seconds: float) -> None:
    (path,) = uploads.folder.glob(f"{sha256}*")
    os.utime(path, (time.time() - seconds,) * 2)


def names(uploads) -> list[str]:
    return sorted(path.name for path in uploads.folder.iterdir())


def test_kept_by_content_and_found_after_a_restart(kept):
    about = send(kept, b"volume", ".nii.gz")
    assert about.sha256 == hashlib.sha256(b"volume").hexdigest()
    assert about.bytes == 6
    assert abs(about.expires - time.time() - 100) < 5
    again = Uploads(kept.folder, expiry_s=100)
    assert again.get(about.sha256).bytes == 6
    assert again.path(about.sha256).read_bytes() == b"volume"
    assert again.path(about.sha256).name == f"{about.sha256}.nii.gz"


def test_half_an_upload_leaves_nothing(kept):
    incoming = Incoming(kept, ".nii")
    incoming.write(b"half")
    assert len(names(kept)) == 1
    incoming.close()
    assert names(kept) == []


def test_drafts_of_a_killed_process_go_in_time(kept):
    send(kept, b"a")
    draft = kept.folder / ".draft-0"
    draft.touch()
    send(kept, b"b")
    assert draft.exists()
    os.utime(draft, (time.time() - 4000,) * 2)
    send(kept, b"c")
    assert not draft.exists()


def test_end_is_put_off_by_use(kept):
    first, second = send(kept, b"first"), send(kept, b"second")
    for each in (first, second):
        age(kept, each.sha256, 90)
    kept.path(first.sha256)
    assert kept.get(first.sha256).expires > time.time() + 90
    age(kept, second.sha256, 101)
    with pytest.raises(FileNotFoundError, match="is not here, or not any more"):
        kept.get(second.sha256)
    assert names(kept) == [f"{first.sha256}.nii"]


def test_goes_though_nobody_asks(tmp_path):
    uploads = Uploads(tmp_path, expiry_s=1.2)
    send(uploads, b"volume")
    end = time.monotonic() + 20
    while names(uploads) and time.monotonic() < end:
        time.sleep(0.1)
    assert names(uploads) == []


def test_least_recently_used_goes_over_number_and_size(kept):
    sent = [send(kept, bytes([number]) * 20) for number in range(3)]
    for number, each in enumerate(sent):
        age(kept, each.sha256, 50 - number)
    kept.get(sent[0].sha256)
    send(kept, b"fourth")
    with pytest.raises(FileNotFoundError):
        kept.get(sent[1].sha256)
    send(kept, b"x" * 60)
    assert sum(path.stat().st_size for path in kept.folder.iterdir()) <= 100
    assert len(names(kept)) == 3


def test_too_large_or_empty(kept):
    with pytest.raises(TooLarge, match="more than 60 bytes"):
        send(kept, b"x" * 61)
    with pytest.raises(ValueError, match="the body is empty"):
        send(kept, b"")
    assert names(kept) == []


@pytest.mark.parametrize("name", ["", "../x", "a" * 63, "A" * 64, "g" * 64, "a" * 64 + "/..", 7, ["a" * 64]])
def test_no_hash(kept, name):
    with pytest.raises(ValueError, match="must be a SHA-256"):
        kept.path(name)


@pytest.mark.parametrize("kind", ["", ".py", "/../x.nii", ".NII"])
def test_no_kind(kept, kind):
    with pytest.raises(ValueError, match="must be one of"):
        Incoming(kept, kind)
    assert not kept.folder.exists()


def test_same_content_at_the_same_time(kept):
    with ThreadPoolExecutor(8) as pool:
        sent = set(pool.map(lambda _: send(kept, b"the same volume").sha256, range(32)))
    assert len(sent) == 1
    assert len(names(kept)) == 1
