"""Tests of lorkd_monailabel.pins, and of what the store serves."""

from collections.abc import Callable
from pathlib import Path

import pytest

from lorkd_monailabel.experts import Base, Expert
from lorkd_monailabel.pins import PINS, pinned, write_pin
from lorkd_monailabel.predictor import Predictor
from lorkd_monailabel.store import ExpertStore


@pytest.fixture
def store(tmp_path: Path, tiny_base: Base, make_expert: Callable[..., Expert]) -> ExpertStore:
    """Two revisions of the abdomen, one of the thorax."""
    store = ExpertStore(tmp_path / "store")
    store.publish_base(tiny_base)
    store.publish(make_expert())
    store.publish(make_expert(seed=1, structures=("liver", "spleen", "pancreas")))
    store.publish(make_expert("thorax", structures=("heart",)))
    return store


def test_a_pin_holds_whatever_is_published_and_survives(store: ExpertStore, make_expert: Callable[..., Expert]) -> None:
    assert store.served("abdomen") == 2
    write_pin(store.folder, "abdomen", 1)
    write_pin(store.folder, "thorax", 1)
    assert store.publish(make_expert(seed=2)) == 3
    again = ExpertStore(store.folder)
    assert (again.served("abdomen"), again.newest("abdomen"), pinned(again.folder, "thorax")) == (1, 3, 1)
    write_pin(store.folder, "abdomen", None)
    assert (again.served("abdomen"), again.served("thorax"), again.served("brain")) == (3, 1, None)


def test_the_predictor_serves_the_pinned_one(store: ExpertStore) -> None:
    predictor = Predictor(store)
    assert predictor.structures("abdomen") == ("liver", "spleen", "pancreas")
    assert predictor.fused("abdomen").revision == 2
    write_pin(store.folder, "abdomen", 1)
    assert predictor.structures("abdomen") == ("liver", "spleen")
    assert predictor.fused("abdomen").revision == 1


def test_a_pin_of_a_revision_that_is_gone_gives_way(store: ExpertStore) -> None:
    write_pin(store.folder, "abdomen", 9)
    assert store.served("abdomen") == 2


@pytest.mark.parametrize("text", ["{", '{"abdomen": "one"}', '{"abdomen": true}'])
def test_damaged_pins_serve_nothing(store: ExpertStore, text: str) -> None:
    (store.folder / PINS).write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"pins\.json"):
        store.served("abdomen")
