"""The harness itself: what goes wrong in a slot, an observer, a signal's name or a .ui file fails a test."""

import pytest

pytest_plugins = ["pytester"]

START = """
import pytest
from tests.slicer.start import start

@pytest.fixture
def slicer(qapp, tmp_path):
    return start(tmp_path)
"""
TESTS = """
def test_a_slot_raises(slicer):
    import qt
    button = qt.QPushButton()
    button.connect("clicked()", lambda: 1 / 0)
    button.click()

def test_an_observer_raises(slicer):
    def observe(*_): raise KeyError("observed")
    slicer.mrmlScene.AddObserver(slicer.mrmlScene.NodeAddedEvent, observe)
    slicer.mrmlScene.AddNewNodeByClass("vtkMRMLTextNode")

def test_a_signal_is_unknown(slicer):
    import qt
    qt.QPushButton().connect("pressedd()", print)

def test_a_signal_has_other_arguments(slicer):
    import qt
    qt.QPushButton().connect("clicked(int)", print)

def test_a_widget_is_unknown(slicer, tmp_path):
    (tmp_path / "x.ui").write_text('<ui version="4.0"><widget class="qMRMLOther" name="x"/></ui>')
    slicer.util.loadUI(str(tmp_path / "x.ui"))

def test_a_property_is_unknown(slicer):
    import qt
    qt.QPushButton().txet

def test_all_is_well(slicer):
    import qt
    button, seen = qt.QPushButton("x"), []
    button.connect("clicked()", lambda: seen.append(button.text))
    button.click()
    assert seen == ["x"]
"""
RAISED = {
    "a_slot_raises": "*ZeroDivisionError*",
    "an_observer_raises": "*KeyError: 'observed'*",
    "a_signal_is_unknown": "*ValueError: QPushButton has no signal pressedd()*",
    "a_signal_has_other_arguments": "*ValueError: QPushButton has no signal clicked(int)*",
    "a_widget_is_unknown": "*no stand-in for the widget qMRMLOther*",
    "a_property_is_unknown": "*AttributeError*txet*",
}


def test_what_goes_wrong_fails_a_test(pytester: pytest.Pytester, root, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(root))
    pytester.makeconftest(START)
    pytester.makepyfile(TESTS)
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider")
    result.assert_outcomes(passed=1, failed=len(RAISED))
    for name, line in RAISED.items():
        result.stdout.fnmatch_lines([f"*test_{name}*", line])
