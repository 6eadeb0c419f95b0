"""Tests of train.experiments.active_learning: the simulation, its figures, and all of it in small."""

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lorkd_monailabel.experts import Base
from lorkd_monailabel.learning.cases import read_cases
from lorkd_monailabel.learning.training import Interrupted
from lorkd_monailabel.store import ExpertStore
from train.experiments.active_learning import __main__ as experiment
from train.experiments.active_learning.learner import Learner
from train.experiments.active_learning.plan import Plan
from train.experiments.active_learning.results import cases_needed, curves, gain, mean_of, picture, tables
from train.experiments.active_learning.rounds import Round, first_cases, simulate
from train.scoring.tables import markdown


@dataclass(frozen=True)
class Share:
    """An expert whose Dice is the share of cases that it knows."""

    labelled: tuple[int, ...]

    @property
    def mean_dice(self) -> float:
        return len(self.labelled) / 10


def simulated(strategy: str, plan: Plan, seed: int = 0) -> tuple[list[Round], list[tuple[int, ...]]]:
    """Annotate ten cases: case n is n % 5 tenths uncertain and lies at n on a line."""
    seen: list[tuple[int, ...]] = []

    def learn(labelled: Sequence[int], seed: int) -> Share:
        seen.append(tuple(labelled))
        return Share(tuple(labelled))

    def uncertainties(expert: Share, numbers: Sequence[int]) -> Mapping[int, float]:
        assert not set(expert.labelled) & set(numbers)
        return {number: number % 5 / 10 for number in numbers}

    made = simulate(
        10,
        plan,
        department="pelvis",
        strategy=strategy,
        seed=seed,
        learn=learn,
        uncertainties=uncertainties,
        features=lambda: {number: (float(number),) for number in range(10)},
    )
    return list(made), seen


def test_all_strategies_begin_alike_and_differ_afterwards() -> None:
    plan = Plan(rounds=3)
    seen = {strategy: simulated(strategy, plan)[1] for strategy in plan.strategies}
    assert {each[0] for each in seen.values()} == {tuple(first_cases(10, 2, 0))}
    assert all([len(labelled) for labelled in each] == [2, 4, 6] for each in seen.values())
    assert len(set(map(str, seen.values()))) == 4
    first = set(first_cases(10, 2, 0))
    by_uncertainty = sorted(set(range(10)) - first, key=lambda number: (-(number % 5), number))
    assert seen["uncertainty"][1][2:] == tuple(by_uncertainty[:2])
    farthest = max(set(range(10)) - first, key=lambda number: min(abs(number - each) for each in first))
    assert seen["diversity"][1][2] == farthest


def test_the_same_seed_gives_the_same_and_another_one_does_not() -> None:
    plan = Plan(rounds=3)
    assert simulated("random", plan) == simulated("random", plan)
    assert simulated("random", plan)[1] != simulated("random", plan, seed=1)[1]


def test_it_ends_when_no_case_is_left() -> None:
    rounds, seen = simulated("uncertainty_diversity", Plan(start=3, each=4, rounds=9))
    assert [each.cases for each in rounds] == [3, 7, 10]
    assert sorted(seen[-1]) == list(range(10))
    assert [each.dice for each in rounds] == [0.3, 0.7, 1.0]


def rounds_of(strategy: str, dice: Sequence[Sequence[float]]) -> list[Round]:
    """Rounds at 2, 4 and 6 cases: a row of Dice for each seed."""
    return [
        Round("pelvis", strategy, seed, 2 * place, value)
        for seed, own in enumerate(dice)
        for place, value in enumerate(own, start=1)
    ]


ROUNDS = [
    *rounds_of("random", [(0.2, 0.4, 0.6), (0.2, 0.5, 0.6)]),
    *rounds_of("diversity", [(0.2, 0.6, 0.7), (0.2, 0.6, 0.7)]),
]


def test_means_and_intervals_by_hand() -> None:
    mean = mean_of([0.4, 0.5, 0.6])
    assert (mean.value, mean.half) == (pytest.approx(0.5), pytest.approx(4.302653 * 0.1 / 3**0.5))
    assert mean_of([0.5]).percent() == "50.0"
    assert curves(ROUNDS, "pelvis")["random"][4].value == pytest.approx(0.45)


def test_gain_is_paired_by_seed() -> None:
    found = gain(ROUNDS, "pelvis", "diversity")
    assert found is not None
    assert found.value == pytest.approx(((0.2 + 0.1) / 2 + (0.1 + 0.1) / 2) / 2)
    assert gain(ROUNDS[:6], "pelvis", "diversity") is None


def test_cases_needed_lie_between_two_counts() -> None:
    own = curves(ROUNDS, "pelvis")
    assert cases_needed(own["random"], 0.525) == pytest.approx(5)
    assert cases_needed(own["diversity"], 0.6) == 4
    assert cases_needed(own["diversity"], 0.1) == 2
    assert cases_needed(own["random"], 0.7) is None


def test_tables_and_picture() -> None:
    text = markdown(tables(ROUNDS)[0])
    row = next(line for line in text.splitlines() if line.startswith("| diversity"))
    assert [cell.strip() for cell in row.split("|")][2:6] == ["20.0 ± 0.0", "60.0 ± 0.0", "70.0 ± 0.0", "4.0"]
    assert row.split("|")[6].strip().startswith("+12.5 ±")
    assert [cell.text for cell in tables(ROUNDS[6:])[0].rows[0]][-2:] == ["", ""]  # without random
    assert picture(ROUNDS).startswith(b"\x89PNG")


@pytest.fixture
def cases(write_case: Callable[..., dict[str, Any]], write_list: Callable[[list[Any]], Path]) -> Path:
    """Five patients of pelvis and abdomen to annotate, one to judge by, and the brain for the base."""
    lines = []
    for number in range(6):
        labels = np.zeros((16, 12, 10), dtype=np.int16)
        for value in range(3):
            labels[5 * value : 5 * value + 4, 2 : 8 + number % 3, 3:8] = value + 1
        structures = {"brainstem": ("brain", [1]), "prostate": ("pelvis", [2]), "liver": ("abdomen", [3])}
        split = "validation" if number == 5 else "train"
        lines.append(write_case(labels, structures, name=f"patient{number}", split=split))
    return write_list(lines)


@pytest.mark.timeout(300)
def test_quick_experiment_is_stopped_goes_on_and_is_not_run_again(
    tmp_path: Path, cases: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "runs"
    arguments = ["--cases", str(cases), "--folder", str(folder), "--quick", "--seeds", "0", "--rounds", "2"]
    arguments += ["--departments", "pelvis"]
    measured = Learner.uncertainties

    def stopped(*arguments: Any) -> None:
        raise Interrupted("stopped")

    monkeypatch.setattr(Learner, "uncertainties", stopped)
    assert experiment.main(arguments) == 130
    assert "run again to go on" in capsys.readouterr().err
    monkeypatch.setattr(Learner, "uncertainties", measured)
    assert experiment.main(arguments) == 0
    assert [path.name for path in folder.iterdir()] == ["quick"]  # it does not count as learned in earnest
    folder /= "quick"
    with (folder / "rounds.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["strategy"], row["cases"]) for row in rows] == [(s, n) for s in Plan().strategies for n in ("2", "4")]
    assert len({row["dice"] for row in rows if row["cases"] == "2"}) == 1  # all begin alike
    assert all(0 <= float(row["dice"]) <= 1 for row in rows)
    assert "| uncertainty\\_diversity |" in (folder / "tables.md").read_text(encoding="utf-8")
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "base_without_pelvis" / "foundation.safetensors").exists()

    def never(*arguments: Any) -> None:
        raise AssertionError("it was done before")

    before = (folder / "rounds.csv").read_bytes()
    monkeypatch.setattr(Learner, "_trained", never)
    monkeypatch.setattr(Learner, "_measured", never)
    assert experiment.main(arguments) == 0
    assert (folder / "rounds.csv").read_bytes() == before
    assert "cases for random's last Dice" in capsys.readouterr().out


def test_each_choice_of_departments_has_a_base_that_has_not_seen_them(
    tmp_path: Path, cases: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def see(arguments: Sequence[str]) -> int:
        seen.append(next(each for each in arguments if each.startswith("data.departments")))
        return 2

    monkeypatch.setattr(experiment.pretrain, "main", see)
    arguments = ["--cases", str(cases), "--folder", str(tmp_path / "runs"), "--departments"]
    assert experiment.main([*arguments, "pelvis"]) == 2
    for path in tmp_path.glob("runs/*"):
        (path / "foundation.safetensors").write_bytes(b"")
    assert experiment.main([*arguments, "abdomen"]) == 2
    assert seen == ['data.departments=["abdomen", "brain"]', 'data.departments=["brain", "pelvis"]']


def test_what_was_learned_is_found_again_by_cases_training_and_base(
    tmp_path: Path, cases: Path, tiny_base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where all images are called alike, as they are where each patient has a folder."""
    listed = [replace(case, image=Path(case.subject) / "image.nii.gz") for case in read_cases(cases)]
    trained = []

    def learn(self: Learner, labelled: Sequence[int], seed: int, folder: Path) -> str:
        trained.append((labelled, seed))
        return "an expert"

    monkeypatch.setattr(Learner, "_trained", learn)
    monkeypatch.setattr(Learner, "_measured", lambda self, revision: {"prostate": revision / 10})
    monkeypatch.setattr(ExpertStore, "publish", lambda self, expert: len(trained))

    def dice(labelled: Sequence[int], base: Base = tiny_base, **plan: Any) -> float:
        own = Learner("pelvis", listed, base=base, folder=tmp_path, plan=Plan(**plan), stop=lambda: False)
        return own.learned(labelled, 0).mean_dice

    assert (dice([0, 1]), dice([1, 0]), dice([0, 2])) == (0.1, 0.1, 0.2)
    assert dice([0, 1], rounds=2, seeds=(3,), strategies=("random",)) == 0.1
    assert dice([0, 1], steps=4) == 0.3
    other = replace(tiny_base, weights={name: 2 * tensor for name, tensor in tiny_base.weights.items()})
    assert dice([0, 1], base=other) == 0.4


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--departments", "spine"], "spine has 0 training and 0 validation cases"),
        (["--start", "5"], "pelvis has 5 training and 1 validation cases, but more than 5"),
        (["--rounds", "0"], "--rounds 0 must be at least 1"),
        (["--departments", "brain", "pelvis", "abdomen"], "no department is left to train a base on"),
        (["--base", "none.safetensors"], "none.safetensors"),
    ],
)
def test_what_can_not_be_run_is_one_sentence(
    tmp_path: Path, cases: Path, capsys: pytest.CaptureFixture[str], more: list[str], words: str
) -> None:
    assert experiment.main(["--cases", str(cases), "--folder", str(tmp_path / "runs"), "--quick", *more]) == 2
    assert words in capsys.readouterr().err


def test_plan_stays_a_plan() -> None:
    assert replace(Plan(), steps=1).spacing_of("pelvis") == 2.5
    assert Plan().spacing_of("thorax") == 3.0
