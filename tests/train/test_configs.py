"""Every config of train/ is read by its recipe and takes a step."""

import importlib
import shutil
from collections.abc import Callable, Mapping
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import pytest

from lorkd_monailabel.departments import department
from lorkd_monailabel.networks.segmenter import SIZES
from lorkd_monailabel.store import ExpertStore
from train.compare import CompareConfig
from train.config import load
from train.evaluate import EvaluateConfig
from train.settings import DecomposeConfig, FinetuneConfig, PretrainConfig

CLASSES = {
    "pretrain": PretrainConfig,
    "decompose": DecomposeConfig,
    "finetune": FinetuneConfig,
    "evaluate": EvaluateConfig,
    "compare": CompareConfig,
}
SMALL = "experiments/decomposition_small"
RECIPES = {
    "configs/default_foundation.toml": "pretrain",
    "configs/default_foundation_more.toml": "pretrain",
    "configs/default_store.toml": "decompose",
    "configs/default_store_more.toml": "decompose",
    "configs/demo.toml": "decompose",
    "configs/toy.toml": "decompose",
    "configs/small.toml": "decompose",
    "configs/nano.toml": "decompose",
    "configs/pro.toml": "decompose",
    "configs/finetune.toml": "finetune",
    "configs/evaluate.toml": "evaluate",
    "configs/compare.toml": "compare",
    "experiments/active_learning/base.toml": "pretrain",
    f"{SMALL}/foundation.toml": "pretrain",
    f"{SMALL}/specialist.toml": "pretrain",
    f"{SMALL}/warmup.toml": "decompose",
    f"{SMALL}/joint.toml": "decompose",
    f"{SMALL}/joint_more.toml": "decompose",
    f"{SMALL}/finetune.toml": "finetune",
    f"{SMALL}/evaluate.toml": "evaluate",
    f"{SMALL}/compare.toml": "compare",
}


def config_of(root: Path, name: str) -> Any:
    return load(CLASSES[RECIPES[name]], root / "train" / name)


def run(recipe: str, config: Path, settings: Mapping[str, object]) -> int:
    sets = [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
    return int(importlib.import_module(f"train.{recipe}").main([str(config), *sets]))


def test_the_table_names_every_config(root: Path) -> None:
    found = {path.relative_to(root / "train").as_posix() for path in (root / "train").rglob("*.toml")}
    assert found == RECIPES.keys()
    assert len(found) == 21


@pytest.mark.parametrize("name", RECIPES)
def test_names_in_a_config_are_known(root: Path, name: str) -> None:
    config = config_of(root, name)
    assert is_dataclass(config)
    assert getattr(config, "network", "tiny") in SIZES
    tables = [config.data.spacing_mm, config.data.weights] if hasattr(config, "data") else []
    named = {key for table in tables for key in table if key != "default"} | {getattr(config, "department", "brain")}
    assert {department(own).id for own in named} == named


def test_ranks_are_equal_unless_a_config_says_otherwise(root: Path) -> None:
    told = {name: config_of(root, name) for name, recipe in RECIPES.items() if recipe == "decompose"}
    star = {name: config for name, config in told.items() if config.rank_rule == "loss_reduction"}
    assert {Path(name).stem for name in star} == {"default_store", "small", "nano", "pro", "warmup"}
    assert {(own.rounding, own.transfer, own.beta) for own in star.values()} == {("floor_even", "bernoulli", 0.1)}
    assert {Path(name).stem: own.rank for name, own in told.items() if SMALL in name} == {
        "warmup": 6,
        "joint": 6,
        "joint_more": 6,
    }
    assert {own.rank for name, own in star.items() if SMALL not in name} == {8}
    bounds = {Path(name).stem: (own.least_rank, own.most_rank) for name, own in star.items()}
    assert bounds == {"default_store": (2, 16), "small": (2, 16), "nano": (2, 12), "pro": (4, 16), "warmup": (4, 10)}
    assert all(not own.ranks for own in told.values())


Step = Callable[..., tuple[int, Path]]


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where what a config starts from is made, once for all of them."""
    return tmp_path_factory.mktemp("earlier")


@pytest.fixture
def take_a_step(root: Path, tmp_path: Path, cases: Path, earlier: Path) -> Step:
    """Run a recipe's config with tiny networks; the output folder is in the answer."""

    def made(name: str, output: str, **changed: object) -> Path:
        """Give the output of another config."""
        folder = earlier / output
        assert folder.exists() or step(name, folder, **changed)[0] == 0
        return folder

    def step(name: str, folder: Path, **changed: object) -> tuple[int, Path]:
        recipe, config = RECIPES[name], config_of(root, name)
        settings: dict[str, object] = {"output": folder}
        if recipe in ("pretrain", "decompose", "finetune"):
            settings |= {"data.cases": cases, "data.cache": tmp_path / "cache", "data.splits": "[]"}
            settings |= {"data.sources": "[]", "data.workers": 0, "data.patch": 8, "data.max_queries": 4}
            settings |= {"steps": 1, "batch_size": 2, "engine.bf16": "false"}
        if recipe in ("pretrain", "decompose"):
            settings |= {"start": '""', "network": "tiny", "data.spacing_mm": "{ default = 3 }", "queries": '""'}
        if recipe == "decompose":
            form = config.data.intensities
            teacher = made(f"{SMALL}/foundation.toml", f"teacher-{form}", data__intensities=form)
            settings["teacher" if config.teacher else "foundation"] = teacher / "foundation.safetensors"
            settings |= {"store": folder / "store", "rank": 2, "most_rank": 8, "probe_samples": 1}
            settings |= {"warmup_steps": min(1, config.warmup_steps), "steps": min(1, config.steps)}
            if config.start:
                settings["start"] = made(f"{SMALL}/warmup.toml", f"start-{form}", data__intensities=form) / "store"
        if recipe == "finetune":
            settings["store"] = tmp_path / "store"
            shutil.copytree(made("configs/toy.toml", "decomposed") / "store", tmp_path / "store")
        if recipe == "evaluate":
            settings |= {"cases": cases, "splits": "[]", "model": made("configs/toy.toml", "decomposed") / "store"}
        if recipe == "compare":
            evaluated = earlier / "evaluated"
            assert evaluated.with_suffix(".csv").exists() or step("configs/evaluate.toml", evaluated)[0] == 0
            settings |= {"runs": f'{{ only = "{evaluated}" }}', "reference": "only", "ablations": "{}"}
        settings |= {key.replace("__", "."): value for key, value in changed.items()}
        return run(recipe, root / "train" / name, settings), folder

    return step


@pytest.mark.parametrize("name", RECIPES)
def test_a_config_takes_a_step(name: str, take_a_step: Step, tmp_path: Path) -> None:
    status, folder = take_a_step(name, tmp_path / "run")
    assert status == 0
    made = {
        "pretrain": "foundation.safetensors",
        "decompose": "store/abdomen/0001.safetensors",
        "finetune": "report.html",
        "evaluate": ".csv",
        "compare": "tables.md",
    }
    product = made[RECIPES[name]]
    assert (folder.with_suffix(product) if product.startswith(".") else folder / product).is_file()
    if RECIPES[name] == "finetune":
        assert ExpertStore(tmp_path / "store").revisions("thorax" if SMALL in name else "abdomen") == (1, 2)
