"""Tests of lorkd_monailabel.active_learning.scoring: a tiny store, and the figures by another way."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lorkd_monailabel.active_learning.scoring import Scoring
from lorkd_monailabel.active_learning.uncertainty import mean_entropy
from lorkd_monailabel.experts import Base, Expert
from lorkd_monailabel.predictor import Predictor
from lorkd_monailabel.sliding_window import Cancelled
from lorkd_monailabel.store import ExpertStore, base_header, write_file
from lorkd_monailabel.volumes import Grid, Volume, canonical_image


def go_on(done: int, total: int) -> bool:
    return True


@pytest.fixture
def store(tmp_path: Path, tiny_base: Base, make_expert: Callable[..., Expert]) -> ExpertStore:
    store = ExpertStore(tmp_path / "store")
    store.publish_base(tiny_base)
    store.publish(make_expert())
    return store


@pytest.fixture
def scoring(store: ExpertStore) -> Scoring:
    return Scoring(Predictor(store))


@pytest.fixture
def volume() -> Volume:
    array = np.random.default_rng(0).normal(0, 300, (8, 8, 8)).astype(np.float32)
    return Volume(array, Grid((8, 8, 8), np.diag([3.0, 3, 3, 1])), "ct")


def test_entropy_is_that_of_the_fused_expert(scoring: Scoring, volume: Volume) -> None:
    fused = scoring.predictor.fused("abdomen")
    image, _ = canonical_image(volume, fused.spacing_mm, fused.intensities)
    with torch.no_grad():  # one window
        logits = fused.network(image[None], fused.queries.queries(["liver", "spleen"], "ct"))[0]
    wanted = mean_entropy(logits.sigmoid(), (3, 3, 3))
    assert scoring.measure("entropy", volume, "abdomen", go_on) == pytest.approx(wanted, abs=1e-4)
    assert wanted > 0.1


def test_revisions_that_are_equal_agree_and_others_do_not(
    scoring: Scoring, store: ExpertStore, volume: Volume, make_expert: Callable[..., Expert]
) -> None:
    with pytest.raises(ValueError, match="has 1 revision, but two are compared"):
        scoring.measure("revisions", volume, "abdomen", go_on)
    store.publish(make_expert())
    assert scoring.measure("revisions", volume, "abdomen", go_on) == 0
    store.publish(replace(make_expert(seed=3), spacing_mm=(2.0, 2.0, 2.0)))
    assert 0 < scoring.measure("revisions", volume, "abdomen", go_on) <= 1


def test_a_foundation_that_is_the_expert_agrees_with_it(
    store: ExpertStore, volume: Volume, tmp_path: Path, tiny_base: Base
) -> None:
    with pytest.raises(ValueError, match="the server knows no foundation"):
        Scoring(Predictor(store)).measure("foundation", volume, "abdomen", go_on)
    weights = dict(Predictor(store).fused("abdomen").network.state_dict())
    for name, wanted in (("same", weights), ("base", tiny_base.weights)):
        foundation = replace(tiny_base, weights=wanted)
        path = tmp_path / f"{name}.safetensors"
        write_file(path, base_header(foundation, "foundation"), foundation.weights)
        found = Scoring(Predictor(store), foundation=path).measure("foundation", volume, "abdomen", go_on)
        assert (found == 0) == (name == "same")


def test_a_new_revision_makes_entropy_void_and_not_the_feature(
    scoring: Scoring, store: ExpertStore, volume: Volume, make_expert: Callable[..., Expert]
) -> None:
    before = {name: scoring.made_of(name, "abdomen") for name in ("entropy", "feature")}
    seen = scoring.feature(volume, "abdomen", go_on)
    store.publish(make_expert(seed=1))
    after = {name: scoring.made_of(name, "abdomen") for name in ("entropy", "feature")}
    assert before["entropy"] != after["entropy"]
    assert before["feature"] == after["feature"]
    assert scoring.feature(volume, "abdomen", go_on) == seen


def test_no_expert_is_said(scoring: Scoring) -> None:
    with pytest.raises(ValueError, match="pelvis has no expert to score cases with"):
        scoring.made_of("entropy", "pelvis")


def test_it_ends_when_told(scoring: Scoring, volume: Volume) -> None:
    with pytest.raises(Cancelled):
        scoring.feature(volume, "abdomen", lambda done, total: False)
    with pytest.raises(Cancelled):
        scoring.measure("entropy", volume, "abdomen", lambda done, total: False)
