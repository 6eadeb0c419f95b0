"""A panel in a scene, and real servers with tiny networks."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from tests.server.conftest import Server, one_thread, started, wait_for
from tests.slicer.driving import connect
from tests.slicer.start import load_module, start

__all__ = ["one_thread"]

ANGLE = 0.3
OBLIQUE = np.array(
    [
        [2 * np.cos(ANGLE), -1.5 * np.sin(ANGLE), 0, 7],
        [2 * np.sin(ANGLE), 1.5 * np.cos(ANGLE), 0, -3],
        [0, 0, 3.3, 11.5],
        [0, 0, 0, 1],
    ]
)


@pytest.fixture(scope="session")
def server(tmp_path_factory, root, tiny_base, make_expert) -> Iterator[Server]:
    """Our own, with its front door."""
    experts = (make_expert("abdomen", structures=("liver", "spleen", "left kidney")),)
    with started("door", tmp_path_factory.mktemp("door"), root, tiny_base, experts) as server:
        wait_for(server)
        yield server


@pytest.fixture(scope="session")
def application(tmp_path_factory) -> Any:
    """The scene; there is one in a process."""
    return start(tmp_path_factory.mktemp("slicer"))


@pytest.fixture
def slicer(qapp, application, tmp_path) -> Iterator[Any]:
    """Slicer with an empty scene and no preferences."""
    import qt

    qt.QSettings.setDefaultFormat(qt.QSettings.IniFormat)
    qt.QSettings.setPath(qt.QSettings.IniFormat, qt.QSettings.UserScope, str(tmp_path / "settings"))
    qapp.setOrganizationName("tests")
    qapp.setApplicationName("slicer")
    application.mrmlScene.Clear(0)
    application.util.confirmOkCancelDisplay = lambda *_args, **_named: True
    yield application
    application.mrmlScene.Clear(0)
    for node in application.util.getNodesByClass("vtkMRMLSliceNode"):  # singletons, which clearing leaves
        application.mrmlScene.RemoveNode(node)


@pytest.fixture
def make_volume(slicer):
    """Add a volume of noise on an oblique grid."""

    def make(name="ct", shape=(22, 26, 30)):
        node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", name)
        array = np.random.default_rng(7).normal(0, 300, shape).astype(np.int16)
        slicer.util.updateVolumeFromArray(node, array)
        node.SetIJKToRASMatrix(slicer.util.vtkMatrixFromArray(OBLIQUE))
        return node

    return make


@pytest.fixture
def panel(qtbot, slicer) -> Iterator[Any]:
    """The panel, not connected."""
    widget = load_module().LoRKDWidget()
    qtbot.addWidget(widget.parent)
    widget.setup()
    yield widget
    widget.cleanup()


@pytest.fixture
def connected(qtbot, panel, server) -> Any:
    """The panel, connected to the server."""
    connect(qtbot, panel, server.url)
    return panel
