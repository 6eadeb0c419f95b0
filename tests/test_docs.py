"""The pages of the documentation name every option, and every path and recipe that they name exists."""

import re
from dataclasses import fields, is_dataclass
from typing import get_type_hints

import pytest

from lorkd_monailabel.app import CONF
from lorkd_monailabel.networks.segmenter import SIZES
from train import settings
from train.compare import CompareConfig
from train.evaluate import EvaluateConfig

PAGES = ("README.md", "train/README.md", "lorkd_monailabel/README.md")
CONFIGS = (settings.PretrainConfig, settings.DecomposeConfig, settings.FinetuneConfig, EvaluateConfig, CompareConfig)


def keys(config_class: type, prefix: str = "") -> set[str]:
    hints = get_type_hints(config_class)
    found = set()
    for entry in fields(config_class):
        if is_dataclass(hints[entry.name]):
            found |= keys(hints[entry.name], f"{prefix}{entry.name}.")
        else:
            found.add(prefix + entry.name)
    return found


def test_every_key_of_every_config_has_its_row(root):
    page = (root / "train" / "README.md").read_text(encoding="utf-8")
    known = set().union(*map(keys, CONFIGS))
    assert len(known) > 30
    assert sorted(key for key in known if f"`{key}`" not in page) == []


def test_every_conf_key_of_the_app_has_its_row(root):
    page = (root / "lorkd_monailabel" / "README.md").read_text(encoding="utf-8")
    assert CONF
    assert [key for key in CONF if f"| `{key}` |" not in page] == []


def test_every_network_size_is_named(root):
    page = (root / "train" / "README.md").read_text(encoding="utf-8")
    assert [size for size in SIZES if f"`{size}`" not in page] == []


@pytest.mark.parametrize("name", PAGES)
def test_what_a_page_names_exists(root, name):
    readme = (root / name).read_text(encoding="utf-8")
    configs = set(re.findall(r"train/configs/\w+\.toml", readme))
    recipes = set(re.findall(r"-m train\.([\w.]*\w)", readme))
    links = set(re.findall(r"\]\((?!http|#)([^)#]+)\)", readme))
    assert configs | recipes | links
    missing = [path for path in configs if not (root / path).exists()]
    missing += [path for path in links if not (root / name).parent.joinpath(path).exists()]
    places = {recipe: root / "train" / recipe.replace(".", "/") for recipe in recipes}
    missing += [
        recipe
        for recipe, place in places.items()
        if not (place.with_suffix(".py").exists() or (place / "__main__.py").exists())
    ]
    assert missing == []


def test_no_figure_is_left_to_fill_in(root):
    for name in (*PAGES, "lorkd_monailabel/weights/README.md"):
        assert "@@" not in (root / name).read_text(encoding="utf-8")
