"""Tests of train.evaluate: a tiny store on synthetic cases."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from lorkd_monailabel.departments import structure
from lorkd_monailabel.learning.cases import Case
from lorkd_monailabel.learning.metrics import dice, surface_dice
from lorkd_monailabel.predictor import Predictor
from lorkd_monailabel.prompts import Target
from lorkd_monailabel.store import ExpertStore
from lorkd_monailabel.volumes import read_volume
from train import evaluate as recipe
from train.evaluate import EvaluateConfig, main
from train.scoring.scores import Score, read_scores

STRUCTURES = {"liver": ("abdomen", [1, 4]), "spleen": ("abdomen", [2]), "heart": ("thorax", [3])}
ALL = ("liver", "spleen")


def labels() -> np.ndarray:
    array = np.zeros((12, 10, 9), dtype=np.int16)
    array[2:5, 2:8, 3:5] = 1
    array[2:5, 2:8, 5:6] = 4
    array[6:9, 4:8, 3:8] = 2
    return array


@pytest.fixture
def store(make_store: Callable[..., ExpertStore]) -> ExpertStore:
    return make_store("abdomen")


@pytest.fixture
def cases(write_case: Callable[..., dict[str, Any]], write_list: Callable[[list[Any]], Path]) -> Path:
    """Subject one with two scans, the second without annotated spleen; subject two, whose source has no distances."""
    liver = {"liver": STRUCTURES["liver"]}
    return write_list(
        [
            write_case(labels(), STRUCTURES, name="first", subject="one"),
            write_case(labels()[::-1], liver, name="second", subject="one"),
            write_case(labels()[:, ::-1], STRUCTURES, name="third", subject="two", source="vague", split="validation"),
        ]
    )


@pytest.fixture
def evaluate(tmp_path: Path, root: Path, store: ExpertStore, cases: Path) -> Callable[..., int]:
    def run(*settings: str) -> int:
        given = [f"cases={cases}", f"model={store.folder}", f"output={tmp_path / 'out' / 'rows'}", "resamples=50"]
        given += ['no_distances=["vague"]', *settings]
        config = str(root / "train" / "configs" / "evaluate.toml")
        return main([config, *(part for setting in given for part in ("--set", setting))])

    return run


def rows(tmp_path: Path) -> list[Score]:
    return read_scores(tmp_path / "out" / "rows.csv")


def test_every_annotated_structure_that_an_expert_knows_is_compared(
    evaluate: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate() == 0
    found = [(row.case, row.structure, row.grid, row.nsd is None) for row in rows(tmp_path)]
    assert found == [
        (f"{case}_image.nii.gz", name, grid, vague)
        for case, names, vague in (("first", ALL, False), ("second", ALL[:1], False), ("third", ALL, True))
        for grid in ("native", "1x1x3")
        for name in names
    ]
    assert {(row.source, row.subject, row.department, row.modality) for row in rows(tmp_path)} == {
        ("synthetic", "one", "abdomen", "ct"),
        ("vague", "two", "abdomen", "ct"),
    }
    printed = capsys.readouterr().out
    assert "**Grid: 1x1x3**" in printed
    assert "| abdomen: liver (ct) | 2 |" in printed
    assert not (tmp_path / "out" / "rows.draft.jsonl").exists()


def test_each_structure_is_looked_at_for_itself(
    evaluate: Callable[..., int], tmp_path: Path, store: ExpertStore
) -> None:
    """Also where another is more probable. Voxels of 3 mm become three by three of 1 x 1 x 3 mm, all alike."""
    assert evaluate() == 0
    volume = read_volume(tmp_path / "first_image.nii.gz", "ct")
    alone = {
        name: Predictor(store).segment(volume, [Target(name, structure(name))]).label_map.array == 1 for name in ALL
    }
    assert (alone["liver"] & alone["spleen"]).any()
    expected = []
    for times, spacing_mm in ((1, (3, 3, 3)), (3, (1, 1, 3))):
        for name, own in (("liver", [1, 4]), ("spleen", [2])):
            masks = [
                array.repeat(times, axis=0).repeat(times, axis=1) for array in (alone[name], np.isin(labels(), own))
            ]
            voxels = [int(mask.sum()) for mask in reversed(masks)]
            expected.append((dice(*masks), surface_dice(*masks, spacing_mm=spacing_mm), *voxels))
    found = [
        (row.dsc, row.nsd, row.reference_voxels, row.predicted_voxels)
        for row in rows(tmp_path)
        if row.case == "first_image.nii.gz"
    ]
    assert found == expected
    assert 0 < expected[0][0] < 1


def test_what_is_told_of_a_run(evaluate: Callable[..., int], tmp_path: Path) -> None:
    assert evaluate("limit=1") == 0
    about = json.loads((tmp_path / "out" / "rows.json").read_text(encoding="utf-8"))
    assert about["model"]["kind"] == "store"
    assert about["model"]["spacing_mm"] == {"abdomen": [3.0, 3.0, 3.0]}
    assert about["cases"]["count"] == 2  # of two sources
    assert about["ranks"] == {"abdomen": 1}
    assert about["parameters"] > about["parameters_of_one"] > 0
    assert about["gflops"] > 0
    assert about["provenance"]["config"]["limit"] == 1
    assert str(tmp_path) not in json.dumps(about)
    assert {row.case for row in rows(tmp_path)} == {"first_image.nii.gz", "third_image.nii.gz"}


def test_a_limit_of_one_source_leaves_the_others_whole(evaluate: Callable[..., int], tmp_path: Path) -> None:
    assert evaluate() == 0
    every = {(row.source, row.case) for row in rows(tmp_path)}
    source = max(sorted({source for source, _ in every}), key=lambda name: sum(own == name for own, _ in every))
    assert sum(own == source for own, _ in every) > 1
    (tmp_path / "out" / "rows.csv").unlink()
    assert evaluate(f"limit={{ {source} = 1 }}") == 0
    left = {(row.source, row.case) for row in rows(tmp_path)}
    assert {case for case in every - left if case[0] != source} == set()
    assert sum(own == source for own, _ in left) == 1


def test_a_stopped_evaluation_goes_on_where_it_was_and_a_finished_one_is_read(
    evaluate: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate("output=" + str(tmp_path / "whole")) == 0
    whole = (tmp_path / "whole.csv").read_bytes()
    seen: list[str] = []
    stop_at = ["second_image.nii.gz"]
    original = recipe.evaluate_case

    def watched(predictor: Predictor, case: Case, config: EvaluateConfig) -> list[Score]:
        if case.image.name in stop_at:
            raise KeyboardInterrupt
        seen.append(case.image.name)
        return original(predictor, case, config)

    monkeypatch.setattr(recipe, "evaluate_case", watched)
    assert evaluate() == 130
    assert "run again to go on" in capsys.readouterr().err
    assert not (tmp_path / "out" / "rows.csv").exists()
    stop_at.clear()
    assert evaluate() == 0
    assert seen == ["first_image.nii.gz", "second_image.nii.gz", "third_image.nii.gz"]  # none twice
    assert (tmp_path / "out" / "rows.csv").read_bytes() == whole
    assert evaluate() == 0
    assert len(seen) == 3
    assert evaluate("tolerance_mm=2") == 0  # another evaluation
    assert len(seen) == 6


def test_two_processes_give_the_scores_of_one(evaluate: Callable[..., int], tmp_path: Path) -> None:
    assert evaluate("output=" + str(tmp_path / "one")) == 0
    assert evaluate("processes=2") == 0
    assert rows(tmp_path) == read_scores(tmp_path / "one.csv")


def test_only_what_is_named_is_compared(evaluate: Callable[..., int], tmp_path: Path) -> None:
    assert evaluate('structures=["spleen"]', 'grids=["native"]', 'sources=["synthetic"]') == 0
    assert [(row.case, row.structure) for row in rows(tmp_path)] == [("first_image.nii.gz", "spleen")]


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ('structures=["heart"]', "knows no structure of"),
        ('grids=["1x1"]', "grid '1x1' must be native or three lengths in mm"),
        ('grids=["0x1x1"]', "grid '0x1x1' must be native or three lengths in mm"),
        ("model=nowhere", "nowhere is no model"),
        ("tolerance_mm=-1", "tolerance -1.0 mm"),
        ("overlap=1", "overlap 1.0 must be in [0, 1)"),
        ("processes=0", "processes = 0 must be at least 1"),
    ],
)
def test_bad_settings_are_one_sentence(
    evaluate: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str], setting: str, sentence: str
) -> None:
    assert evaluate(setting) == 2
    assert sentence in capsys.readouterr().err.strip().splitlines()[-1]
    assert not (tmp_path / "out" / "rows.csv").exists()


@pytest.mark.parametrize(("millimetres", "status"), [(1.5, 2), (0.1, 0)])
def test_labels_on_another_grid_are_refused_as_in_training(
    evaluate: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str], millimetres: float, status: int
) -> None:
    moved = np.diag([3.0, 3.0, 3.0, 1.0])
    moved[0, 3] = millimetres
    nibabel.save(nibabel.Nifti1Image(labels(), moved), tmp_path / "second_label.nii.gz")
    assert evaluate('grids=["native"]') == status
    said = "second_label.nii.gz is not on the grid of"
    assert (said in capsys.readouterr().err.splitlines()[-1]) == bool(status)
