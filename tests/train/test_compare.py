"""Tests of train.compare, train.scoring.paper_tables and train.scoring.dots: tables by hand and read back."""

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from train.compare import main
from train.scoring.paper_tables import ranks_text
from train.scoring.scores import Score, write_scores

ABOUT = {
    "Foundation": {"parameters": 4_000_000, "parameters_of_one": 4_000_000, "gflops": 10.0, "ranks": {"brain": 0}},
    "LoRKD_8": {
        "parameters": 2_500_000,
        "parameters_of_one": 2_000_000,
        "gflops": 3.9,
        "ranks": {"brain": 8, "pelvis": 8},
    },
    "LoRKD*": {
        "parameters": 2_600_000,
        "parameters_of_one": 2_000_000,
        "gflops": 3.9,
        "ranks": {"brain": 4, "pelvis": 12},
    },
}
GAINS = {"Foundation": 0.0, "LoRKD_8": 0.01, "LoRKD*": 0.02}
SUBJECTS = [str(number) for number in range(6)]


def scores_of(gain: float) -> list[Score]:
    """Brain in six subjects, two structures, one of them in half of the subjects; pelvis, which has no distances."""
    found = []
    for grid in ("1x1x3", "native"):
        for number, who in enumerate(SUBJECTS):
            base = 0.5 + 0.05 * number + gain + (0.001 if grid == "native" else 0)
            found.append(Score("a", who, "x.nii", "brain", "mri", "brain", grid, base, base / 2, 1, 1))
            if number % 2:
                found.append(Score("a", who, "x.nii", "brain", "mri", "brainstem", grid, base - 0.1, 0.3, 1, 1))
            found.append(Score("b", who, "x.nii", "pelvis", "mri", "prostate", grid, 0.8031 - gain, None, 1, 1))
    return found


@pytest.fixture
def compare(tmp_path: Path, root: Path) -> Callable[..., int]:
    for name, gain in GAINS.items():
        write_scores(scores_of(gain), tmp_path / f"{name}.csv")
        told = json.dumps({**ABOUT[name], "window": [40, 40, 40]})
        (tmp_path / f"{name}.json").write_text(told, encoding="utf-8")

    def run(*settings: str, runs: tuple[str, ...] = tuple(GAINS)) -> int:
        told = ", ".join(f'"{name}" = "{tmp_path / name}.csv"' for name in runs)
        given = [f"runs={{ {told} }}", f"output={tmp_path / 'out'}", "resamples=200", "ablations={}", *settings]
        config = str(root / "train" / "configs" / "compare.toml")
        return main([config, *(part for setting in given for part in ("--set", setting))])

    return run


def table(text: str, title: str) -> dict[str, list[str]]:
    """The Markdown table of a title: first cell of a row -> the others."""
    block = text.split(f"**{title}**\n\n")[1].split("\n\n")[0]
    rows = [[cell.strip() for cell in line.strip("|").split(" |")] for line in block.splitlines()]
    return {row[0].lstrip(): row[1:] for row in rows}


def csv_rows(tmp_path: Path) -> list[dict[str, str]]:
    with (tmp_path / "out" / "tables.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_departments_by_hand(compare: Callable[..., int], tmp_path: Path) -> None:
    assert compare() == 0
    text = (tmp_path / "out" / "tables.md").read_text(encoding="utf-8")
    assert "Grid 1x1x3: 15 structures of cases, 12 cases, 12 subjects." in text
    dsc = table(text, "DSC by department, grid 1x1x3")
    brain = (np.mean([0.5, 0.55, 0.6, 0.65, 0.7, 0.75]) + np.mean([0.45, 0.55, 0.65])) / 2
    for column, gain in enumerate(GAINS.values()):
        assert dsc["brain"][column].strip("*").startswith(f"{100 * (brain + gain):.2f} (")
        assert dsc["pelvis"][column].strip("*").startswith(f"{80.31 - 100 * gain:.2f} (")
        assert dsc["Average"][column].strip("*").startswith(f"{100 * (brain + 0.8031) / 2:.2f} (")
    assert [cell.startswith("**") for cell in dsc["brain"]] == [False, False, True]
    assert [cell.startswith("**") for cell in dsc["pelvis"]] == [True, False, False]
    assert [cell.startswith("**") for cell in dsc["Average"]] == [True, True, True]  # the same after rounding
    nsd = table(text, "NSD by department, grid 1x1x3")
    assert list(nsd)[2:] == ["brain", "Average"]
    assert "In no mean, as distances in mm are meaningless there: prostate." in text


def test_differences_are_paired_and_bold_where_clear(compare: Callable[..., int], tmp_path: Path) -> None:
    assert compare() == 0
    text = (tmp_path / "out" / "tables.md").read_text(encoding="utf-8")
    rows = table(text, "DSC less that of Foundation, grid 1x1x3")
    assert rows["brain"] == ["**+1.00 (+1.00, +1.00)**", "**+2.00 (+2.00, +2.00)**"]
    assert rows["pelvis"] == ["**-1.00 (-1.00, -1.00)**", "**-2.00 (-2.00, -2.00)**"]
    assert all("**" not in cell for cell in rows["Average"])


def test_cost_and_ranks_by_hand(compare: Callable[..., int], tmp_path: Path) -> None:
    ablation = f'"4" = "{tmp_path / "LoRKD_8"}", "8" = "{tmp_path / "LoRKD*"}"'
    assert compare(f"ablations={{ rank = {{ {ablation} }} }}") == 0
    text = (tmp_path / "out" / "tables.md").read_text(encoding="utf-8")
    rows = table(text, "Cost, ranks and averages, grid native")
    assert rows["Foundation"][:6] == ["4.00", "100.00", "4.00", "10.00", "100.00", ""]
    assert rows[r"LoRKD\_8"][:6] == ["2.50", "62.50", "2.00", "3.90", "39.00", "8"]
    assert rows[r"LoRKD\*"][:6] == ["2.60", "65.00", "2.00", "3.90", "39.00", "4 to 12"]
    assert "a window of 40 x 40 x 40 voxels" in text
    varied = table(text, "Ablation of rank, grid native")
    assert list(varied)[2:] == ["4", "8"]
    assert varied["8"] == rows[r"LoRKD\*"]


def test_the_csv_has_the_numbers_of_the_tables(compare: Callable[..., int], tmp_path: Path) -> None:
    assert compare() == 0
    text = (tmp_path / "out" / "tables.md").read_text(encoding="utf-8")
    written = set(re.findall(r"[-+]?\d+\.\d\d(?: \([^)]*\))?", text))
    found = csv_rows(tmp_path)
    shown = set()
    for row in found:
        for value, low, high, sign in (("value", "low", "high", ""), ("difference",) * 3 + ("+",)):
            ends = (low, high) if value == "value" else ("difference_low", "difference_high")
            if row[value]:
                cell = f"{float(row[value]):{sign}.2f}"
                if row[ends[0]]:
                    cell += f" ({float(row[ends[0]]):{sign}.2f}, {float(row[ends[1]]):{sign}.2f})"
                shown.add(cell)
    intervals = {cell for cell in written if "(" in cell}
    assert len(intervals) > 20
    assert intervals <= shown
    ranks = {(row["run"], row["department"]): row["value"] for row in found if row["quantity"] == "rank"}
    assert ranks["LoRKD*", "pelvis"] == "12"
    assert {row["value"] for row in found if row["quantity"] == "gflops"} == {"10.0", "3.9"}
    single = [row for row in found if row["structure"] == "brainstem" and row["run"] == "LoRKD*"]
    assert {(row["subjects"], row["grid"]) for row in single} == {("3", "1x1x3"), ("3", "native")}


def test_latex_is_balanced_and_escaped(compare: Callable[..., int], tmp_path: Path) -> None:
    assert compare() == 0
    text = (tmp_path / "out" / "tables.tex").read_text(encoding="utf-8")
    assert text.count(r"\begin{table}") == text.count(r"\end{table}") == 14
    assert text.count("{") == text.count("}")
    assert r"LoRKD\_8" in text
    for block in re.findall(r"\\begin\{tabular\}\{(l[r]*)\}(.*?)\\end\{tabular\}", text, flags=re.DOTALL):
        for line in re.findall(r"^.*\\\\$", block[1], flags=re.MULTILINE):
            assert len(re.findall(r"(?<!\\)&", line)) == len(block[0]) - 1
    assert not re.search(r"(?<!\\)[%_#]", text)


def test_the_plot_is_a_picture(compare: Callable[..., int], tmp_path: Path) -> None:
    assert compare() == 0
    assert (tmp_path / "out" / "comparison.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "comparison.png",
        "tables.csv",
        "tables.md",
        "tables.tex",
    ]


def test_only_what_every_run_has_counts(compare: Callable[..., int], tmp_path: Path) -> None:
    own = scores_of(0.0)
    write_scores([score for score in own if score.subject != "5"], tmp_path / "Foundation.csv")
    assert compare() == 0
    text = (tmp_path / "out" / "tables.md").read_text(encoding="utf-8")
    assert "Grid native: 12 structures of cases, 10 cases, 10 subjects; 3 that not every run has are left out." in text
    (row,) = [
        row
        for row in csv_rows(tmp_path)
        if (row["run"], row["quantity"], row["grid"], row["structure"]) == ("LoRKD*", "dsc", "native", "brain")
    ]
    assert float(row["value"]) == pytest.approx(100 * (np.mean([0.5, 0.55, 0.6, 0.65, 0.7]) + 0.021))
    assert row["subjects"] == "5"


def test_one_run_alone_has_no_best_and_no_differences(compare: Callable[..., int], tmp_path: Path) -> None:
    assert compare(runs=("Foundation",)) == 0
    text = (tmp_path / "out" / "tables.md").read_text(encoding="utf-8")
    assert "less that of" not in text
    assert not any("**" in cell for cell in table(text, "DSC by department, grid native")["brain"])


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ('reference="nobody"', "reference 'nobody' must be one of runs"),
        ('runs={ "Foundation" = "nowhere" }', "nowhere.csv holds no scores"),
        ('grids=["2x2x2"]', "the runs share no score on grid 2x2x2"),
        ('ablations={ runs = { a = "x" } }', "an ablation can't be called 'runs'"),
    ],
)
def test_bad_settings_are_one_sentence(
    compare: Callable[..., int], capsys: pytest.CaptureFixture[str], setting: str, sentence: str
) -> None:
    assert compare(setting) == 2
    assert sentence in capsys.readouterr().err.strip()


def test_a_score_that_is_there_twice_is_refused(
    compare: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_scores(scores_of(0.0) * 2, tmp_path / "LoRKD_8.csv")
    assert compare() == 2
    assert "run 'LoRKD_8' has a structure of a case twice" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("ranks", "text"), [({}, ""), ({"a": 0}, ""), ({"a": 8, "b": 8}, "8"), ({"a": 2, "b": 16, "c": 4}, "2 to 16")]
)
def test_ranks_in_short(ranks: dict[str, int], text: str) -> None:
    assert ranks_text(ranks) == text
