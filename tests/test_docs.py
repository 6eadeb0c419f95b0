"""The README names every option, and every path and recipe that it names exists."""

import re
from dataclasses import fields, is_dataclass
from typing import get_type_hints

from lorkd_monailabel.app import CONF
from lorkd_monailabel.networks.segmenter import SIZES
from train import config

CONFIGS = (config.PretrainConfig, config.DecomposeConfig, config.FinetuneConfig, config.EvaluateConfig)


def keys(config_class: type, prefix: str = "") -> set[str]:
    hints = get_type_hints(config_class)
    found = set()
    for entry in fields(config_class):
        if is_dataclass(hints[entry.name]):
            found |= keys(hints[entry.name], f"{prefix}{entry.name}.")
        else:
            found.add(prefix + entry.name)
    return found


def test_every_key_of_every_config_is_in_the_readme(root):
    readme = (root / "README.md").read_text(encoding="utf-8")
    known = set().union(*map(keys, CONFIGS))
    assert len(known) > 30
    assert sorted(key for key in known if f"`{key}`" not in readme) == []


def test_every_conf_key_of_the_app_is_in_the_readme(root):
    readme = (root / "README.md").read_text(encoding="utf-8")
    assert CONF
    assert [key for key in CONF if f"| `{key}` |" not in readme] == []


def test_every_network_size_is_in_the_readme(root):
    readme = (root / "README.md").read_text(encoding="utf-8")
    assert [size for size in SIZES if f"`{size}`" not in readme] == []


def test_what_the_readme_names_exists(root):
    readme = (root / "README.md").read_text(encoding="utf-8")
    configs = set(re.findall(r"train/configs/\w+\.toml", readme))
    recipes = set(re.findall(r"-m train\.([\w.]*\w)", readme))
    links = set(re.findall(r"\]\((?!http|#)([^)#]+)\)", readme))
    assert configs
    assert recipes
    assert links
    missing = [path for path in configs | links if not (root / path).exists()]
    missing += [recipe for recipe in recipes if not (root / "train" / f"{recipe.replace('.', '/')}.py").exists()]
    assert missing == []


def test_no_figure_is_left_to_fill_in(root):
    for name in ("README.md", "lorkd_monailabel/weights/README.md"):
        assert "@@" not in (root / name).read_text(encoding="utf-8")
