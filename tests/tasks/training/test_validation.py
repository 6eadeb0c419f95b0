"""Tests of lorkd_monailabel.tasks.training.validation and the gate behind it."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from lorkd_monailabel import revisions
from lorkd_monailabel.candidates import candidate_header, candidate_ids
from lorkd_monailabel.experts import Base, Expert
from lorkd_monailabel.learning.cases import Case
from lorkd_monailabel.learning.training import Interrupted
from lorkd_monailabel.store import ExpertStore
from lorkd_monailabel.tasks.training.gate import pass_gate, told_scores
from lorkd_monailabel.tasks.training.validation import Verdict, measured, model, verdict
from lorkd_monailabel.text_encoder import QueryTable
from tests.tasks.conftest import AFFINE

CPU = torch.device("cpu")
BIAS = "mask_embedding.2.bias"


def claiming(value: float) -> dict[str, torch.Tensor]:
    """Norms with which an expert claims every voxel, or none."""
    return {BIAS: torch.tensor([0.0, 0.0, 0.0, 0.0, value])}


@pytest.fixture
def cases(tmp_path: Path, volume: Callable[[int], tuple[np.ndarray, np.ndarray]]) -> list[Case]:
    """Two cases of 1000 voxels: 54 are liver and 60 spleen; in the second the spleen is not annotated."""
    made = []
    for number, structures in enumerate(({"liver": (1,), "spleen": (2,)}, {"liver": (1,)})):
        image, labels = volume(number)
        for name, array in (("image", image), ("label", labels)):
            nibabel.save(nibabel.Nifti1Image(array.astype(np.int16), AFFINE), tmp_path / f"{number}{name}.nii.gz")
        made.append(
            Case(
                image=tmp_path / f"{number}image.nii.gz",
                label=tmp_path / f"{number}label.nii.gz",
                modality="ct",
                source="studies",
                subject=str(number),
                split="validation",
                structures=structures,
                departments=dict.fromkeys(structures, "abdomen"),
            )
        )
    return made


def never() -> bool:
    return False


def test_dice_of_whole_volumes_where_they_are_annotated(
    cases: list[Case], tiny_base: Base, make_expert: Callable[..., Expert], table: QueryTable
) -> None:
    all_of_it = make_expert(norms=claiming(1e3))
    nothing = make_expert(norms=claiming(-1e3), structures=("liver", "pancreas"))
    seen: list[tuple[int, int]] = []
    first, second = measured(
        [model(tiny_base, each, table, CPU) for each in (all_of_it, nothing)],
        cases,
        device=CPU,
        stop=never,
        progress=lambda done, total: seen.append((done, total)),
    )
    liver = 3 * 6 * 3
    spleen = 3 * 4 * 5
    assert first == {
        "liver": pytest.approx(2 * liver / (1000 + liver)),
        "spleen": pytest.approx(2 * spleen / (1000 + spleen)),
    }
    assert second == {"liver": 0.0}
    assert seen == [(0, 2), (1, 2), (2, 2)]


def test_stop_ends_it(
    cases: list[Case], tiny_base: Base, make_expert: Callable[..., Expert], table: QueryTable
) -> None:
    with pytest.raises(Interrupted, match="run again to go on"):
        measured([model(tiny_base, make_expert(), table, CPU)], cases, device=CPU, stop=lambda: True)


def test_a_label_on_another_grid_is_refused(
    cases: list[Case], tiny_base: Base, make_expert: Callable[..., Expert], table: QueryTable
) -> None:
    moved = nibabel.load(cases[0].label)
    nibabel.save(nibabel.Nifti1Image(np.asarray(moved.dataobj), np.diag([3.0, 3.0, 2.0, 1.0])), cases[0].label)
    with pytest.raises(ValueError, match="lies on another grid than"):
        measured([model(tiny_base, make_expert(), table, CPU)], cases, device=CPU, stop=never)


@pytest.mark.parametrize(
    ("new", "current", "better", "means"),
    [
        ({"liver": 0.8}, {"liver": 0.8}, True, (0.8, 0.8)),
        ({"liver": 0.8}, {"liver": 0.81}, False, (0.8, 0.81)),
        ({"liver": 0.9, "spleen": 0.5}, {"liver": 0.6, "spleen": 0.7}, True, (0.7, 0.65)),
        ({"liver": 0.7, "pancreas": 0.1}, {"liver": 0.6}, True, (0.7, 0.6)),  # what is new has nothing to be worse than
        ({"liver": 0.1}, None, True, (0.1, None)),
        ({"pancreas": 0.9}, {"liver": 0.6}, False, (None, None)),
        ({}, None, False, (None, None)),
    ],
)
def test_the_verdict(
    new: dict[str, float], current: dict[str, float] | None, better: bool, means: tuple[float | None, float | None]
) -> None:
    found = verdict(new, current)
    assert (found.better, found.new, found.current) == (better, *(each and pytest.approx(each) for each in means))


def test_scores_for_people() -> None:
    told = told_scores({"liver": 0.5, "pancreas": 0.1}, {"liver": 0.6, "spleen": 0.2}, Verdict(False, 0.5, 0.6, ""))
    assert told == {
        "new": 0.5,
        "current": 0.6,
        "structures": {
            "liver": {"new": 0.5, "current": 0.6},
            "pancreas": {"new": 0.1, "current": None},
            "spleen": {"new": None, "current": 0.2},
        },
    }


WORSE = Verdict(False, 0.5, 0.6, "Dice 0.500 is worse than the served expert's 0.600")
BETTER = replace(WORSE, better=True, message="better")


def gate(store: ExpertStore, expert: Expert, found: Verdict, *, force: bool = False) -> dict[str, object]:
    return pass_gate(store, expert, scores={"liver": 0.5}, compared_with=1, verdict=found, force=force)


def test_what_is_worse_is_kept_and_never_served(store: ExpertStore, make_expert: Callable[..., Expert]) -> None:
    result = gate(store, make_expert(seed=4, parent=1), WORSE)
    (candidate,) = candidate_ids(store, "abdomen")
    assert (result["published"], result["revision"], result["candidate"]) == (False, None, candidate)
    assert result["message"] == f"{WORSE.message}: kept as candidate {candidate}, nothing is published"
    assert store.revisions("abdomen") == (1,)
    header = candidate_header(store, "abdomen", candidate)
    assert header["metrics"] == {"liver": 0.5}
    assert header["about"]["comparison"] == {"revision": 1, "current": 0.6, "new": 0.5, "forced": False}


def test_what_is_no_worse_is_published_and_force_publishes_all(
    store: ExpertStore, make_expert: Callable[..., Expert]
) -> None:
    assert gate(store, make_expert(seed=4), BETTER)["revision"] == 2
    forced = gate(store, make_expert(seed=5), WORSE, force=True)
    assert (forced["revision"], "as force says" in str(forced["message"])) == (3, True)
    revisions.pin(store, "abdomen", 1)
    pinned = gate(store, make_expert(seed=6), BETTER)
    assert "revision 1 is pinned and goes on being served" in str(pinned["message"])
    assert (pinned["revision"], store.served("abdomen")) == (4, 1)
