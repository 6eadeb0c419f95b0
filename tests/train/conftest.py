"""What tests of the recipes share: two patients, a store, and a config of the repository brought to two steps."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import train

if TYPE_CHECKING:
    from lorkd_monailabel.experts import Base, Expert
    from lorkd_monailabel.store import ExpertStore

CONFIGS = Path(train.__file__).parent / "configs"


@pytest.fixture
def cases(write_case: Callable[..., dict[str, Any]], write_list: Callable[[list[Any]], Path]) -> Path:
    """Two patients with liver, spleen and heart."""
    labels = np.zeros((14, 12, 12), dtype=np.int16)
    labels[2:5, 2:8, 3:6] = 1
    labels[6:9, 4:8, 3:8] = 2
    labels[10:13, 4:9, 4:9] = 3
    structures = {"liver": ("abdomen", [1]), "spleen": ("abdomen", [2]), "heart": ("thorax", [3])}
    lines = [write_case(np.roll(labels, shift, axis=1), structures, name=f"patient{shift}") for shift in range(2)]
    return write_list(lines)


@pytest.fixture
def make_store(tmp_path: Path, tiny_base: "Base", make_expert: "Callable[..., Expert]") -> "Callable[..., ExpertStore]":
    """Make a store of the tiny base, with a random expert of each department that is named."""
    from lorkd_monailabel.store import ExpertStore

    def make(*departments: str) -> ExpertStore:
        store = ExpertStore(tmp_path / "store")
        store.publish_base(tiny_base)
        for department in departments:
            store.publish(make_expert(department))
        return store

    return make


@pytest.fixture
def arguments(tmp_path: Path, cases: Path) -> Callable[..., list[str]]:
    """Make the arguments of a recipe: a config of the repository, brought to two steps of the tiny network."""

    def make(config: str, **changed: object) -> list[str]:
        settings: dict[str, object] = {
            "data.cases": cases,
            "data.splits": "[]",
            "data.cache": tmp_path / "cache",
            "data.patch": 8,
            "data.spacing_mm": "{ default = 3 }",
            "data.augment": "false",
            "data.workers": 0,
            "output": tmp_path / "run",
            "steps": 2,
            "batch_size": 2,
            "engine.bf16": "false",
        }
        text = (CONFIGS / config).read_text(encoding="utf-8")
        if "sources" in text:
            settings["data.sources"] = "[]"
        if "finetune" not in config:
            settings["network"] = "tiny"
        if "foundation" not in config:
            settings["store"] = tmp_path / "store"
        if "store" in config or config in ("toy.toml", "demo.toml", "small.toml"):
            key = "teacher" if "teacher =" in text else "foundation"
            settings |= {key: tmp_path / "run" / "foundation.safetensors", "warmup_steps": 2}
        settings |= {name.replace("__", "."): value for name, value in changed.items()}
        sets = [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
        return [str(CONFIGS / config), *sets]

    return make
