"""Imports point down: the table of CONTRIBUTING.md, read out of the source with ast."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = "lorkd_monailabel"
# A row may import itself and what stands above it. A folder stands for everything in it.
ROWS = (
    ("departments", "demo_data"),
    ("prompts",),
    ("everything", "stopwatch", "drafts", "shipped"),
    ("torch_files", "encoders", "grids"),
    (
        "grids",
        "resampling",
        "volumes",
        "intensities",
        "unpacking",
        "volume_files",
        "label_maps",
        "networks",
        "text_encoder",
        "sliding_window",
        "devices",
        "process",
        "cores",
    ),
    ("layers", "memory", "masks", "dicom_grids", "dicom_seg"),
    ("experts", "headers", "audit", "json_files", "pins"),
    ("store",),
    ("candidates", "revisions", "truncation"),
    ("checkpoints", "teachers"),
    ("answers", "jobs"),
    ("predictor", "learning"),
    ("exports", "case_lists", "active_learning"),
    ("tasks", "compat", "sources"),
    ("app",),
    ("front_door",),
    ("routes",),
    ("main", "asgi"),
    ("commands",),
    ("cli",),
)
VOCABULARY = {"departments", "demo_data", "prompts", "everything", "stopwatch", "drafts", "shipped"}
HOSTED = {"tasks", "sources", "app", "front_door", "routes", "asgi", "main", "cli"}  # may import monailabel
CLIENTS = {"train/demo.py"}  # a recipe that is a client of the server
SLICER = {"numpy", "vtk", "qt", "ctk", "slicer", "SampleData", "LoRKD", "LoRKDLib", "__main__"}


def room(module: str) -> str:
    """``lorkd_monailabel.networks.unet`` -> ``networks``; the package itself -> ````."""
    return module.partition(".")[2].partition(".")[0]


def imports(source: str, modules: set[str]) -> Iterator[tuple[int, str]]:
    """Yield (line, module) of every import, wherever it stands; relative ones begin with a dot."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            origin = "." * node.level + (node.module or "")
            for alias in node.names:
                inner = f"{origin}.{alias.name}"
                yield node.lineno, inner if inner in modules else origin


def package_violations(sources: dict[str, str]) -> list[str]:
    """Say what each module of the package (name -> source) imports against the rules."""
    rank = {name: row for row, names in enumerate(ROWS) for name in names}
    modules = set(sources)
    found = []
    for module, source in sorted(sources.items()):
        own = room(module)
        if own and own not in rank:
            found.append(f"{module}: unknown module; give it a row in tests/test_layers.py and in CONTRIBUTING.md")
            continue
        if own == "main" and any(isinstance(node, ast.ClassDef) for node in ast.walk(ast.parse(source))):
            found.append(
                f"{module}: MONAI Label runs it by path, so its classes would exist twice; move them to app.py"
            )
        for line, target in imports(source, modules):
            top = target.partition(".")[0]
            where = f"{module}:{line} imports {target}"
            if target.startswith("."):
                found.append(f"{where}: relative; write {PACKAGE}.…")
            elif not own:
                found.append(f"{where}: the package's __init__ imports nothing")
            elif top in {"train", "tests", "slicer_module"}:
                found.append(f"{where}: the package never imports {top}/")
            elif top == "monailabel" and own not in HOSTED:
                found.append(f"{where}: only {', '.join(sorted(HOSTED))} may")
            elif top in {"torch", "monai"} and own in VOCABULARY:
                found.append(f"{where}: the vocabulary needs neither torch nor monai")
            elif top == PACKAGE and room(target) in rank and rank[room(target)] > rank[own]:
                found.append(f"{where}: upward, {own} lies below {room(target)}")
            elif top == PACKAGE and room(target) and room(target) not in rank:
                found.append(f"{where}: unknown module")
    return found


def cycles(sources: dict[str, str]) -> list[str]:
    """Name the circles among the package's modules."""
    graph = {
        module: sorted(
            {target for _, target in imports(source, set(sources)) if target in sources and target != module}
        )
        for module, source in sources.items()
    }
    found: list[str] = []
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        if module in path:
            found.append(" -> ".join((*path[path.index(module) :], module)))
        elif module not in done:
            for target in graph[module]:
                visit(target, (*path, module))
            done.add(module)

    for module in sorted(graph):
        visit(module, ())
    return found


def train_violations(sources: dict[str, str]) -> list[str]:
    """Say what the recipes (path -> source) import against the rules."""
    found = []
    for path, source in sorted(sources.items()):
        for line, target in imports(source, set()):
            if target.startswith("."):
                found.append(f"{path}:{line} imports {target}: relative; write train.…")
            elif target.partition(".")[0] in {"monailabel", "tests", "slicer_module"} and path not in CLIENTS:
                found.append(f"{path}:{line} imports {target}: recipes run without it")
    return found


def slicer_violations(sources: dict[str, str]) -> list[str]:
    """Say what the Slicer module (path -> source) imports that Slicer's Python may lack."""
    allowed = SLICER | sys.stdlib_module_names
    return [
        f"{path}:{line} imports {target}: Slicer's Python has the standard library, numpy, vtk, qt, ctk and slicer"
        for path, source in sorted(sources.items())
        for line, target in imports(source, set())
        if not target.startswith(".") and target.partition(".")[0] not in allowed
    ]


def read(root: Path, files: list[Path], folder: str) -> dict[str, str]:
    """Path -> source of the Python files of ``folder``."""
    return {
        path.as_posix(): (root / path).read_text(encoding="utf-8")
        for path in files
        if path.parts[0] == folder and path.suffix == ".py"
    }


def named(sources: dict[str, str]) -> dict[str, str]:
    """``lorkd_monailabel/networks/__init__.py`` -> ``lorkd_monailabel.networks``."""
    return {
        path.removesuffix(".py").removesuffix("/__init__").replace("/", "."): source for path, source in sources.items()
    }


def test_package_imports_point_down(root, project_files):
    sources = named(read(root, project_files, PACKAGE))
    assert PACKAGE in sources
    assert package_violations(sources) == []


def test_package_has_no_circles(root, project_files):
    assert cycles(named(read(root, project_files, PACKAGE))) == []


def test_recipes_import_the_package_only(root, project_files):
    assert train_violations(read(root, project_files, "train")) == []


def test_slicer_module_runs_in_slicers_python(root, project_files):
    assert slicer_violations(read(root, project_files, "slicer_module")) == []


def test_every_folder_of_modules_is_a_package(project_files):
    folders = {path.parent for path in project_files if path.suffix == ".py" and path.parts[0] in {PACKAGE, "train"}}
    assert sorted(folder.as_posix() for folder in folders if folder / "__init__.py" not in project_files) == []


@pytest.mark.parametrize(
    ("module", "source", "message"),
    [
        ("prompts", "from lorkd_monailabel.store import ExpertStore", "upward, prompts lies below store"),
        ("prompts", "from lorkd_monailabel import store", "upward, prompts lies below store"),
        ("departments", "import lorkd_monailabel.prompts", "upward, departments lies below prompts"),
        ("volumes", "def f():\n    import lorkd_monailabel.cli", "upward, volumes lies below cli"),
        ("experts", "from .store import ExpertStore", "relative"),
        ("prompts", "import torch.nn", "neither torch nor monai"),
        (
            "predictor",
            "if True:\n    from monailabel.interfaces.app import MONAILabelApp",
            "only app, asgi, cli, front_door, main",
        ),
        ("learning.losses", "from train.decompose import main", "never imports train/"),
        ("main", "if True:\n    class App: ...", "classes would exist twice"),
        ("utils", "", "unknown module"),
        ("cli", "from lorkd_monailabel.helpers import f", "unknown module"),
    ],
)
def test_planted_violation_is_caught(module, source, message):
    names = ("", ".departments", ".prompts", ".volumes", ".store", ".cli")
    sources = {PACKAGE + name: "" for name in names} | {f"{PACKAGE}.{module}": source}
    (found,) = package_violations(sources)
    assert found.startswith(f"{PACKAGE}.{module}")
    assert message in found


def test_planted_circle_is_caught():
    sources = {
        f"{PACKAGE}.volumes": f"from {PACKAGE} import label_maps",
        f"{PACKAGE}.label_maps": f"from {PACKAGE}.volumes import Grid",
    }
    assert package_violations(sources) == []
    assert cycles(sources) == [f"{PACKAGE}.label_maps -> {PACKAGE}.volumes -> {PACKAGE}.label_maps"]


def test_planted_imports_outside_the_package_are_caught():
    assert "runs without it" not in train_violations({"train/a.py": f"import {PACKAGE}.store"})
    assert len(train_violations({"train/a.py": "import monailabel\nfrom . import b"})) == 2
    assert slicer_violations({"a.py": "import os, slicer.util\nfrom vtk.util import numpy_support"}) == []
    assert len(slicer_violations({"a.py": f"import torch\nimport {PACKAGE}.prompts"})) == 2


def test_downward_imports_pass():
    sources = {
        f"{PACKAGE}.departments": "import json",
        f"{PACKAGE}.cli": f"import torch, monailabel\nfrom {PACKAGE} import __version__, departments",
    }
    assert package_violations(sources) == []
