"""Tests of `lorkd tokens`."""

from collections.abc import Callable
from pathlib import Path

from lorkd_monailabel.front_door.tokens import TokenFile


def test_give_list_and_withdraw(lorkd: Callable, here: Path) -> None:
    path = here / "tokens.json"
    outcome = lorkd("tokens", "add", "anna", "--role", "annotator", "--tokens", path)
    assert outcome.status == 0
    assert TokenFile(path).holder(outcome.out.strip()).name == "anna"
    shown = lorkd("tokens", "list", "--tokens", path)
    assert [line.split()[:2] for line in shown.out.splitlines()] == [["name", "role"], ["anna", "annotator"]]
    assert outcome.out.strip() not in shown.out
    assert lorkd("tokens", "remove", "anna", "--tokens", path).out == "anna has no token any more\n"
    assert TokenFile(path).holder(outcome.out.strip()) is None


def test_refusals(lorkd: Callable, here: Path) -> None:
    for arguments, message in (
        (("add", "a b", "--role", "viewer"), "name 'a b' must be"),
        (("add", "anna", "--role", "king"), "invalid choice: 'king'"),
        (("add", "anna"), "--role"),
        (("list",), "can't be read (No such file or directory)"),
        (("remove", "anna"), "can't be read"),
    ):
        outcome = lorkd("tokens", *arguments, "--tokens", here / "no.json")
        assert (outcome.status, outcome.out) == (2, "")
        assert message in outcome.err
    assert list(here.iterdir()) == []
