"""The panel without a server: parameters, completion, suggestions, the way to the Segment Editor, errors of tokens."""

from types import SimpleNamespace

import numpy as np
import pytest


@pytest.fixture
def drawn(slicer, panel, make_volume):
    """A panel whose last run found a liver; gives it and the segment's id."""
    from LoRKDLib.results import Row
    from LoRKDLib.segments import add_segments, new_segmentation

    volume = make_volume()
    source = new_segmentation(volume)
    mask = np.zeros((22, 26, 30), np.uint8)
    mask[4:9, 5:12, 6:20] = 1
    key = source.GetSegmentation().AddEmptySegment("", "liver")
    slicer.util.updateSegmentBinaryLabelmapFromArray(mask, source, key, volume)
    panel.initializeParameterNode()
    panel.results.added = add_segments(source, None, volume, [1])
    slicer.mrmlScene.RemoveNode(source)
    panel.session.parameters.segmentation = slicer.mrmlScene.GetNodeByID(panel.results.added.node)
    panel.results.rows = [Row(("liver", "abdomen/0001", "1", "found"), panel.results.added.segments[1])]
    panel.results._fill()
    panel.session.changed()
    return panel


def test_the_parameters_survive_saving_and_loading_a_scene(slicer, panel, make_volume):
    make_volume("saved")
    panel.initializeParameterNode()
    panel.ui.promptEdit.setPlainText("liver; spleen")
    panel.session.parameters.department = "thorax"
    scene = slicer.mrmlScene
    scene.SetSaveToXMLString(1)
    scene.Commit()
    saved = scene.GetSceneXMLString()
    scene.Clear(0)
    assert panel.session.parameters.text == ""
    assert panel.ui.promptEdit.plainText == ""
    scene.SetLoadFromXMLString(1)
    scene.SetSceneXMLString(saved)
    scene.Import()
    panel.enter()
    assert (panel.session.parameters.text, panel.session.parameters.department) == ("liver; spleen", "thorax")
    assert panel.ui.promptEdit.plainText == "liver; spleen"
    assert panel.session.parameters.volume.GetName() == "saved"


def test_a_name_takes_the_place_of_the_phrase_at_the_cursor(panel):
    import qt

    edit = panel.ui.promptEdit
    edit.setPlainText("liver; left ki\nspleen")
    cursor = edit.textCursor()
    cursor.setPosition(len("liver; left ki"))
    edit.setTextCursor(cursor)
    panel.segment._completion.set_names(["left kidney"])
    panel.segment._completion.offer()
    panel.segment._completion.insert("left kidney")
    assert edit.plainText == "liver; left kidney\nspleen"
    assert isinstance(panel.segment._completion._completer.model(), qt.QStringListModel)


def test_a_suggestion_is_segmented_by_a_click(panel, monkeypatch):
    from LoRKDLib.results import Row

    asked = []
    monkeypatch.setattr(panel.results, "_segment", asked.append)
    panel.results.rows = [Row(("x", "", "", "")), Row(("→ spleen", "", "", ""), suggestion="spleen")]
    panel.results._fill()
    panel.ui.resultTable.cellClicked.emit(0, 0)
    panel.ui.resultTable.cellClicked.emit(1, 0)
    assert asked == ["spleen"]


def test_a_row_leads_to_its_segment(slicer, drawn):
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSliceNode", "Red")
    node.SetLayoutName("Red")
    before = node.GetSliceToRAS().GetElement(2, 3)
    drawn.ui.resultTable.cellClicked.emit(0, 0)
    center = drawn.session.parameters.segmentation.GetSegmentCenterRAS(drawn.results.rows[0].segment)
    assert node.GetSliceToRAS().GetElement(2, 3) == pytest.approx(center[2], abs=1e-6)
    assert before != pytest.approx(center[2], abs=1)


def test_the_segment_editor_opens_on_the_segment(slicer, drawn, monkeypatch):
    seen = {}
    names = ("setSegmentationNode", "setSourceVolumeNode", "setCurrentSegmentID")
    editor = SimpleNamespace(**{name: lambda value, name=name: seen.__setitem__(name, value) for name in names})
    widget = SimpleNamespace(self=lambda: SimpleNamespace(editor=editor))
    own = SimpleNamespace(widgetRepresentation=lambda: widget)
    monkeypatch.setattr(slicer.modules, "segmenteditor", own, raising=False)
    monkeypatch.setattr(slicer.util, "selectModule", lambda name: seen.__setitem__("module", name))
    drawn.ui.resultTable.selectRow(0)
    drawn.ui.resultTable.setCurrentCell(0, 0)
    drawn.ui.editButton.click()
    parameters = drawn.session.parameters
    assert seen == {
        "module": "SegmentEditor",
        "setSegmentationNode": parameters.segmentation,
        "setSourceVolumeNode": parameters.volume,
        "setCurrentSegmentID": drawn.results.rows[0].segment,
    }


def test_3d_is_shown_by_a_button(drawn):
    node = drawn.session.parameters.segmentation
    drawn.ui.show3DButton.click()
    assert node.GetSegmentation().ContainsRepresentation("Closed surface")


def test_a_segmentation_may_be_deleted_before_its_run_is_undone(slicer, drawn):
    slicer.mrmlScene.RemoveNode(drawn.session.parameters.segmentation)
    assert drawn.session.parameters.segmentation is None
    assert not drawn.ui.undoButton.enabled
    drawn.results.undo()
    assert drawn.ui.statusLabel.text == "Its segmentation is gone already."


def test_the_shortcut_is_the_panels_alone(panel):
    import qt

    assert panel._shortcut.context == qt.Qt.WidgetWithChildrenShortcut
    panel.exit()
    assert not panel._shortcut.enabled
    panel.enter()
    assert panel._shortcut.enabled


def test_nothing_can_be_pressed_before_there_is_a_server(panel):
    ui = panel.ui
    buttons = (ui.applyButton, ui.trainButton, ui.nextButton, ui.submitButton, ui.undoButton, ui.rollbackButton)
    assert not any(button.enabled for button in buttons)
    assert ui.applyButton.toolTip == "Connect to a server first."
    assert ui.serverLabel.text == "Not connected."


@pytest.mark.parametrize(
    ("labels", "values"),
    [
        ({"background": 0, "liver": 4, "spleen": "9"}, {"liver": 4, "spleen": 9}),
        (["background", "spleen", "liver"], {"spleen": 1, "liver": 2}),
        (["spleen", "liver"], {"spleen": 1, "liver": 2}),
        (None, {}),
    ],
)
def test_labels_of_models_have_values(panel, labels, values):
    from LoRKDLib.session import label_values

    assert label_values({"labels": labels}) == values


def test_a_submission_names_values_with_and_without_overlaps(slicer, panel):
    from LoRKDLib.annotating import described

    plain = described({"spleen": [2], "liver": [1]}, overlap=False)
    assert plain["label_info"] == [{"name": "liver", "idx": 1}, {"name": "spleen", "idx": 2}]
    assert described({"a": [1, 3], "b": [2, 3]}, overlap=True)["params"] == {"label_names": {"a": [1, 3], "b": [2, 3]}}
