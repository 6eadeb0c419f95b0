"""Tests of lorkd_monailabel.tasks.training.decompose."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lorkd_monailabel.experts import Base
from lorkd_monailabel.learning.training import Interrupted
from lorkd_monailabel.networks.segmenter import SIZES, build_segmenter
from lorkd_monailabel.sources.catalogue import Catalogue
from lorkd_monailabel.store import BASE, ExpertStore, base_header, write_file
from lorkd_monailabel.tasks.training.decompose import decompose_foundation
from lorkd_monailabel.tasks.training.place import Place
from lorkd_monailabel.tasks.training.state import Teller
from lorkd_monailabel.text_encoder import QueryTable

MakeOptions = Callable[..., object]


@pytest.fixture
def founded(tmp_path: Path, place: Place, table: QueryTable) -> Place:
    """With a tiny foundation."""
    torch.manual_seed(5)
    weights = build_segmenter("tiny").state_dict()
    foundation = Base(network=SIZES["tiny"], weights=weights, window=8, query_space=table.space)
    path = tmp_path / "foundation.safetensors"
    write_file(path, base_header(foundation, "foundation"), foundation.weights)
    return replace(place, foundation=path)


def never() -> bool:
    return False


def test_base_and_experts_are_made_and_judged(
    founded: Place, store: ExpertStore, studies: Catalogue, options: MakeOptions, teller: Teller
) -> None:
    before = {path: path.read_bytes() for path in store.folder.rglob("*.safetensors")}
    asked = options(steps=2, warmup_steps=1, rank=1, force=True)
    results = decompose_foundation(founded, studies, asked, teller=teller, stop=never)
    assert {name: result["revision"] for name, result in results.items()} == {"abdomen": 2}
    assert {path: path.read_bytes() for path in before} == before
    expert, base = store.load("abdomen"), store.base()
    assert (expert.base_sha256, expert.parent, base.revision) == (base.sha256, 1, 2)
    assert set(expert.ranks.values()) == {1, 2}
    assert expert.about["comparison"]["revision"] == 1
    assert teller.state.dice["abdomen"]["current"] is not None
    assert base.about["foundation"]
    assert list((founded.folder / "unfinished").iterdir()) == []


def test_it_goes_on_after_a_stop_and_publishes_nothing_before(
    founded: Place, store: ExpertStore, studies: Catalogue, options: MakeOptions, teller: Teller
) -> None:
    asked = options(steps=3, warmup_steps=2, rank=1)
    stages = []

    def stop() -> bool:
        stages.append((teller.state.stage, teller.state.step))
        return stages[-1] == ("train", 1)

    with pytest.raises(Interrupted):
        decompose_foundation(founded, studies, asked, teller=teller, stop=stop)
    assert ("warmup", 2) in stages
    assert (store.newest(BASE), store.newest("abdomen")) == (1, 1)
    stages.clear()
    decompose_foundation(founded, studies, replace(asked, force=True), teller=teller, stop=stop)
    assert [stage for stage in stages if stage[0] in ("warmup", "train") and stage[1]] == [("train", 2), ("train", 3)]
    assert (store.newest(BASE), store.newest("abdomen")) == (2, 2)


def test_without_a_foundation_it_says_how_to_give_one(
    place: Place, studies: Catalogue, options: MakeOptions, teller: Teller
) -> None:
    with pytest.raises(ValueError, match="start the server with --conf foundation FILE"):
        decompose_foundation(place, studies, options(), teller=teller, stop=never)
