"""Names that MONAI Label leaves free: it puts the app directory before everything else on the import path."""

import importlib.metadata
import sys
from pathlib import Path

import pytest

APP = "lorkd_monailabel"
MADE_BY_MONAI_LABEL = {"bin", "lib", "logs", "model"}
TOP_LEVEL = {
    APP,
    "train",
    "slicer_module",
    "tests",
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "LICENSE",
    "CMakeLists.txt",
    "pyproject.toml",
    "setup",
    "run-tests",
    "demo",
    ".ci",
    ".gitignore",
    ".pre-commit-config.yaml",
}


def clashes(names: set[str]) -> list[str]:
    """Say which names of modules in the app directory would hide another module."""
    installed = importlib.metadata.packages_distributions()
    reasons = {
        name: "the standard library"
        if name in sys.stdlib_module_names
        else "MONAI Label, which makes that folder itself"
        if name in MADE_BY_MONAI_LABEL
        else ", ".join(sorted(set(installed[name])))
        for name in names
        if name in sys.stdlib_module_names or name in MADE_BY_MONAI_LABEL or name in installed
    }
    return [f"{name} belongs to {owner}" for name, owner in sorted(reasons.items())]


def test_our_modules_hide_nobody_elses(project_files):
    inside = [path.relative_to(APP) for path in project_files if path.parts[0] == APP]
    names = {Path(path.parts[0]).stem for path in inside if path.suffix == ".py" or len(path.parts) > 1}
    assert "demo_data" in names
    assert clashes(names - {"__init__"}) == []


@pytest.mark.parametrize(
    ("name", "owner"),
    [("types", "the standard library"), ("queue", "the standard library"), ("lib", "MONAI Label"), ("torch", "torch")],
)
def test_planted_clash_is_caught(name, owner):
    (found,) = clashes({name, "departments"})
    assert found.startswith(f"{name} belongs to {owner}")


def test_top_level_is_what_contributing_says(project_files):
    extra = {path.parts[0] for path in project_files} - TOP_LEVEL
    assert not extra, f"{sorted(extra)} at the top of the tree; the folders there are fixed, put it in one of them"
