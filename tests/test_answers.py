"""What Predictor answers: experts and confidence, with and without overlaps, and where memory runs out."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lorkd_monailabel import memory
from lorkd_monailabel import predictor as predictor_module
from lorkd_monailabel.experts import Base, Expert
from lorkd_monailabel.memory import Extent
from lorkd_monailabel.predictor import Predictor
from lorkd_monailabel.prompts import resolve
from lorkd_monailabel.store import ExpertStore
from lorkd_monailabel.volumes import Grid, Volume

ASKED = "liver; spleen; stomach; heart"


@pytest.fixture
def store(tmp_path: Path, tiny_base: Base, make_expert: Callable[..., Expert]) -> ExpertStore:
    """Abdomen and thorax on the volume's own grid, in windows that hold all of it."""
    store = ExpertStore(tmp_path / "store")
    store.publish_base(replace(tiny_base, window=16))
    store.publish(make_expert())
    store.publish(make_expert("thorax", seed=1, structures=("heart", "trachea")))
    return store


@pytest.fixture
def volume() -> Volume:
    """12 x 10 x 14 voxels of 3 mm, which is the experts' spacing, so that no mask is interpolated."""
    array = np.random.default_rng(0).normal(0, 300, (12, 10, 14)).astype(np.float32)
    return Volume(array, Grid((12, 10, 14), np.diag([3.0, 3.0, 3.0, 1.0])), "ct")


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, np.ndarray]]:
    """The probabilities of each structure, on the whole grid; 0 where they were left out."""
    found: dict[str, np.ndarray] = {}

    class Merging(predictor_module.Merging):
        def add(self, segment, probability, part=None) -> None:  # type: ignore[no-untyped-def]
            whole = np.zeros((12, 10, 14), np.float32)
            whole[part] = probability
            found[segment.structure.name] = whole
            super().add(segment, probability, part)

    monkeypatch.setattr(predictor_module, "Merging", Merging)
    return found


def test_confidence_is_the_mean_probability_of_what_was_won(store, volume, seen) -> None:
    targets, _ = resolve(ASKED)
    prediction = Predictor(store).segment(volume, targets)
    assert [each.expert for each in prediction.answers] == ["abdomen/0001", "abdomen/0001", None, "thorax/0001"]
    assert prediction.answers[2].confidence is None
    assert prediction.layers is None
    confidences = []
    for answer in prediction.answers:
        if answer.status == "found":
            own = prediction.label_map.array == answer.value
            assert answer.confidence == pytest.approx(seen[answer.structure][own].mean(), rel=1e-6)
            confidences.append(answer.confidence)
    assert len(set(confidences)) == 3
    assert all(0.5 < each < 1 for each in confidences)


def test_absent_structure_has_no_confidence(store, volume, make_expert) -> None:
    bias = torch.tensor([0.0, 0.0, 0.0, 0.0, -1e3])
    store.publish(make_expert(norms={"mask_embedding.2.bias": bias}))
    (answer,) = Predictor(store).segment(volume, resolve("liver")[0]).answers
    assert (answer.status, answer.voxels, answer.confidence, answer.expert) == ("absent", 0, None, "abdomen/0002")


def test_with_overlaps_kept_each_has_all_that_it_claims(store, volume, seen) -> None:
    targets, _ = resolve(ASKED)
    merged = Predictor(store).segment(volume, targets)
    prediction = Predictor(store).segment(volume, targets, keep_overlaps=True)
    assert prediction.layers is not None
    np.testing.assert_array_equal(prediction.label_map.array, merged.label_map.array)
    masks = {segment.structure.name: mask for segment, mask in prediction.layers.masks()}
    for kept, won in zip(prediction.answers, merged.answers, strict=True):
        if kept.value is None:
            continue
        claimed = seen[kept.structure] > 0.5
        np.testing.assert_array_equal(masks[kept.structure], claimed)
        assert kept.voxels == claimed.sum() >= won.voxels
        assert kept.ml == pytest.approx(claimed.sum() * 0.027)
        assert kept.confidence == pytest.approx(seen[kept.structure][claimed].mean(), rel=1e-6)
    assert sum(each.voxels for each in prediction.answers) > sum(each.voxels for each in merged.answers)
    assert {segment.value for segment, _ in prediction.layers.masks()} == {1, 2, 3}


def test_fallback_is_told_and_gives_what_smaller_windows_give(store, volume, tiny_base, make_expert, tmp_path) -> None:
    small = ExpertStore(tmp_path / "small")
    small.publish_base(replace(tiny_base, window=(6, 4, 6)))
    small.publish(make_expert())
    targets, _ = resolve("liver; spleen")
    predictor = Predictor(store)
    network = predictor.fused("abdomen").network

    def refuse(module: torch.nn.Module, given: tuple[torch.Tensor, ...]) -> None:
        if max(given[0].shape[2:]) > 6:
            raise torch.OutOfMemoryError("CUDA out of memory")

    expected = Predictor(small).segment(volume, targets)
    assert expected.fallback is None
    with network.register_forward_pre_hook(refuse):
        prediction = predictor.segment(volume, targets)
    assert prediction.fallback == (
        "abdomen: cpu has too little memory for windows of 12 x 10 x 14 voxels, "
        "so windows of 6 x 4 x 6 were used on cpu"
    )
    np.testing.assert_array_equal(prediction.label_map.array, expected.label_map.array)
    assert predictor.segment(volume, targets).fallback is None


def test_seconds_by_stage(store, volume) -> None:
    prediction = Predictor(store).segment(volume, resolve(ASKED)[0])
    assert list(prediction.seconds) == ["prepare", "windows", "merge"]
    assert all(seconds > 0 for seconds in prediction.seconds.values())


def test_memory_is_that_of_the_experts_asked(store, monkeypatch) -> None:
    extent = Extent((100, 100, 100), (3.0, 3.0, 3.0))  # 4 MB a mask
    targets, _ = resolve("liver; spleen; heart; brain")
    predictor = Predictor(store)
    monkeypatch.setattr(memory, "free_bytes", lambda: 20_000_000)  # the volume, image, weights and two masks
    predictor.check_memory(extent, targets)
    monkeypatch.setattr(memory, "free_bytes", lambda: 19_999_999)
    with pytest.raises(ValueError, match="needs at least 0"):
        predictor.check_memory(extent, targets)
    predictor.check_memory(None, targets)
