"""The test that runs inside Slicer by "Reload and Test" passes on Slicer's core too."""

import pytest

from tests.slicer.start import load_module


@pytest.mark.usefixtures("slicer")
def test_reload_and_test(capsys):
    load_module().LoRKDTest().runTest()
    assert "Ran 2 tests" in capsys.readouterr().err
