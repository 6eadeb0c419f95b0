"""Rules of the module's own text: how long it is, and that all that a user reads can be translated."""

import ast
import re
from pathlib import Path
from xml.etree import ElementTree

MODULE = Path(__file__).parents[2] / "slicer_module" / "LoRKD"
SOURCES = {path.relative_to(MODULE).as_posix(): path.read_text(encoding="utf-8") for path in MODULE.rglob("*.py")}
MOST_LINES, MOST_LINES_IN_ALL = 299, 1499
SENTENCE = re.compile(r"\W*[A-Z][a-z]+('s)? [a-z{]|[a-z]+( [a-z{}]+){2}")
"""How a text begins that people read: a capital word and another, or three words."""
SHOWN_BY = {"setText", "setToolTip", "setTitle", "setPlaceholderText", "addItem", "say"}
"""Methods that show a text, be it one word."""
UNREAD_CALLS = {"_", "translate", "ValueError"}
"""What is given to these is translated already, or caught within the module."""
NOT_READ = {
    *("Binary labelmap", "Closed surface"),  # names of representations
    "Segmentation category and type - 3D Slicer General Anatomy list",  # the name of a list of terms
    "Bearer {self._token}",
}


def readable(source: str) -> list[str]:
    """Texts that people read, and that are not in ``_()``."""
    tree, left_out, shown = ast.parse(source), set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in UNREAD_CALLS:
            left_out |= {id(each) for each in ast.walk(node)}
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in SHOWN_BY:
            shown |= {id(each) for each in node.args[:1]}
        elif isinstance(node, ast.Expr):  # a docstring
            left_out.add(id(node.value))
        elif isinstance(node, ast.JoinedStr):  # its parts are looked at as one
            left_out |= {id(each) for each in node.values}
    texts = []
    for node in ast.walk(tree):
        if id(node) not in left_out and isinstance(node, ast.Constant | ast.JoinedStr):
            text = ast.unparse(node)[2:-1] if isinstance(node, ast.JoinedStr) else node.value
            read = isinstance(text, str) and (SENTENCE.match(text) or (id(node) in shown and text[:1].isupper()))
            if read and text not in NOT_READ:
                texts.append(text)
    return texts


def test_no_file_is_long_and_all_together_are_short():
    lines = {name: len(source.splitlines()) for name, source in SOURCES.items()}
    assert [name for name, count in lines.items() if count > MOST_LINES] == []
    assert sum(lines.values()) <= MOST_LINES_IN_ALL, lines


def test_all_that_is_read_can_be_translated():
    assert {name: readable(source) for name, source in SOURCES.items() if readable(source)} == {}


def test_a_text_that_cannot_be_translated_would_be_found():
    source = '''def f():
    """Do it."""
    a.setText("Apply"); b(f"Sent {x} of it"); c(_("Fine")); d("Closed surface"); e["not found yet"]; g("key", "a b")'''
    assert readable(source) == ["Apply", "Sent {x} of it", "not found yet"]


def test_all_that_is_read_in_the_panel_can_be_translated():
    texts = ElementTree.parse(MODULE / "Resources" / "UI" / "LoRKD.ui").getroot().iter("string")
    assert [each.text for each in texts if each.get("notr") == "true" and SENTENCE.match(each.text or "")] == []
