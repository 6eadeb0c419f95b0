"""The hostile tool: what it notices, and its short form against a real server."""

import json
import time
from types import SimpleNamespace

import pytest

from train.bench import hostile
from train.bench.attacks import Attack, attacks
from train.bench.hostile import Tally
from train.bench.sandbox import SECRET

GOOD = json.dumps({"detail": "no", "request_id": "1"}).encode()
OURS = {"x-request-id": "1"}


@pytest.mark.parametrize(
    ("status", "headers", "body", "problem"),
    [
        (200, OURS, b"{}", None),
        (400, OURS, GOOD, None),
        (404, OURS, b"", None),
        (400, {}, b"Invalid HTTP request received.", None),
        (500, OURS, GOOD, "x got 500"),
        (400, OURS, b'{"detail": "no"}', "x got 400 in another form"),
        (422, OURS, b"<html>", "x got 422 in another form"),
        (200, OURS, b".." + SECRET, "x told what lies in a file outside"),
    ],
)
def test_what_is_noticed(status, headers, body, problem):
    tally = Tally(time.monotonic() + 60)
    tally.note("x", status, headers, body)
    assert [each.startswith(problem or "-") for each in tally.problems] == ([True] if problem else [])
    assert tally.sent == 1


def test_a_file_that_appears_and_a_server_that_ends_are_noticed(tmp_path, monkeypatch):
    trees = iter([{tmp_path / "a": b"1"}, {tmp_path / "a": b"2", tmp_path / "pwn": b""}])
    server = SimpleNamespace(
        folder=tmp_path, outside=lambda: next(trees), alive=lambda: False, process=SimpleNamespace(poll=lambda: 1)
    )
    monkeypatch.setattr(hostile, "send", lambda *arguments: None)
    monkeypatch.setattr(hostile, "explore", lambda *arguments, **options: None)
    problems = hostile.try_hard(server, 10, minutes=1, seed=0)
    assert [each.rpartition("/")[2] for each in problems[:2]] == [
        "a is new, changed or gone",
        "pwn is new, changed or gone",
    ]
    assert problems[2] == "the server does not answer any more; status 1"


def test_the_table_has_what_the_issue_names(tmp_path):
    table = list(attacks(tmp_path))
    assert len(table) > 800
    assert all(isinstance(each, Attack) and each.path.startswith("/") for each in table)
    text = "\n".join(f"{each.path} {each.body[:300]!r}" for each in table)
    for part in (
        "..%2Fpwn",
        "169.254.169.254",
        "x" * 200,
        "%E2%80%AE",
        "%5B%5B%5B",
        "tracking_uri",
        "NaN",
        "uncompress",
    ):
        assert part in text
    assert max(len(each.body) for each in table) > 100 * 1024


def test_options_that_try_nothing(capsys):
    assert hostile.main(["--requests", "0"]) == 2
    assert "try nothing" in capsys.readouterr().err


@pytest.mark.timeout(900)
def test_short_form(capsys):
    status = hostile.main(["--quick", "--minutes", "10"])
    out, error = capsys.readouterr()
    assert status == 0, out + error
    assert out.splitlines()[-1] == "the server stands"
    assert out.startswith("200 requests, 100 of the table: ")
