"""Calls of the module into Slicer's core exist and take what they are given: mypy and the methods' own signatures say
so, on stubs that are made from slicer-core."""

import ast
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

MODULE = Path(__file__).parents[2] / "slicer_module" / "LoRKD"
CONFIG = """
[mypy]
check_untyped_defs = true
strict_optional = false
mypy_path = {stubs}:{module}
[mypy-slicer,vtk,vtkmodules.*]
ignore_errors = true
[mypy-numpy.*]
follow_imports = skip
ignore_missing_imports = true
"""
PLANTED = """
import slicer
segmentation = slicer.vtkMRMLSegmentationNode()
segmentation.SetReferenceImageGeometryFromVolume(None)
segmentation.GetSegmentation().GetSegment()
slicer.mrmlScene.GetNodeByID("x").Whatever()
"""


@pytest.fixture(scope="module")
def stubs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("stubs")
    subprocess.run([sys.executable, "-m", "tests.slicer.stubs", str(folder)], cwd=MODULE.parents[1], check=True)
    return folder


@pytest.fixture(scope="module")
def complaints(stubs, tmp_path_factory) -> list[str]:
    """What mypy says of the module, and of a file with errors."""
    folder = tmp_path_factory.mktemp("mypy")
    (folder / "mypy.ini").write_text(CONFIG.format(stubs=stubs, module=MODULE), encoding="utf-8")
    (folder / "planted.py").write_text(PLANTED, encoding="utf-8")
    command = [sys.executable, "-m", "mypy", "--no-error-summary", "--hide-error-context"]
    command += ["--config-file", str(folder / "mypy.ini"), "--cache-dir", str(folder / "cache")]
    command += [str(folder / "planted.py"), str(MODULE / "LoRKD.py"), str(MODULE / "LoRKDLib")]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    return [line.replace(f"{MODULE}/", "") for line in done.stdout.splitlines() if ": error: " in line]


def test_mypy_finds_nothing(complaints):
    wrapped = 'Too many arguments for "LoRKDParameterNode"'  # its decorator gives it another constructor
    assert [line for line in complaints if not line.startswith("planted.py") and wrapped not in line] == []


def test_mypy_would_find_a_wrong_name_and_a_wrong_count_of_arguments(complaints):
    found = [line for line in complaints if line.startswith("planted.py")]
    assert [re.search(r":(\d+): .*\[([\w-]+)\]$", line).groups() for line in found] == [
        ("4", "attr-defined"),
        ("5", "call-arg"),
    ]


@pytest.fixture(scope="module")
def methods(stubs) -> dict[str, list[tuple[int, int]]]:
    """Name of a method -> least and most arguments, of each class that has one of that name."""
    vtk = Path(importlib.util.find_spec("vtkmodules").origin).parent
    files = [*stubs.rglob("*.pyi"), *(vtk / f"vtkCommon{name}.pyi" for name in ("Core", "DataModel", "Math"))]
    known: dict[str, list[tuple[int, int]]] = {}
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            for method in node.body if isinstance(node, ast.ClassDef) else ():
                if isinstance(method, ast.FunctionDef):
                    given = [each.arg for each in method.args.args if each.arg != "self"]
                    most = 99 if method.args.vararg else len(given)
                    known.setdefault(method.name, []).append((len(given) - len(method.args.defaults), most))
    return known


def imported(tree: ast.AST) -> set[str]:
    """Names of modules that are no VTK."""
    names = [each.name for node in ast.walk(tree) if isinstance(node, ast.Import) for each in node.names]
    return {name.partition(".")[0] for name in names} - {"slicer", "vtk"}


def strange(source: str, methods: dict[str, list[tuple[int, int]]]) -> list[str]:
    """Calls of methods that no class of VTK or Slicer has with so many arguments, whatever the object is."""
    found, tree = [], ast.parse(source)
    others = imported(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and re.match("[A-Z]", node.func.attr):
            more = 99 if any(isinstance(each, ast.Starred) for each in node.args) else 0
            counts = methods.get(node.func.attr, [])
            fits = any(least <= len(node.args) + more and len(node.args) - bool(more) <= most for least, most in counts)
            if not fits and ast.unparse(node.func).partition(".")[0] not in others:
                found.append(ast.unparse(node))
    return found


def test_every_method_of_vtks_kind_exists_somewhere(methods):
    files = {path.name: path.read_text(encoding="utf-8") for path in MODULE.rglob("*.py")}
    assert {name: strange(source, methods) for name, source in files.items() if strange(source, methods)} == {}
    assert strange(PLANTED, methods) == [
        "segmentation.SetReferenceImageGeometryFromVolume(None)",
        "segmentation.GetSegmentation().GetSegment()",
        "slicer.mrmlScene.GetNodeByID('x').Whatever()",
    ]
