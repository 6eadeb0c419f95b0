"""Tokens in a file."""

import hashlib
import json
import os

import pytest

from lorkd_monailabel.front_door.roles import Role
from lorkd_monailabel.front_door.tokens import TokenFile, add, remove


@pytest.fixture
def path(tmp_path):
    """Where the file will be."""
    return tmp_path / "etc" / "tokens.json"


def test_a_token_is_told_once_and_only_its_hash_is_kept(path):
    token = add(path, "anna", "annotator")
    (entry,) = json.loads(path.read_text(encoding="utf-8"))["tokens"]
    assert (entry["name"], entry["role"]) == ("anna", "annotator")
    assert entry["sha256"] == hashlib.sha256(token.encode()).hexdigest()
    assert token not in path.read_text(encoding="utf-8")
    assert path.stat().st_mode & 0o777 == 0o600
    assert [each.name for each in path.parent.iterdir()] == ["tokens.json"]


def test_holders_by_token(path):
    anna, bert = add(path, "anna", "annotator"), add(path, "bert", "admin")
    tokens = TokenFile(path)
    assert (tokens.holder(anna).name, tokens.holder(anna).role) == ("anna", Role.ANNOTATOR)
    assert tokens.holder(bert).role is Role.ADMIN
    assert tokens.holder(anna[:-1]) is None
    assert tokens.holder("") is None


def test_a_withdrawn_token_is_refused_at_once(path):
    anna, bert = add(path, "anna", "viewer"), add(path, "bert", "viewer")
    tokens = TokenFile(path)
    assert tokens.holder(anna)
    remove(path, "anna")
    assert tokens.holder(anna) is None
    assert tokens.holder(bert)


def test_a_file_that_vanished_lets_nobody_in(path):
    token = add(path, "anna", "viewer")
    tokens = TokenFile(path)
    assert tokens.holder(token)
    path.unlink()
    with pytest.raises(ValueError, match="make it: lorkd tokens add NAME"):
        tokens.holder(token)


def test_refusals(path):
    add(path, "anna", "viewer")
    for name, role, message in (
        ("anna", "viewer", "anna has a token already"),
        ("a b", "viewer", "name 'a b' must be up to 64"),
        ("", "viewer", "name '' must be"),
        ("bert", "root", "role 'root' is unknown; choose one of viewer, annotator, trainer, admin"),
    ):
        with pytest.raises(ValueError, match=message):
            add(path, name, role)
    with pytest.raises(ValueError, match=r"'bert' has no token in .*there: anna"):
        remove(path, "bert")
    os.chmod(path, 0o622)
    with pytest.raises(ValueError, match="others may write"):
        TokenFile(path).holders()
    os.chmod(path, 0o600)
    path.write_text('{"tokens": [{"name": "x"}]}', encoding="utf-8")
    with pytest.raises(ValueError, match="KeyError"):
        TokenFile(path).holders()
