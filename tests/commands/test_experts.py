"""Tests of `lorkd experts`."""

from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest
import torch

from lorkd_monailabel.commands import experts, options
from lorkd_monailabel.commands.experts import described
from lorkd_monailabel.store import ExpertStore


def test_the_list(lorkd: Callable, store: ExpertStore) -> None:
    outcome = lorkd("experts", "--store", store.folder)
    assert (outcome.status, outcome.err) == (0, "")
    header, thorax, abdomen, where = outcome.out.splitlines()
    assert header.split() == list(experts.HEADER)
    date = datetime.fromtimestamp(store.path("abdomen").stat().st_mtime).strftime("%Y-%m-%d %H:%M")
    assert thorax.split()[:6] == ["thorax", "1", "1", "2", "1", "-"]
    assert abdomen.split() == ["abdomen", "2", "2", "3", "2", "-", *date.split()]
    assert where == f"in {store.folder}"


def test_sources_and_ranks(lorkd: Callable, store: ExpertStore, make_expert: Callable) -> None:
    ranks = make_expert().ranks
    mixed = {name: 1 + index % 3 for index, name in enumerate(ranks)}
    store.publish(make_expert("brain", structures=("brain",), ranks=mixed, about={"sources": ["one", "t\x1bwo"]}))
    line = lorkd("experts", "--store", store.folder).out.splitlines()[1]
    assert "1 to 3  one, t?wo" in line


def test_a_damaged_expert_does_not_hide_the_others(lorkd: Callable, store: ExpertStore) -> None:
    store.path("thorax").write_bytes(b"nothing")
    outcome = lorkd("experts", "--store", store.folder)
    assert outcome.status == 1
    assert outcome.table()["thorax"] == ["1", "1", "-", "damaged"]
    assert outcome.table()["abdomen"][0] == "2"
    (line,) = outcome.err.splitlines()
    assert line.startswith(f"lorkd: {store.path('thorax')} is damaged")


def test_no_store_and_no_expert(lorkd: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert lorkd("experts", "--store", tmp_path / "no").err.endswith("is not a folder that exists; check --store\n")
    outcome = lorkd("experts", "--store", tmp_path)
    assert outcome.status == 2
    assert outcome.err.startswith(f"lorkd: store {tmp_path} holds no expert; train one")
    monkeypatch.setattr(options, "SHIPPED_STORE", tmp_path / "shipped")
    assert lorkd("experts").err == (
        f"lorkd: no store is shipped at {tmp_path / 'shipped'}; name one with --store FOLDER\n"
    )


def test_the_shipped_store_is_the_default(lorkd: Callable, store: ExpertStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(options, "SHIPPED_STORE", store.folder)
    assert lorkd("experts").out == lorkd("experts", "--store", store.folder).out


def test_show(lorkd: Callable, store: ExpertStore) -> None:
    newest = lorkd("experts", "show", "abdomen", "--store", store.folder)
    assert (newest.status, newest.err) == (0, "")
    lines = newest.out.splitlines()
    assert lines[0].startswith(f"{store.path('abdomen', 2)} (")
    assert "structures: liver, spleen, pancreas" in lines
    assert "parent: 1" in lines
    assert f"ranks: 2 ({len(store.header('abdomen')['ranks'])} weights)" in lines
    assert "metrics: none" in lines
    old = lorkd("experts", "--store", store.folder, "show", "abdomen", "--revision", 1).out.splitlines()
    assert old[old.index("metrics:") + 1] == "  liver: 0.9"
    assert old[old.index("about:") + 1 : old.index("about:") + 3] == ["  cases: 7", '  sources: ["set one", "set two"]']
    assert "window: 8" in lorkd("experts", "show", "base", "--store", store.folder).out.splitlines()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("show", "spine"), "department 'spine' has no expert in "),
        (("show", "belly"), "department 'belly' is unknown"),
        (("show", "abdomen", "--revision", "9"), "abdomen has no revision 9; it has 1 to 2"),
        (("show", "abdomen", "--revision", "x"), "argument --revision: invalid int value: 'x'"),
        (("rollback", "abdomen", "2"), "abdomen revision 2 is the newest already; name an older one"),
        (("rollback", "abdomen", "0"), "abdomen has no revision 0; it has 1 to 2"),
        (("rollback", "base", "1"), "is of kind base, not expert"),
    ],
)
def test_what_can_not_be(lorkd: Callable, store: ExpertStore, words: tuple[str, ...], message: str) -> None:
    before = sorted(store.folder.rglob("*"))
    outcome = lorkd("experts", "--store", store.folder, *words)
    assert (outcome.status, outcome.out) == (2, "")
    (line,) = outcome.err.splitlines()
    assert message in line
    assert sorted(store.folder.rglob("*")) == before


def test_rollback_publishes_the_old_one_anew(lorkd: Callable, store: ExpertStore) -> None:
    kept = {path: path.read_bytes() for path in store.folder.rglob("*.safetensors")}
    outcome = lorkd("experts", "rollback", "abdomen", 1, "--store", store.folder)
    assert (outcome.status, outcome.err) == (0, "")
    assert outcome.out.startswith("abdomen: revision 1 is published anew as revision 3, which is the newest now")
    assert {path: path.read_bytes() for path in kept} == kept
    old, new = store.load("abdomen", 1), store.load("abdomen")
    assert (new.revision, new.structures, new.metrics, new.parent) == (3, old.structures, old.metrics, old.parent)
    assert new.about == {**old.about, "copy_of": 1}
    assert all(
        torch.equal(a, b) for name in old.factors for a, b in zip(old.factors[name], new.factors[name], strict=True)
    )


def test_rollback_from_a_damaged_revision(lorkd: Callable, store: ExpertStore) -> None:
    store.path("abdomen").write_bytes(b"")
    assert lorkd("experts", "rollback", "abdomen", 1, "--store", store.folder).status == 0
    assert store.load("abdomen").structures == ("liver", "spleen")


def test_rollback_wants_its_store_named(lorkd: Callable, store: ExpertStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(options, "SHIPPED_STORE", store.folder)
    outcome = lorkd("experts", "rollback", "abdomen", 1)
    assert outcome.status == 2
    assert outcome.err.startswith("lorkd: name the store to change with --store; a server that was told none uses ")
    assert store.newest("abdomen") == 2


def test_a_header_in_lines() -> None:
    header = {
        "scales": {},
        "structures": ["long name"] * 20,
        "about": {"a": {"b": [1, None]}},
        "parent": 0,
        "x": "a\nb",
    }
    lines = list(described(header))
    assert lines[0] == "scales: - (0 weights)"
    assert lines[2].startswith("    ")
    assert max(map(len, lines)) <= experts.WIDTH
    assert lines[-4:] == ["about:", '  a: {"b": [1, null]}', "parent: 0", "x: a?b"]
