"""The whole story on a real CT, with a real server that serves the default store: segment, correct, submit, retrain,
segment again, roll back. Pictures of it are written on the way, see picture.py."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import requests
import SimpleITK

from lorkd_monailabel.demo_data import DemoData, demo_labels, fetch_demo
from lorkd_monailabel.store import ExpertStore
from tests.server.conftest import Server, started, wait_for
from tests.slicer.driving import connect, masks, order, rows, segment, served
from tests.slicer.picture import PICTURES, Pictures

NAMES = ("left kidney", "liver")
TEXT = "; ".join(NAMES)
PART = np.s_[60:100]
"""Slices of the CT with both of them: the second case."""
FEW = {"steps": 4, "options": {"batch_size": 1, "workers": 0, "augment": False, "learning_rate": 1e-6}}
"""Of a training that is over soon and changes next to nothing."""

pytestmark = pytest.mark.timeout(400)


@pytest.fixture(scope="module")
def demo(root: Path) -> DemoData:
    return fetch_demo(root / ".demo" / "data")


@pytest.fixture(scope="module")
def server(tmp_path_factory, root) -> Iterator[Server]:
    """A server with a copy of the store that is in the package."""
    shipped = ExpertStore(root / "lorkd_monailabel" / "weights" / "store")
    experts = [shipped.load(department) for department in shipped.departments()]
    with started("door", tmp_path_factory.mktemp("story"), root, shipped.base(), experts) as server:
        wait_for(server)
        yield server


@pytest.fixture
def pictures(slicer, tmp_path) -> Iterator[Pictures]:
    made = Pictures(slicer, Path(os.environ.get(PICTURES, tmp_path)))
    yield made
    made.close()


@pytest.fixture
def asked(slicer, monkeypatch) -> list[str]:
    """What the user was asked, and agreed to."""
    questions: list[str] = []
    monkeypatch.setattr(slicer.util, "confirmOkCancelDisplay", lambda text, *_, **__: questions.append(text) or True)
    return questions


@pytest.fixture
def few_steps(monkeypatch) -> None:
    """Trainings have few steps, whatever the panel says of them."""
    import qt

    post = qt.QNetworkAccessManager.post

    def shorter(manager, request, body):
        if request.url().path() == "/lorkd/training":
            body = json.dumps({**json.loads(bytes(body)), **FEW}).encode()
        return post(manager, request, body)

    monkeypatch.setattr(qt.QNetworkAccessManager, "post", shorter)


@pytest.fixture
def editor(slicer, monkeypatch) -> dict[str, object]:
    """What the Segment Editor was given: it is a widget of Slicer's application, which is not here."""
    given: dict[str, object] = {}
    names = ("setSegmentationNode", "setSourceVolumeNode", "setCurrentSegmentID")
    widget = SimpleNamespace(**{name: lambda value, name=name: given.update({name: value}) for name in names})
    own = SimpleNamespace(self=lambda: SimpleNamespace(editor=widget))
    monkeypatch.setattr(
        slicer.modules, "segmenteditor", SimpleNamespace(widgetRepresentation=lambda: own), raising=False
    )
    monkeypatch.setattr(slicer.util, "selectModule", lambda name: given.update({"module": name}))
    return given


def read(slicer, path, name):
    """Read a volume as Slicer's own dialog does, and show it as radiologists see an abdomen."""
    volume = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", name)
    storage = slicer.vtkMRMLVolumeArchetypeStorageNode()
    storage.SetFileName(str(path))
    assert storage.ReadData(volume)
    volume.CreateDefaultDisplayNodes()
    display = volume.GetScalarVolumeDisplayNode()
    display.SetAutoWindowLevel(False)
    display.SetWindowLevel(350, 40)
    slicer.util.setSliceViewerLayers(background=volume, fit=True)
    return volume


def cropped(slicer, volume):
    """Add a part of a volume to the scene, as Slicer's module Crop Volume does."""
    import vtk

    part = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", f"{volume.GetName()} cropped")
    slicer.util.updateVolumeFromArray(part, slicer.util.arrayFromVolume(volume)[PART])
    matrix = vtk.vtkMatrix4x4()
    volume.GetIJKToRASMatrix(matrix)
    for axis in range(3):
        matrix.SetElement(axis, 3, matrix.GetElement(axis, 3) + PART.start * matrix.GetElement(axis, 2))
    part.SetIJKToRASMatrix(matrix)
    return part


def references(demo):
    """The masks (z, y, x) of what another program found."""
    array = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(demo.ct_labels)))
    values = {name: value for value, name in demo_labels("ct").items()}
    return {name: array == values[name] for name in NAMES}


def correct(slicer, node, volume, name, mask):
    """What the Segment Editor does with a segment; it renews surfaces."""
    key = node.GetSegmentation().GetSegmentIdBySegmentName(name)
    slicer.util.updateSegmentBinaryLabelmapFromArray(mask.astype(np.uint8), node, key, volume)
    node.CreateClosedSurfaceRepresentation()


def submit(qtbot, panel):
    panel.ui.submitButton.click()
    qtbot.waitUntil(lambda: panel.ui.submitButton.enabled, timeout=60_000)
    return panel.ui.submitLabel.text


def expert(server):
    return requests.get(f"{server.url}/lorkd/experts/abdomen", timeout=10).json()


@pytest.mark.usefixtures("few_steps")
def test_the_whole_story(qtbot, slicer, panel, server, demo, pictures, asked, editor, tmp_path):
    ui, reference = panel.ui, references(demo)
    volume = read(slicer, demo.ct, "CT")

    # connect, pick a department, type: segments are the server's own, voxel for voxel
    connect(qtbot, panel, server.url)
    ui.departmentCombo.setCurrentIndex(ui.departmentCombo.findData("abdomen"))
    assert ui.departmentLabel.text.startswith("Revision 1: ")
    node = segment(qtbot, panel, volume, TEXT)
    assert len(asked) == 1
    assert server.url in asked[0]
    found = masks(slicer, node, volume)
    wanted = served(server.url, demo.ct, {"text": TEXT, "department": "abdomen"}, tmp_path)
    assert found.keys() == wanted.keys() == set(NAMES)
    for name in NAMES:
        np.testing.assert_array_equal(found[name], wanted[name])
        assert (found[name] & reference[name]).sum() > 0.5 * reference[name].sum()
    assert [row[:2] for row in rows(panel)] == [[name, "abdomen/0001"] for name in NAMES]
    ui.show3DButton.click()
    pictures.write("segment", panel, node, NAMES)

    # correct one segment, submit the case and another one
    ui.resultTable.setCurrentCell(0, 0)
    ui.editButton.click()
    segmentation = node.GetSegmentation()
    assert editor["module"] == "SegmentEditor"
    assert editor["setCurrentSegmentID"] == segmentation.GetSegmentIdBySegmentName("left kidney")
    correct(slicer, node, volume, "left kidney", reference["left kidney"])
    ui.annotateSection.collapsed = False
    assert submit(qtbot, panel).startswith("Submitted for CT")
    pictures.write("submit", panel, node, NAMES)
    part = cropped(slicer, volume)
    drawn = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "drawn")
    drawn.CreateDefaultDisplayNodes()
    drawn.SetReferenceImageGeometryParameterFromVolumeNode(part)
    for name in NAMES:
        drawn.GetSegmentation().AddEmptySegment("", name)
        correct(slicer, drawn, part, name, reference[name][PART])
    ui.volumeSelector.setCurrentNode(part)
    ui.segmentationSelector.setCurrentNode(drawn)
    assert submit(qtbot, panel).startswith("Submitted for CT cropped")
    slicer.mrmlScene.RemoveNode(drawn)
    slicer.mrmlScene.RemoveNode(part)

    # retrain: what comes of it is served, at once or when the user says so
    ui.annotateSection.collapsed, ui.trainSection.collapsed = True, False
    ui.trainCombo.setCurrentIndex(ui.trainCombo.findData("abdomen"))
    qtbot.waitUntil(lambda: ui.trainButton.enabled, timeout=20_000)
    ui.trainButton.click()
    qtbot.waitUntil(lambda: ui.trainButton.text == "Stop", timeout=20_000)
    qtbot.waitUntil(lambda: ui.trainButton.text == "Train", timeout=200_000)
    if not ui.trainLabel.text.startswith("Published as revision 2. "):
        assert ui.trainLabel.text.startswith("Kept as a candidate, not published. ")
        qtbot.waitUntil(lambda: ui.publishButton.enabled, timeout=20_000)
        ui.publishButton.click()
    qtbot.waitUntil(lambda: ui.departmentLabel.text.startswith("Revision 2: "), timeout=20_000)
    assert expert(server)["served"] == 2

    # segment again: the row names the new revision, and what was corrected stays
    ui.segmentationSelector.setCurrentNode(node)
    assert segment(qtbot, panel, volume, TEXT) is node
    assert [row[:2] for row in rows(panel)] == [[name, "abdomen/0002"] for name in NAMES]
    found = masks(slicer, node, volume)
    assert found.keys() == {*NAMES, "left kidney 2"}
    np.testing.assert_array_equal(found["left kidney"], reference["left kidney"])
    qtbot.waitUntil(lambda: ui.revisionCombo.count == 2 and ui.trainButton.enabled, timeout=20_000)
    assert ui.revisionCombo.currentData == 2
    assert not ui.rollbackButton.enabled
    pictures.write("train", panel, node, NAMES)

    # roll back: the first revision's weights are served anew
    ui.revisionCombo.setCurrentIndex(ui.revisionCombo.findData(1))
    ui.rollbackButton.click()
    qtbot.waitUntil(lambda: ui.departmentLabel.text.startswith("Revision 3: "), timeout=20_000)
    assert expert(server)["served"] == 3
    first, third = (server.store.load("abdomen", revision).factors for revision in (1, 3))
    assert all(first[name][part].equal(third[name][part]) for name in first for part in (0, 1))
    assert len(asked) == 1


def test_the_server_may_die_while_it_runs(qtbot, slicer, panel, server, demo):
    """The last test of this server."""
    connect(qtbot, panel, server.url)
    order(panel, read(slicer, demo.ct, "CT"), TEXT)
    qtbot.waitUntil(lambda: "Segmenting: abdomen" in panel.ui.statusLabel.text, timeout=60_000)
    server.process.kill()
    qtbot.waitUntil(lambda: panel.ui.applyButton.text == "Apply", timeout=30_000)
    assert server.url in panel.ui.statusLabel.text
    assert slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode") == 0
