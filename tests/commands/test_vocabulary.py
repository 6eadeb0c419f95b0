"""Tests of `lorkd vocabulary embed`, with the real encoder."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lorkd_monailabel.departments import structures
from lorkd_monailabel.text_encoder import QUERIES, QueryTable


def test_the_packages_own_table_is_made_again(lorkd: Callable, here: Path, table: QueryTable) -> None:
    outcome = lorkd("vocabulary", "embed")
    assert (outcome.status, outcome.err) == (0, "")
    made = QueryTable.load(here / "queries.safetensors")
    assert made.names == table.names == tuple(structures())
    assert made.encoder == table.encoder
    torch.testing.assert_close(made.vectors, table.vectors, atol=1e-4, rtol=0)
    first, second = outcome.out.splitlines()
    assert first == f"queries.safetensors: 137 names, 137 of them new, space {made.space}"
    assert second.startswith("the space is ")
    assert ("is not that" in second) == (made.space != table.space)
    assert [path.name for path in here.iterdir()] == ["queries.safetensors"]


def test_extend_adds_rows_and_keeps_the_space(lorkd: Callable, tmp_path: Path, table: QueryTable) -> None:
    path = tmp_path / "short.safetensors"
    replace(table, names=table.names[3:], vectors=table.vectors[3:]).save(path)
    outcome = lorkd("vocabulary", "embed", "--extend", path)
    assert (outcome.status, outcome.err) == (0, "")
    made = QueryTable.load(path)
    assert made.names == (*table.names[3:], *table.names[:3])
    assert made.space == table.space
    assert torch.equal(made.vectors[:-3], table.vectors[3:])
    # the matrix is stored in half precision, so rows that are added differ a little from those of the whole table
    torch.testing.assert_close(made.vectors[-3:], table.vectors[:3], atol=0.02, rtol=0)
    assert f"{path}: 137 names, 3 of them new" in outcome.out
    assert "its networks understand the queries" in outcome.out


def test_extend_into_another_file(lorkd: Callable, here: Path, table: QueryTable) -> None:
    before = QUERIES.read_bytes()
    outcome = lorkd("vocabulary", "embed", "--extend", QUERIES, "--output", "new.safetensors")
    assert outcome.status == 0
    assert "0 of them new" in outcome.out
    assert torch.equal(QueryTable.load(here / "new.safetensors").vectors, table.vectors)
    assert QUERIES.read_bytes() == before


def refusal(outcome) -> str:
    """The one sentence."""
    assert (outcome.status, outcome.out) == (2, "")
    (line,) = outcome.err.splitlines()
    return line.removeprefix("lorkd: ")


def test_what_can_not_be(lorkd: Callable, here: Path, table: QueryTable, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(QUERIES, here / "queries.safetensors")
    assert refusal(lorkd("vocabulary", "embed")).startswith("queries.safetensors exists already; name another file")
    assert refusal(lorkd("vocabulary", "embed", "--output", "no/q.safetensors")).startswith("folder no of q.safeten")
    assert "can't be read" in refusal(lorkd("vocabulary", "embed", "--extend", "no.safetensors"))
    (here / "text").write_text("no table")
    assert "can't be read" in refusal(lorkd("vocabulary", "embed", "--extend", "text"))
    replace(table, encoder="another").save(here / "other.safetensors")
    assert "was made by another, not by all-MiniLM" in refusal(
        lorkd("vocabulary", "embed", "--extend", "other.safetensors")
    )
    assert refusal(lorkd("vocabulary")) == "the following arguments are required: embed; see lorkd vocabulary --help"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "encoder is not installed" in refusal(lorkd("vocabulary", "embed", "--force"))
    assert sorted(path.name for path in here.iterdir()) == ["other.safetensors", "queries.safetensors", "text"]
    assert (here / "queries.safetensors").read_bytes() == QUERIES.read_bytes()


def test_a_write_that_fails_leaves_the_old_table(lorkd: Callable, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "queries.safetensors").write_text("old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    assert "No space left" in refusal(lorkd("vocabulary", "embed", "--force"))
    assert [path.name for path in here.iterdir()] == ["queries.safetensors"]
    assert (here / "queries.safetensors").read_text() == "old"
