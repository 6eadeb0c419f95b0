"""The audit log."""

import json
import threading

import pytest

from lorkd_monailabel.audit import Audit


@pytest.fixture
def audit(tmp_path):
    """A log in a folder that does not exist yet."""
    return Audit(tmp_path / "store" / "audit.jsonl")


def test_lines(audit):
    assert audit.lines() == []
    audit.record("publish", user="anna", client="slicer", department="abdomen", revision=2)
    audit.record("PUT /datastore/label", image="Meier")
    first, second = audit.lines()
    assert {key: first[key] for key in ("user", "client", "action", "department", "revision")} == {
        "user": "anna",
        "client": "slicer",
        "action": "publish",
        "department": "abdomen",
        "revision": 2,
    }
    assert first["time"][-1] == "Z"
    assert second["image"] == audit.reference("Meier")
    assert audit.lines(1) == [second]
    assert audit.lines(image="Meier") == [second]
    assert audit.lines(image="Schulz") == []


def test_no_name_is_written_and_the_key_is_private(audit, tmp_path):
    audit.record("PUT /datastore/label", image="Meier")
    assert "Meier" not in audit.path.read_text(encoding="utf-8")
    assert audit.path.stat().st_mode & 0o777 == 0o600
    key = audit.path.with_suffix(".key")
    assert (key.stat().st_mode & 0o777, len(key.read_bytes())) == (0o600, 32)
    assert Audit(audit.path).reference("Meier") == audit.reference("Meier")
    assert Audit(tmp_path / "other.jsonl").reference("Meier") != audit.reference("Meier")
    assert sorted(path.name for path in audit.path.parent.iterdir()) == ["audit.jsonl", "audit.key"]


def test_writers_at_once_do_not_mix_and_share_a_key(audit):
    def write(number):
        Audit(audit.path).record("x" * 500, image="Meier", number=number)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = audit.lines(image="Meier")
    assert sorted(line["number"] for line in lines) == list(range(40))


@pytest.mark.parametrize("end", ["", "\n"])
def test_a_torn_line_is_passed_over_alone(audit, end):
    audit.record("a")
    with audit.path.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"action": "b"})[:5] + end)
    audit.record("c")
    assert [line["action"] for line in audit.lines()] == ["a", "c"]


def test_a_line_that_finds_no_space_is_an_error(audit, monkeypatch):
    monkeypatch.setattr("os.write", lambda number, text: len(text) - 1)
    with pytest.raises(OSError, match="no space is left for a line of the audit log"):
        audit.record("a")
