"""The test that runs inside Slicer by "Reload and Test" passes on Slicer's core too."""

import pytest

from tests.slicer.start import load_module


@pytest.mark.usefixtures("slicer")
def test_reload_and_test(monkeypatch):
    module = load_module()
    undone = []
    undo = module.undo
    monkeypatch.setattr(module, "undo", lambda added: undone.append(added) or undo(added))
    module.LoRKDTest().runTest()
    assert len(undone) == 1
