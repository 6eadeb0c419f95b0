"""Tests of lorkd_monailabel.predictor: random tiny experts of two departments on oblique volumes."""

import math
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.func import functional_call

from lorkd_monailabel import masks as masks_module
from lorkd_monailabel.departments import structure
from lorkd_monailabel.experts import Base, Expert, fuse
from lorkd_monailabel.networks.segmenter import build_segmenter
from lorkd_monailabel.predictor import Predictor
from lorkd_monailabel.prompts import Target
from lorkd_monailabel.resampling import resample
from lorkd_monailabel.sliding_window import Cancelled
from lorkd_monailabel.store import ExpertStore
from lorkd_monailabel.text_encoder import QueryTable
from lorkd_monailabel.volumes import Grid, Volume, canonical_grid, normalise

MakeExpert = Callable[..., Expert]
BIAS = "mask_embedding.2.bias"  # its last element is added to every logit


def targets(*names: str) -> list[Target]:
    return [Target(f"the {name}", structure(name)) for name in names]


def everywhere(value: float) -> dict[str, torch.Tensor]:
    return {BIAS: torch.tensor([0.0, 0.0, 0.0, 0.0, value])}


@pytest.fixture
def store(tmp_path: Path, tiny_base: Base, make_expert: MakeExpert) -> ExpertStore:
    """Abdomen at 3 mm, thorax at 1.5 mm."""
    store = ExpertStore(tmp_path / "store")
    store.publish_base(tiny_base)
    store.publish(make_expert())
    store.publish(make_expert("thorax", seed=1, spacing_mm=1.5, structures=("heart", "trachea")))
    return store


@pytest.fixture
def volume() -> Volume:
    """8 x 6 x 8 voxels of 3 mm, 20 degrees oblique, stored with its axes permuted and one of them flipped."""
    turn = math.radians(20)
    rotation = np.array([[math.cos(turn), -math.sin(turn), 0], [math.sin(turn), math.cos(turn), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = 3 * rotation @ np.array([[0, -1, 0], [0, 0, 1], [1, 0, 0]])
    affine[:3, 3] = [10, -20, 30]
    array = np.random.default_rng(0).normal(0, 300, (8, 6, 8)).astype(np.float32)
    return Volume(array, Grid((8, 6, 8), affine), "ct")


def test_label_map_of_two_departments_by_an_independent_way(
    tmp_path: Path,
    tiny_base: Base,
    make_expert: MakeExpert,
    volume: Volume,
    table: QueryTable,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(masks_module, "has_fast_bf16", lambda device: False)
    base = replace(tiny_base, window=16)  # one window holds all of either grid
    store = ExpertStore(tmp_path / "store")
    store.publish_base(base)
    experts = {
        "abdomen": make_expert(),
        "thorax": make_expert("thorax", seed=1, spacing_mm=1.5, structures=("heart", "trachea")),
    }
    for expert in experts.values():
        store.publish(expert)
    asked = targets("spleen", "heart", "liver")
    prediction = Predictor(store).segment(volume, asked)

    probabilities = np.zeros((4, 8, 6, 8))
    probabilities[0] = 0.5
    for value, target in enumerate(asked, start=1):
        expert = experts[target.structure.department]
        grid = canonical_grid(volume.grid, expert.spacing_mm)
        image = resample(torch.from_numpy(normalise(volume.array, "ct"))[None], volume.grid, grid, "linear")
        weights = fuse(base.weights, expert.factors, expert.scales)
        query = table.queries([target.structure.name], "ct")
        logits = functional_call(build_segmenter("tiny").eval(), weights, (image[None], query))
        mask = resample(logits[0].detach().sigmoid(), grid, volume.grid, "linear")
        probabilities[value] = mask[0].numpy()
    expected = probabilities.argmax(axis=0)
    assert prediction.label_map.array.shape == (8, 6, 8)
    assert prediction.label_map.grid == volume.grid
    assert (prediction.label_map.array == expected).mean() > 0.995  # all but rounding at the threshold
    assert all(20 < (expected == value).sum() for value in (1, 2, 3))


def test_the_same_patient_stored_with_other_axes_gets_the_same_labels(store: ExpertStore, volume: Volume) -> None:
    predictor, asked = Predictor(store), targets("liver", "heart")
    prediction = predictor.segment(volume, asked)
    affine = volume.grid.affine @ np.array([[0, -1, 0, 7], [0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 1]])
    array = np.ascontiguousarray(volume.array.transpose(2, 0, 1)[:, ::-1])
    other = predictor.segment(Volume(array, Grid((8, 8, 6), affine), "ct"), asked)
    labels = prediction.label_map.array.transpose(2, 0, 1)[:, ::-1]
    assert (other.label_map.array == labels).mean() > 0.99
    assert min(np.count_nonzero(labels == value) for value in (0, 1, 2)) > 20


def test_answers_stand_in_the_order_of_the_targets(store: ExpertStore, make_expert: MakeExpert, volume: Volume) -> None:
    store.publish(make_expert("thorax", norms=everywhere(-1e3), spacing_mm=6.0, structures=("heart",)))
    store.publish(make_expert(norms=everywhere(1e3), structures=("liver", "spleen")))
    answers = Predictor(store).segment(volume, targets("spleen", "brain", "heart", "stomach", "liver")).answers
    assert [answer.phrase for answer in answers] == [
        "the spleen",
        "the brain",
        "the heart",
        "the stomach",
        "the liver",
    ]
    rows = [(answer.structure, answer.department, answer.revision, answer.value, answer.status) for answer in answers]
    assert rows == [
        ("spleen", "abdomen", 2, 1, "found"),
        ("brain", "brain", None, None, "no expert"),
        ("heart", "thorax", 2, 2, "absent"),
        ("stomach", "abdomen", None, None, "no expert"),
        ("liver", "abdomen", 2, 3, "absent"),  # the spleen came first and is as sure
    ]
    assert [answer.voxels for answer in answers] == [8 * 6 * 8, 0, 0, 0, 0]
    assert answers[0].ml == pytest.approx(8 * 6 * 8 * 0.027)
    assert answers[0].message == "10.4 ml found by expert abdomen/0002"
    assert answers[1].message == "no expert of brain was trained on brain"
    assert answers[2].message == "not found in this volume by expert thorax/0002"


def test_progress_counts_the_windows_of_each_department(store: ExpertStore, volume: Volume) -> None:
    calls: list[tuple[str, int, int]] = []

    def progress(stage: str, done: int, total: int) -> bool:
        calls.append((stage, done, total))
        return True

    Predictor(store).segment(volume, targets("liver", "heart", "spleen"), progress=progress)
    # Canonical grids: 8 x 8 x 6 at 3 mm is one window of 8 x 8 x 6; at 1.5 mm, 16 x 16 x 12 takes windows of 8 that
    # step by 6: three along 16 voxels and two along 12. Four are computed at once.
    assert calls == [
        *(("abdomen", done, 1) for done in range(2)),
        ("merge", 1, 2),
        ("merge", 2, 2),
        *(("thorax", done, 18) for done in (0, 4, 8, 12, 16, 18)),
        ("merge", 1, 1),
    ]


@pytest.mark.parametrize("after", [0, 1, 5])
def test_cancel_ends_the_run(store: ExpertStore, volume: Volume, after: int) -> None:
    calls = 0

    def progress(stage: str, done: int, total: int) -> bool:
        nonlocal calls
        calls += 1
        return calls <= after

    with pytest.raises(Cancelled):
        Predictor(store).segment(volume, targets("liver", "heart"), progress=progress)
    assert calls == after + 1


def test_says_so_where_no_expert_knows_any_target(store: ExpertStore, volume: Volume, tmp_path: Path) -> None:
    predictor = Predictor(store)
    with pytest.raises(ValueError, match=r"^no expert was trained on brain, stomach \(experts exist for: thorax, abd"):
        predictor.segment(volume, targets("brain", "stomach"))
    with pytest.raises(ValueError, match="nothing to segment; name at least one structure"):
        predictor.segment(volume, [])
    with pytest.raises(ValueError, match=r"\(experts exist for: no department\); train one"):
        Predictor(ExpertStore(tmp_path / "none")).segment(volume, targets("liver"))
    assert predictor.structures("abdomen") == ("liver", "spleen")
    assert predictor.structures("spine") == ()


def test_weights_that_are_no_numbers(store: ExpertStore, make_expert: MakeExpert, volume: Volume) -> None:
    expert = make_expert()
    name = next(iter(expert.factors))
    expert.factors[name][1][0, 0] = math.nan
    store.publish(expert)
    with pytest.raises(ValueError, match=rf"weight {name} of expert abdomen/0002 holds NaN or infinity"):
        Predictor(store).segment(volume, targets("liver"))


def test_the_next_call_uses_the_new_revision_and_a_running_one_keeps_its_own(
    store: ExpertStore, make_expert: MakeExpert, volume: Volume
) -> None:
    predictor, asked = Predictor(store), targets("liver")

    def publish(stage: str, done: int, total: int) -> bool:
        if done == 0:
            store.publish(make_expert(seed=2, norms=everywhere(1e3), structures=("liver", "spleen", "stomach")))
        return True

    running = predictor.segment(volume, asked, progress=publish)
    assert running.answers[0].revision == 1
    assert 0 < running.answers[0].voxels < 8 * 6 * 8
    following = predictor.segment(volume, asked)
    assert (following.answers[0].revision, following.answers[0].voxels) == (2, 8 * 6 * 8)
    assert predictor.structures("abdomen") == ("liver", "spleen", "stomach")


def test_networks_are_kept_while_the_budget_lasts(store: ExpertStore, make_expert: MakeExpert) -> None:
    store.publish(make_expert("spine", structures=("vertebrae",)))
    generous = Predictor(store)
    kept = {name: generous.fused(name) for name in ("abdomen", "thorax", "spine")}
    assert all(generous.fused(name) is fused for name, fused in kept.items())

    frugal = Predictor(store, networks_budget_bytes=1)
    first = frugal.fused("abdomen")
    assert frugal.fused("abdomen") is first  # one is always kept
    frugal.fused("thorax")
    assert frugal.fused("abdomen") is not first

    # A fused network has three convolutions of its own and shares the rest with the base.
    own = 4 * (4 * 1 * 27 + 8 * 4 * 27 + 4 * 8 * 27)
    whole = sum(parameter.nbytes for parameter in first.network.parameters())
    two = Predictor(store, networks_budget_bytes=whole + own)
    abdomen, thorax = two.fused("abdomen"), two.fused("thorax")
    assert two.fused("abdomen") is abdomen
    two.fused("spine")  # the thorax was asked for longest ago
    assert two.fused("abdomen") is abdomen
    assert two.fused("thorax") is not thorax


def test_refuses_a_table_of_another_space(store: ExpertStore, volume: Volume, table: QueryTable) -> None:
    predictor = Predictor(store, queries=replace(table, space="another"))
    with pytest.raises(ValueError, match="was trained with other query vectors than the table's; give the query table"):
        predictor.segment(volume, targets("liver"))


def test_takes_the_stores_table_of_the_bases_space(
    tmp_path: Path, tiny_base: Base, make_expert: MakeExpert, volume: Volume, table: QueryTable
) -> None:
    store = ExpertStore(tmp_path / "other")
    store.publish_base(replace(tiny_base, query_space="another"))
    store.publish(make_expert())
    predictor, asked = Predictor(store), targets("liver")
    with pytest.raises(ValueError, match="publish the query table that the base was trained with"):
        predictor.segment(volume, asked)
    other = replace(table, space="another", vectors=-table.vectors)
    store.publish_queries(other)
    labels = predictor.segment(volume, asked).label_map.array
    assert np.array_equal(labels, Predictor(store, queries=other).segment(volume, asked).label_map.array)
    same = Predictor(store, queries=replace(table, space="another")).segment(volume, asked).label_map.array
    assert not np.array_equal(labels, same)


def test_a_base_with_sats_settings_sees_sats_image(
    tmp_path: Path, tiny_base: Base, make_expert: MakeExpert, volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(masks_module, "has_fast_bf16", lambda device: False)
    store = ExpertStore(tmp_path / "sat")
    store.publish_base(replace(tiny_base, window=(8, 8, 4), intensities="sat"))
    store.publish(make_expert(spacing_mm=(2, 2, 3)))
    seen: list[tuple[torch.Tensor, tuple[int, int, int]]] = []

    def look(image: torch.Tensor, network: object, *, window: tuple[int, int, int], **_: object) -> torch.Tensor:
        seen.append((image, window))
        return torch.zeros(1, *image.shape[1:])

    monkeypatch.setattr(masks_module, "sliding_window", look)
    Predictor(store).segment(volume, targets("liver"))
    ((image, window),) = seen
    grid = canonical_grid(volume.grid, (2, 2, 3))
    resampled = resample(torch.from_numpy(volume.array)[None], volume.grid, grid, "linear").numpy()
    assert np.array_equal(image.numpy(), normalise(resampled, "ct", "sat"))
    assert (tuple(image.shape), tuple(window)) == ((1, 9, 12, 8), (8, 8, 4))


def test_refuses_an_expert_whose_base_is_not_there(
    store: ExpertStore, volume: Volume, tiny_base: Base, make_expert: MakeExpert
) -> None:
    other = replace(tiny_base, weights={name: tensor + 1 for name, tensor in tiny_base.weights.items()})
    store.publish_base(other)
    store.publish(make_expert(base_sha256=other.sha256))
    predictor = Predictor(store)
    os.unlink(store.path("base", 2))
    with pytest.raises(ValueError, match=rf"trained on base {other.sha256[:12]}, but .* has {tiny_base.sha256[:12]}"):
        predictor.segment(volume, targets("liver"))


def test_a_window_that_is_no_multiple_of_the_stride_is_rounded_up(
    tmp_path: Path, tiny_base: Base, make_expert: MakeExpert, volume: Volume
) -> None:
    store = ExpertStore(tmp_path / "odd")
    store.publish_base(replace(tiny_base, window=7))
    store.publish(make_expert(spacing_mm=2.6))  # 9 x 9 x 7 voxels
    prediction = Predictor(store).segment(volume, targets("liver"))
    assert prediction.label_map.array.shape == (8, 6, 8)
