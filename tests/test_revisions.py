"""Tests of lorkd_monailabel.revisions."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from lorkd_monailabel import revisions
from lorkd_monailabel.candidates import candidate_ids, keep, publish_candidate
from lorkd_monailabel.experts import Base, Expert
from lorkd_monailabel.store import ExpertStore


@pytest.fixture
def store(tmp_path: Path, tiny_base: Base, make_expert: Callable[..., Expert]) -> ExpertStore:
    """Two revisions of the abdomen, one of the thorax."""
    store = ExpertStore(tmp_path / "store")
    store.publish_base(tiny_base)
    about = {"trained_on": ["a", "b"], "validated_on": ["v"], "date": "2026-01-01T00:00:00Z"}
    store.publish(make_expert(metrics={"liver": 0.8, "spleen": 0.6}, about=about))
    more = {"trained_on": ["b", "c"], "validated_on": ["v"]}
    structures = ("liver", "pancreas")
    store.publish(make_expert(rank=2, parent=1, metrics={"liver": 0.9}, structures=structures, about=more))
    store.publish(make_expert("thorax", structures=("heart",)))
    return store


def test_the_list(store: ExpertStore, make_expert: Callable[..., Expert]) -> None:
    keep(store, make_expert())
    revisions.pin(store, "abdomen", 1)
    thorax, abdomen = revisions.experts(store)
    assert thorax["department"] == "thorax"
    assert abdomen == {
        "department": "abdomen",
        "served": 1,
        "newest": 2,
        "pinned": 1,
        "revisions": 2,
        "candidates": 1,
    }


def test_the_history_is_newest_first_and_survives_damage(
    store: ExpertStore, make_expert: Callable[..., Expert]
) -> None:
    candidate = keep(store, make_expert(parent=2, metrics={"liver": 0.1}))
    store.path("abdomen", 1).write_bytes(b"no")
    told = revisions.history(store, "abdomen")
    newest, oldest = told["revisions"]
    assert (newest["revision"], newest["parent"], newest["dice"], newest["ranks"]) == (2, 1, 0.9, [2, 2])
    assert (newest["cases"], newest["validation"], newest["problem"]) == (["b", "c"], ["v"], None)
    assert (oldest["revision"], "is damaged" in oldest["problem"]) == (1, True)
    assert [(each["id"], each["metrics"]) for each in told["candidates"]] == [(candidate, {"liver": 0.1})]


def test_a_candidate_that_is_published_meanwhile_is_not_told(
    store: ExpertStore, make_expert: Callable[..., Expert], monkeypatch: pytest.MonkeyPatch
) -> None:
    gone, stays = keep(store, make_expert(parent=2)), keep(store, make_expert(parent=2))
    listed = candidate_ids(store, "abdomen")
    publish_candidate(store, "abdomen", gone)
    monkeypatch.setattr(revisions, "candidate_ids", lambda *_: listed)
    assert [each["id"] for each in revisions.history(store, "abdomen")["candidates"]] == [stays]


def test_the_difference(store: ExpertStore) -> None:
    found = revisions.difference(store, "abdomen", 1, 2)
    assert found["dice"] == [pytest.approx(0.7), 0.9]
    assert found["metrics"] == {
        "liver": {"a": 0.8, "b": 0.9, "change": pytest.approx(0.1)},
        "spleen": {"a": 0.6, "b": None, "change": None},
    }
    assert found["structures"] == {"added": ["pancreas"], "removed": ["spleen"], "kept": 1}
    assert found["cases"] == {"added": ["c"], "removed": ["a"], "kept": 1}
    assert found["ranks"] == {name: [1, 2] for name in store.header("abdomen", 1)["ranks"]}
    assert (found["same_validation"], found["same_base"]) == (True, True)
    assert revisions.difference(store, "abdomen", 2, 2)["ranks"] == {}


def test_rolling_back_publishes_the_old_one_anew(store: ExpertStore) -> None:
    assert revisions.roll_back(store, "abdomen", 1) == 3
    told = revisions.revision(store, "abdomen", 3)
    assert (told["copy_of"], told["metrics"], store.served("abdomen")) == (1, {"liver": 0.8, "spleen": 0.6}, 3)
    with pytest.raises(ValueError, match="revision 3 is the newest already"):
        revisions.roll_back(store, "abdomen", 3)


def test_rolling_back_does_not_unpin(store: ExpertStore) -> None:
    assert revisions.pin(store, "abdomen", 2) == 2
    revisions.roll_back(store, "abdomen", 1)
    assert store.served("abdomen") == 2
    assert revisions.pin(store, "abdomen", None) == 3


def test_what_can_not_be_served_is_not_pinned(store: ExpertStore) -> None:
    store.path("abdomen", 1).write_bytes(b"no")
    with pytest.raises(ValueError, match="is damaged"):
        revisions.pin(store, "abdomen", 1)
    assert store.served("abdomen") == 2


@pytest.mark.parametrize(
    ("department", "number", "message"),
    [
        ("brain", 1, r"brain has no expert \(experts exist for: thorax, abdomen\)"),
        ("abdomen", 0, "abdomen has no revision 0; it has 1 to 2"),
        ("abdomen", 3, "abdomen has no revision 3; it has 1 to 2"),
    ],
)
def test_what_is_not_there(store: ExpertStore, department: str, number: int, message: str) -> None:
    for act in (revisions.revision, revisions.roll_back, revisions.pin):
        with pytest.raises(FileNotFoundError, match=message):
            act(store, department, number)
    with pytest.raises(ValueError, match="department 'belly' is unknown"):
        revisions.pin(store, "belly", 1)


def test_old_drafts_are_swept_away(store: ExpertStore) -> None:
    old, new = store.folder / "abdomen" / ".draft-old", store.folder / "base" / ".draft-new"
    for draft in (old, new):
        draft.write_bytes(b"half")
    os.utime(old, (1.0, 1.0))
    revisions.sweep_drafts(store)
    assert (old.exists(), new.exists(), store.newest("abdomen")) == (False, True, 2)
