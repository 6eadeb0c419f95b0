"""Tests of train.experiments.decomposition_small: its stages fit together, and all of them run."""

import importlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lorkd_monailabel.shipped import WEIGHTS
from lorkd_monailabel.store import ExpertStore
from train.experiments.decomposition_small import __main__ as experiment
from train.experiments.decomposition_small.stages import DEPARTMENTS, GROUPS, HELD_OUT, KEPT

STRUCTURES = {
    "liver": "abdomen",
    "brainstem": "brain",
    "mandible": "head_and_neck",
    "prostate": "pelvis",
    "spinal cord": "spine",
    "esophagus": "thorax",
}


def in_this_process(name: str, arguments: Sequence[str], folder: Path) -> int:
    module, *rest = arguments
    return int(importlib.import_module(module).main(rest))


@pytest.fixture
def cases(write_case: Callable[..., dict[str, Any]], write_list: Callable[[list[Any]], Path]) -> Path:
    """Two patients, one to learn from and one to validate with, with a structure of every department."""
    labels = np.zeros((18, 14, 12), dtype=np.int16)
    annotated = {}
    for value, (name, department) in enumerate(STRUCTURES.items(), start=1):
        labels[3 * (value - 1) : 3 * value, 3:10, 3:9] = value
        annotated[name] = (department, [value])
    lines = [write_case(np.roll(labels, shift, axis=1), annotated, name=f"patient{shift}") for shift in range(2)]
    lines = [{**line, "source": source} for source in (KEPT[0], HELD_OUT) for line in lines]
    for number, line in enumerate(lines):
        line["split"] = "validation" if number % 2 else "train"
    return write_list(lines)


def test_what_a_stage_reads_an_earlier_one_or_the_package_has_made() -> None:
    names: list[str] = []
    for stage in (stage for group in GROUPS.values() for stage in group):
        read = [path for name, path in stage.paths.items() if name in ("teacher", "start", "model")]
        read += [*stage.runs.values(), *filter(None, [stage.ranks])]
        shipped = [path for path in read if path.startswith(str(WEIGHTS))]
        assert all(Path(path).is_file() for path in shipped), shipped
        for path in set(read) - set(shipped):
            assert any(path.startswith((f"{name}/", f"{name}.")) or name.startswith(f"{path}/") for name in names), path
        names.append(stage.name)
    assert len(set(names)) == len(names) >= 20


@pytest.mark.timeout(600)
def test_main_comparison_and_transfer_run_and_are_not_run_again(
    tmp_path: Path, cases: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(experiment, "run", in_this_process)
    folder = tmp_path / "runs"
    arguments = ["--cases", str(cases), "--folder", str(folder), "--groups", "main", "transfer", "--quick"]
    assert experiment.main(arguments) == 0
    assert [path.name for path in folder.iterdir()] == ["quick"]  # it does not count as done in earnest
    folder /= "quick"
    stages = [*GROUPS["main"], *GROUPS["transfer"]]
    for stage in stages:
        assert (folder / stage.product).exists(), stage.name
    star = ExpertStore(folder / "lorkd_star" / "store")
    assert set(star.departments()) == set(DEPARTMENTS)
    assert star.base().about["training"]["rank"] == 2
    table = (folder / "results" / "main" / "tables.md").read_text(encoding="utf-8")
    assert all(name in table for name in ("Foundation", "Specialists", "LoRKD", "LoRKD\\*"))

    def never(*arguments: Any) -> int:
        raise AssertionError(arguments)

    monkeypatch.setattr(experiment, "run", never)
    assert experiment.main(arguments) == 0
    assert capsys.readouterr().out.count(" done ") == 2 * len(stages)


def test_a_stage_that_fails_ends_the_experiment_with_its_status(
    tmp_path: Path, cases: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called = []

    def fail(name: str, arguments: Sequence[str], folder: Path) -> int:
        called.append(name)
        return 2

    monkeypatch.setattr(experiment, "run", fail)
    assert experiment.main(["--cases", str(cases), "--folder", str(tmp_path)]) == 2
    assert called == ["foundation"]


def test_trainings_and_evaluations_are_shared_by_processes(
    tmp_path: Path, cases: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launched: dict[str, bool] = {}
    told: dict[str, bool] = {}

    def note(name: str, arguments: Sequence[str], folder: Path) -> int:
        shared = arguments[:4] == ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        module = arguments[5] if shared else arguments[0]
        launched[module] = shared
        told[module] = "processes=2" in arguments
        return 0

    monkeypatch.setattr(experiment, "run", note)
    ranks = tmp_path / "warmup" / "ranks.json"
    ranks.parent.mkdir()
    ranks.write_text('{"ranks": {}}', encoding="utf-8")
    assert experiment.main(["--cases", str(cases), "--folder", str(tmp_path), "--processes", "2"]) == 0
    assert {name for name, shared in launched.items() if shared} >= {"train.pretrain", "train.decompose"}
    assert {name for name, shared in launched.items() if not shared} == {"train.evaluate", "train.compare"}
    assert [name for name, shared in told.items() if shared] == ["train.evaluate"]


def test_seconds_add_up_over_resumptions(tmp_path: Path) -> None:
    stage = ["timeit", "-n", "1", "-r", "1", "pass"]
    assert experiment.run("first", stage, tmp_path) == 0
    once = experiment.seconds(tmp_path)["first"]
    assert experiment.run("first", stage, tmp_path) == 0
    assert experiment.seconds(tmp_path)["first"] > once > 0
    assert experiment.run("second", ["no_such_module"], tmp_path) == 1
    assert set(json.loads((tmp_path / "seconds.json").read_text(encoding="utf-8"))) == {"first", "second"}


def test_a_missing_list_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        experiment.main(["--cases", str(tmp_path / "none.jsonl")])
    assert stop.value.code == 2
    assert "none.jsonl is not there" in capsys.readouterr().err
