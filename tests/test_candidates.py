"""Tests of lorkd_monailabel.candidates."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lorkd_monailabel import candidates
from lorkd_monailabel.candidates import candidate_header, candidate_ids, discard, keep, publish_candidate
from lorkd_monailabel.experts import Base, Expert
from lorkd_monailabel.store import ExpertStore, load_expert


@pytest.fixture
def store(tmp_path: Path, tiny_base: Base, make_expert: Callable[..., Expert]) -> ExpertStore:
    """One expert of the abdomen."""
    store = ExpertStore(tmp_path / "store")
    store.publish_base(tiny_base)
    store.publish(make_expert())
    return store


def test_a_candidate_is_served_only_once_it_is_published(
    store: ExpertStore, make_expert: Callable[..., Expert]
) -> None:
    expert = make_expert(seed=3, parent=1, metrics={"liver": 0.5})
    candidate = keep(store, expert)
    assert (store.revisions("abdomen"), store.departments()) == ((1,), ("abdomen",))
    assert candidate_ids(store, "abdomen") == (candidate,)
    assert candidate_ids(store, "thorax") == ()
    assert candidate_header(store, "abdomen", candidate)["metrics"] == {"liver": 0.5}
    assert publish_candidate(store, "abdomen", candidate) == 2
    assert candidate_ids(store, "abdomen") == ()
    published = load_expert(store.path("abdomen"))
    assert (published.parent, published.metrics, published.about) == (1, {"liver": 0.5}, {"candidate": candidate})
    for name, pair in expert.factors.items():
        assert all(torch.equal(a, b) for a, b in zip(pair, published.factors[name], strict=True))


def test_a_candidate_is_discarded(store: ExpertStore, make_expert: Callable[..., Expert]) -> None:
    candidate = keep(store, make_expert(seed=3))
    discard(store, "abdomen", candidate)
    with pytest.raises(FileNotFoundError, match=r"has no candidate .*; there are: none"):
        discard(store, "abdomen", candidate)
    assert store.revisions("abdomen") == (1,)


@pytest.mark.parametrize("name", ["../../base/0001", "", "20260101-000000-abcdef", "0001", "a/b"])
def test_what_is_no_candidate_is_not_found(store: ExpertStore, name: str) -> None:
    with pytest.raises(FileNotFoundError, match="abdomen has no candidate"):
        publish_candidate(store, "abdomen", name)


def test_a_candidate_of_a_base_that_is_missing_stays(store: ExpertStore, make_expert: Callable[..., Expert]) -> None:
    candidate = keep(store, replace(make_expert(), base_sha256="0" * 64))
    with pytest.raises(ValueError, match="add that base"):
        publish_candidate(store, "abdomen", candidate)
    assert candidate_ids(store, "abdomen") == (candidate,)


def test_the_oldest_give_way(
    store: ExpertStore, make_expert: Callable[..., Expert], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(candidates, "MOST", 2)
    for day in (3, 1, 2):
        monkeypatch.setattr(candidates.time, "strftime", lambda *form, day=day: f"2026010{day}-000000")
        keep(store, make_expert())
    assert [each[:8] for each in candidate_ids(store, "abdomen")] == ["20260102", "20260103"]
