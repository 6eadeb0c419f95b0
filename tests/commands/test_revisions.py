"""Tests of the verbs of `lorkd experts` about revisions; rolling back is in test_experts."""

from collections.abc import Callable

import pytest

from lorkd_monailabel import shipped
from lorkd_monailabel.audit import Audit
from lorkd_monailabel.candidates import candidate_ids, keep
from lorkd_monailabel.store import ExpertStore


def actions(store: ExpertStore) -> list[str]:
    return [line["action"] for line in Audit(store.folder / "audit.jsonl").lines()]


def test_pin_and_unpin(lorkd: Callable, store: ExpertStore) -> None:
    pinned = lorkd("experts", "pin", "abdomen", 1, "--store", store.folder)
    assert (pinned.status, pinned.err) == (0, "")
    assert pinned.out == "abdomen: revision 1 is pinned; running servers use revision 1 from their next request on\n"
    assert store.served("abdomen") == 1
    assert "abdomen: revision 1 is pinned and served" in lorkd("experts", "--store", store.folder).out.splitlines()
    back = lorkd("experts", "rollback", "abdomen", 1, "--store", store.folder)
    assert "revision 1 is pinned and goes on being served" in back.out
    free = lorkd("experts", "unpin", "abdomen", "--store", store.folder)
    assert free.out == "abdomen: nothing is pinned; running servers use revision 3 from their next request on\n"
    assert store.served("abdomen") == 3
    assert actions(store) == ["pin", "roll back", "unpin"]


def test_diff(lorkd: Callable, store: ExpertStore, make_expert: Callable) -> None:
    store.publish(make_expert(metrics={"liver": 0.95, "spleen": 0.5}, about={"trained_on": ["ab"]}))
    outcome = lorkd("experts", "diff", "abdomen", 1, 3, "--store", store.folder)
    lines = outcome.out.splitlines()
    assert outcome.status == 0
    assert [line.split() for line in lines[:3]] == [
        ["structure", "a", "b", "change"],
        ["liver", "0.9000", "0.9500", "0.0500"],
        ["spleen", "-", "0.5000", "-"],
    ]
    assert lines[3:] == ["structures: 2 kept", "cases: 0 kept; added: ab"]
    ranks = lorkd("experts", "diff", "abdomen", 1, 2, "--store", store.folder).out
    assert "structures: 2 kept; added: pancreas" in ranks
    assert ranks.count("rank of ") == len(store.header("abdomen", 1)["ranks"])


def test_candidates(lorkd: Callable, store: ExpertStore, make_expert: Callable) -> None:
    about = {"comparison": {"revision": 2, "new": 0.5, "current": 0.75, "forced": False}, "date": "2026-01-02"}
    first, second = (keep(store, make_expert(seed=seed, parent=2, about=about)) for seed in (5, 6))
    listed = lorkd("experts", "candidates", "abdomen", "--store", store.folder)
    assert listed.table()[first] == ["2", "2", "0.5000", "0.7500", "2026-01-02"]
    published = lorkd("experts", "candidates", "abdomen", "--publish", first, "--store", store.folder)
    assert published.out.startswith(f"abdomen: candidate {first} is published as revision 3, and running servers use")
    removed = lorkd("experts", "candidates", "abdomen", "--discard", second, "--store", store.folder)
    assert removed.out == f"abdomen: candidate {second} is removed\n"
    assert candidate_ids(store, "abdomen") == ()
    assert lorkd("experts", "candidates", "abdomen", "--store", store.folder).out == "abdomen has no candidate\n"
    assert actions(store) == ["publish candidate", "discard candidate"]


@pytest.mark.parametrize("words", [("pin", "abdomen", "1"), ("unpin", "abdomen")])
def test_what_changes_a_store_wants_it_named(
    lorkd: Callable, store: ExpertStore, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    monkeypatch.setattr(shipped, "STORE", store.folder)
    assert lorkd("experts", *words).err.startswith("lorkd: name the store to change with --store")
    assert not (store.folder / "pins.json").exists()
