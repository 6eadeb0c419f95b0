"""Tests of train.scoring.models: what is evaluated, and what it costs."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lorkd_monailabel.departments import structure
from lorkd_monailabel.experts import Base, Expert, as_float, plain_network
from lorkd_monailabel.pins import write_pin
from lorkd_monailabel.predictor import Predictor
from lorkd_monailabel.prompts import Target
from lorkd_monailabel.store import ExpertStore, base_header, write_file
from lorkd_monailabel.text_encoder import QueryTable
from lorkd_monailabel.volumes import Grid, Volume, canonical_image
from train.scoring.models import Model, cost_of, open_model

TRAINED = {"training": {"data": {"spacing_mm": {"default": 3.0, "brain": [1.0, 1.0, 2.0]}}}}


def write_foundation(path: Path, base: Base, **changed: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    foundation = replace(base, **{"about": TRAINED, **changed})
    write_file(path, base_header(foundation, "foundation"), foundation.weights)
    return path


def shifted(base: Base) -> Base:
    """The same network with other weights."""
    return replace(base, weights={name: tensor * 0.5 for name, tensor in base.weights.items()})


@pytest.fixture
def opened(tmp_path: Path) -> Callable[..., Model]:
    def open_it(path: Path, *departments: str, **spacing_mm: float) -> Model:
        folder = tmp_path / f"served{len(list(tmp_path.glob('served*')))}"
        return open_model(path, departments=departments or ("abdomen",), folder=folder, spacing_mm=spacing_mm)

    return open_it


def test_a_foundation_answers_as_the_plain_network_does(
    tmp_path: Path, tiny_base: Base, opened: Callable[..., Model], table: QueryTable
) -> None:
    base = replace(tiny_base, window=16, about=TRAINED)  # one window
    path = write_foundation(tmp_path / "foundation.safetensors", base)
    model = opened(path, "abdomen", "brain")
    assert (model.kind, [*model.revisions]) == ("foundation", ["abdomen", "brain"])
    array = np.random.default_rng(0).normal(0, 300, (16, 8, 8)).astype(np.float32)
    volume = Volume(array, Grid((16, 8, 8), np.diag([3.0, 3.0, 3.0, 1.0])), "ct")
    prediction = Predictor(model.store).segment(volume, [Target("x", structure("liver"))])

    network = plain_network(base.network, as_float(base.weights))
    image, _ = canonical_image(volume, 3.0)
    with torch.no_grad():
        logits = network(image[None], table.queries(["liver"], "ct"))[0, 0]
    assert 0 < np.count_nonzero(prediction.label_map.array) < array.size
    agree = (logits > 0).numpy() == (prediction.label_map.array == 1)
    assert agree[logits.abs().numpy() > 0.02].all()  # bfloat16 where the processor has it


def test_a_foundation_knows_every_structure_of_the_query_table_at_the_spacing_it_was_trained_on(
    tmp_path: Path, tiny_base: Base, opened: Callable[..., Model]
) -> None:
    path = write_foundation(tmp_path / "any name.safetensors", tiny_base)
    store = opened(path, "abdomen", "brain").store
    assert {"liver", "spleen", "pancreas"} <= set(store.header("abdomen")["structures"])
    assert store.header("abdomen")["spacing_mm"] == [3.0, 3.0, 3.0]
    assert store.header("brain")["spacing_mm"] == [1.0, 1.0, 2.0]
    assert opened(path, "brain", brain=4.0).store.header("brain")["spacing_mm"] == [4.0] * 3
    sat = write_foundation(tmp_path / "sat.safetensors", tiny_base, about={"spacing_mm": [1.0, 1.0, 3.0]})
    assert opened(sat, "brain").store.header("brain")["spacing_mm"] == [1.0, 1.0, 3.0]


def test_specialists_serve_their_own_departments(tmp_path: Path, tiny_base: Base, opened: Callable[..., Model]) -> None:
    write_foundation(tmp_path / "all" / "abdomen.safetensors", tiny_base)
    other = shifted(tiny_base)
    write_foundation(tmp_path / "all" / "thorax" / "foundation.safetensors", other)
    model = opened(tmp_path / "all", "abdomen", "brain", "thorax")
    assert (model.kind, [*model.revisions]) == ("specialists", ["abdomen", "thorax"])
    assert model.store.load("abdomen").base_sha256 == tiny_base.sha256
    assert model.store.load("thorax").base_sha256 == other.sha256
    one = sum(tensor.numel() for tensor in tiny_base.weights.values())
    assert (cost_of(model).parameters, cost_of(model).parameters_of_one) == (2 * one, one)


def test_a_store_is_served_as_it_is_and_its_cost_counted(
    tmp_path: Path, tiny_base: Base, make_expert: Callable[..., Expert], opened: Callable[..., Model]
) -> None:
    store = ExpertStore(tmp_path / "store")
    store.publish_base(tiny_base)
    experts = [make_expert("abdomen", rank=2), make_expert("thorax"), make_expert("spine")]
    for expert in experts:
        store.publish(expert)
    model = opened(store.folder, "abdomen", "thorax", "brain")
    assert (model.kind, [*model.revisions]) == ("store", ["thorax", "abdomen"])
    cost = cost_of(model)
    one = sum(tensor.numel() for tensor in tiny_base.weights.values())
    factors = sum(a.numel() + b.numel() for expert in experts[:2] for a, b in expert.factors.values())
    assert (cost.parameters, cost.parameters_of_one) == (one + factors, one)
    assert cost.ranks == {"thorax": 1, "abdomen": 2}
    assert cost.window == (8, 8, 8)
    before = model.sha256
    store.publish(make_expert("thorax", seed=5))
    assert opened(store.folder, "abdomen", "thorax").sha256 != before


def test_what_a_store_serves_is_what_is_hashed_and_counted(
    tmp_path: Path, tiny_base: Base, make_expert: Callable[..., Expert], opened: Callable[..., Model]
) -> None:
    store = ExpertStore(tmp_path / "store")
    store.publish_base(tiny_base)
    for rank in (2, 1):
        store.publish(make_expert("abdomen", rank=rank))
    newest = opened(store.folder)
    assert cost_of(newest).ranks == {"abdomen": 1}
    write_pin(store.folder, "abdomen", 1)
    pinned = opened(store.folder)
    assert pinned.sha256 != newest.sha256
    assert cost_of(pinned).ranks == {"abdomen": 2}


def test_operations_grow_with_the_window(tmp_path: Path, tiny_base: Base, opened: Callable[..., Model]) -> None:
    """What does not grow with the voxels is what happens to the queries alone."""
    one, two, eight = (
        cost_of(opened(write_foundation(tmp_path / f"{number}.safetensors", replace(tiny_base, window=window)))).gflops
        for number, window in enumerate(((8, 8, 8), (16, 8, 8), (16, 16, 16)))
    )
    assert eight - one == pytest.approx(7 * (two - one))
    assert two > 1.5 * one


def test_a_path_that_is_no_model_is_one_sentence(tmp_path: Path, tiny_base: Base, opened: Callable[..., Model]) -> None:
    for path in (tmp_path / "nothing", tmp_path):
        with pytest.raises(ValueError, match="is no model: give a store"):
            opened(path)
    with pytest.raises(ValueError, match="does not say its spacing for abdomen; set spacing_mm"):
        opened(write_foundation(tmp_path / "silent.safetensors", tiny_base, about={"training": "long"}))
    with pytest.raises(ValueError, match="was trained with another query table; set queries to its own"):
        opened(write_foundation(tmp_path / "other.safetensors", tiny_base, query_space="other"))
