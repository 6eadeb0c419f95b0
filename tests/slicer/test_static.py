"""What can be seen without running: names in the .ui file, CMake's lists, the catalog."""

import ast
import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

TOP = Path(__file__).parents[2]
MODULE = TOP / "slicer_module" / "LoRKD"
UI = ElementTree.parse(MODULE / "Resources" / "UI" / "LoRKD.ui").getroot()
SOURCES = {path.relative_to(MODULE).as_posix(): path.read_text(encoding="utf-8") for path in MODULE.rglob("*.py")}
WIDGETS = {widget.get("name"): widget.get("class") for widget in UI.iter("widget")}
# of Slicer's parameterNodeWrapper, which takes these very classes and no other
CONNECTORS = {"text": "QTextEdit", "volume": "qMRMLNodeComboBox", "segmentation": "qMRMLNodeComboBox"}


def test_every_widget_that_is_used_is_in_the_panel():
    used = {name for source in SOURCES.values() for name in re.findall(r"\bui\.(\w+)", source)}
    assert len(used) > 20
    assert used <= WIDGETS.keys(), used - WIDGETS.keys()


def test_every_widget_of_the_panel_is_used():
    used = {name for source in SOURCES.values() for name in re.findall(r"\bui\.(\w+)", source)}
    passive = {name for name in WIDGETS if re.match(r"label\d|LoRKD$|\w+Section$", name)}
    assert WIDGETS.keys() - passive - used == set()


def test_fields_of_the_parameter_node_have_widgets_that_slicer_connects():
    found = {}
    for widget in UI.iter("widget"):
        for prop in widget.findall("property"):
            if prop.get("name") == "SlicerParameterName":
                found[prop.findtext("string")] = widget.get("class")
    assert found == CONNECTORS
    (node,) = [
        each for each in ast.parse(SOURCES["LoRKD.py"]).body if getattr(each, "name", "") == "LoRKDParameterNode"
    ]
    assert found.keys() <= {each.target.id for each in node.body if isinstance(each, ast.AnnAssign)}


def test_every_mrml_widget_is_given_the_scene():
    top = UI.find("widget").get("name")
    wired = {each.findtext("receiver") for each in UI.iter("connection") if each.findtext("sender") == top}
    assert wired == {name for name, kind in WIDGETS.items() if kind == "qMRMLNodeComboBox"}


def test_the_sections_are_in_working_order():
    sections = [name for name, kind in WIDGETS.items() if kind == "ctkCollapsibleButton"]
    words = "server segment result correct annotate train advanced"
    assert sections == [f"{word}Section" for word in words.split()]


def test_cmake_lists_every_script_and_resource():
    listed = (MODULE / "CMakeLists.txt").read_text(encoding="utf-8").replace("${MODULE_NAME}", "LoRKD")
    files = [path.relative_to(MODULE) for path in MODULE.rglob("*") if path.is_file()]
    wanted = {f.as_posix() for f in files if f.suffix in {".py", ".ui", ".png", ".json"}}
    wanted = {name for name in wanted if "__pycache__" not in name}
    assert set(re.findall(r"^  (\S+\.(?:py|ui|png|json))$", listed, re.MULTILINE)) == wanted


def test_no_translated_text_is_put_together_before_it_is_looked_up():
    for name, source in SOURCES.items():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "_":
                assert isinstance(node.args[0], ast.Constant), (name, node.lineno)


def test_the_extension_is_described_as_the_index_wants():
    cmake = (TOP / "CMakeLists.txt").read_text(encoding="utf-8")
    entry = json.loads((TOP / "slicer_module" / "LoRKD.json").read_text(encoding="utf-8"))
    assert re.search(r"^project\(LoRKD\)$", cmake, re.MULTILINE)
    for key in ("ICONURL", "SCREENSHOTURLS", "HOMEPAGE", "DESCRIPTION", "CONTRIBUTORS"):
        assert re.search(rf'^set\(EXTENSION_{key} "[^"]+"\)$', cmake, re.MULTILINE), key
    assert {"$schema", "category", "scm_url"} <= entry.keys()
    assert entry["category"] == "Segmentation"
    assert entry["scm_url"].rpartition("/")[2].startswith("Slicer")
    assert (TOP / "LICENSE").exists()
    repository = entry["scm_url"].removeprefix("https://github.com/").removesuffix(".git")
    addresses = re.findall(r"https://[^\s\"]+", cmake)
    pictures = [each.partition(f"{repository}/main/")[2] for each in addresses if "raw.githubusercontent" in each]
    assert all(repository in each for each in addresses)
    assert [each for each in pictures if not (TOP / each).is_file()] == []
    assert len(pictures) >= 2
    assert (TOP / entry["build_subdirectory"] / "CMakeLists.txt").exists()


@pytest.mark.parametrize("word", ["processEvents", "Thread", "ignoreSslErrors", "exec_(", "import requests"])
def test_nothing_blocks_or_weakens(word):
    assert [name for name, source in SOURCES.items() if word in source] == []
