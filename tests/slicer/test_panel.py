"""The panel without a server: parameters, completion, results, the way to the Segment Editor, preferences, cleanup."""

from types import SimpleNamespace

import numpy as np
import pytest

from tests.slicer.start import load_module


@pytest.fixture
def drawn(slicer, panel, make_volume):
    """A panel whose last run found a liver, and offers a spleen."""
    from LoRKDLib.segments import add_segments, new_segmentation

    volume = make_volume()
    source = new_segmentation(volume)
    mask = np.zeros((22, 26, 30), np.uint8)
    mask[4:9, 5:12, 6:20] = 1
    key = source.GetSegmentation().AddEmptySegment("", "liver")
    slicer.util.updateSegmentBinaryLabelmapFromArray(mask, source, key, volume)
    panel.ui.volumeSelector.setCurrentNode(volume)
    added = add_segments(source, None, volume, [1])
    slicer.mrmlScene.RemoveNode(source)
    panel.ui.segmentationSelector.setCurrentNode(slicer.mrmlScene.GetNodeByID(added.node))
    liver = (("liver", "abdomen/0001", "1", "found"), added.segments[1], "")
    panel.results.fill(added, [liver, (("→ spleen", "", "", ""), "", "spleen")])
    panel.segment_id = added.segments[1]
    return panel


def test_the_table_is_as_wide_as_the_panel_after_every_run(qtbot, drawn):
    drawn.parent.resize(520, 900)
    drawn.parent.show()
    table, header = drawn.ui.resultTable, drawn.ui.resultTable.horizontalHeader()
    short = (("liver", "abdomen/0001", "1.5", "found"), "", "")
    long = (("portal vein and splenic vein", "abdomen/0001", "1234.5", "not found in this volume"), "", "")
    for rows in ([short], [short, long], [short], [long] * 30, []):
        drawn.results.fill(None, rows)
        qtbot.wait(1)
        widths = [header.sectionSize(column) for column in range(4)]
        assert sum(widths) == table.viewport().width
        if rows:
            assert widths[:3] == [max(table.sizeHintForColumn(n), header.sectionSizeHint(n)) for n in range(3)]
            assert table.rowHeight(len(rows) - 1) >= table.sizeHintForRow(len(rows) - 1)


def test_numbers_stand_below_each_other(drawn):
    from PySide6.QtCore import Qt

    aligned = [bool(drawn.ui.resultTable.item(0, column).textAlignment() & Qt.AlignRight) for column in range(4)]
    assert aligned == [False, False, True, False]


def test_the_parameters_survive_saving_and_loading_a_scene(slicer, panel, make_volume):
    volume = make_volume("saved")
    panel.initializeParameterNode()
    assert panel.ui.volumeSelector.currentNode() is volume
    panel.ui.promptEdit.setPlainText("liver; spleen")
    panel.logic.getParameterNode().department = "thorax"
    scene = slicer.mrmlScene
    scene.SetSaveToXMLString(1)
    scene.Commit()
    saved = scene.GetSceneXMLString()
    scene.Clear(0)
    assert panel.ui.promptEdit.plainText == ""
    scene.SetLoadFromXMLString(1)
    scene.SetSceneXMLString(saved)
    scene.Import()
    panel.enter()
    assert panel.logic.getParameterNode().department == "thorax"
    assert panel.ui.promptEdit.plainText == "liver; spleen"
    assert panel.ui.volumeSelector.currentNode().GetName() == "saved"


def test_a_name_takes_the_place_of_the_phrase_at_the_cursor(panel):
    from LoRKDLib.segmenting import Completion

    edit = panel.ui.promptEdit
    edit.setPlainText("liver; left ki\nspleen")
    cursor = edit.textCursor()
    cursor.setPosition(len("liver; left ki"))
    edit.setTextCursor(cursor)
    completion = Completion(edit)
    completion.set_names(["left kidney"])
    completion.offer()
    completion.insert("left kidney")
    assert edit.plainText == "liver; left kidney\nspleen"
    assert edit.textCursor().position() == len("liver; left kidney")


def test_a_suggestion_is_segmented_by_a_click(drawn, monkeypatch):
    asked = []
    monkeypatch.setattr(drawn.segment, "apply", asked.append)
    drawn.ui.resultTable.cellClicked.emit(0, 0)
    drawn.ui.resultTable.cellClicked.emit(1, 0)
    assert asked == ["spleen"]


def test_a_suggestion_without_a_server_is_harmless(drawn):
    drawn.ui.resultTable.cellClicked.emit(1, 0)
    assert drawn.ui.applyButton.text == "Apply"


def test_a_row_leads_to_its_segment(slicer, drawn):
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSliceNode", "Red")
    node.SetLayoutName("Red")
    before = node.GetSliceToRAS().GetElement(2, 3)
    drawn.ui.resultTable.cellClicked.emit(0, 0)
    center = drawn.ui.segmentationSelector.currentNode().GetSegmentCenterRAS(drawn.segment_id)
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
    drawn.ui.resultTable.setCurrentCell(0, 0)
    drawn.ui.editButton.click()
    assert seen == {
        "module": "SegmentEditor",
        "setSegmentationNode": drawn.ui.segmentationSelector.currentNode(),
        "setSourceVolumeNode": drawn.ui.volumeSelector.currentNode(),
        "setCurrentSegmentID": drawn.segment_id,
    }


def test_3d_is_shown_by_a_button(drawn):
    node = drawn.ui.segmentationSelector.currentNode()
    drawn.ui.show3DButton.click()
    assert node.GetSegmentation().ContainsRepresentation("Closed surface")


def test_a_segmentation_may_be_deleted_before_its_run_is_undone(slicer, drawn):
    assert drawn.ui.undoButton.enabled
    slicer.mrmlScene.RemoveNode(drawn.ui.segmentationSelector.currentNode())
    assert not drawn.ui.undoButton.enabled
    assert drawn.ui.undoButton.toolTip == "There is no run to undo."
    drawn.ui.resultTable.cellClicked.emit(0, 0)


def test_a_new_segmentation_is_beside_its_volume(slicer, make_volume):
    from LoRKDLib.segments import new_segmentation

    volume = make_volume()
    tree = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    study = tree.CreateStudyItem(tree.GetSceneItemID(), "study")
    tree.CreateItem(study, volume)
    assert tree.GetItemParent(tree.GetItemByDataNode(new_segmentation(volume))) == study


@pytest.mark.parametrize("color", [(0.1, 0.4, 0.1), (0.98, 0.98, 0.88), (0.4, 0.5, 0.6), (1, 0, 0), (1, 1, 0)])
def test_what_comes_beside_an_edited_segment_has_another_shade(slicer, make_volume, color):
    from LoRKDLib.segments import add_segments, new_segmentation

    volume = make_volume()
    source, mask = new_segmentation(volume), np.zeros((22, 26, 30), np.uint8)
    mask[4:9, 5:12, 6:20] = 1
    key = source.GetSegmentation().AddEmptySegment("", "liver", color)
    slicer.util.updateSegmentBinaryLabelmapFromArray(mask, source, key, volume)
    node = new_segmentation(volume)
    segmentation, names = node.GetSegmentation(), ["liver", "liver 2", "liver 3"]
    for name in names:
        add_segments(source, node, volume, [1])
        if name != names[-1]:  # edit it
            key = segmentation.GetSegmentIdBySegmentName(name)
            slicer.util.updateSegmentBinaryLabelmapFromArray(1 - mask, node, key, volume)
    add_segments(source, node, volume, [1])  # takes the place of the last
    segments = [segmentation.GetSegment(key) for key in segmentation.GetSegmentIDs()]
    assert [segment.GetName() for segment in segments] == names
    first, second, third = (np.array(segment.GetColor()) for segment in segments)
    np.testing.assert_allclose(first, color)
    assert np.abs(second - first).max() > 0.2
    assert np.abs(third - second).max() > 0.2


def test_nothing_can_be_pressed_before_there_is_a_server(panel):
    ui = panel.ui
    buttons = (ui.applyButton, ui.trainButton, ui.nextButton, ui.submitButton, ui.undoButton, ui.rollbackButton)
    assert not any(button.enabled for button in buttons)
    assert ui.applyButton.toolTip == "Connect to a server first."
    assert ui.serverLabel.text == "Not connected."


def test_preferences_are_kept_for_the_next_time(qtbot, slicer, panel):
    first = panel.ui.clientEdit.text
    assert first.startswith("slicer-")
    panel.ui.clientEdit.setText(" anna ")
    panel.ui.clientEdit.editingFinished.emit()
    assert not panel.ui.auto3DCheck.checked
    panel.ui.auto3DCheck.setChecked(True)
    again = load_module().LoRKDWidget()
    qtbot.addWidget(again.parent)
    again.setup()
    assert again.ui.clientEdit.text == "anna"
    assert again.ui.auto3DCheck.checked
    again.ui.clientEdit.setText("")
    again.ui.clientEdit.editingFinished.emit()
    assert again.ui.clientEdit.text.startswith("slicer-")
    again.cleanup()


def test_cleanup_leaves_no_observer_and_no_shortcut(slicer, panel):
    from PySide6.QtCore import Qt
    from PySide6.QtGui import QAction

    parameters = panel.logic.getParameterNode().parameterNode
    assert len(list(panel.Observations)) == 4
    (action,) = panel.parent.findChildren(QAction, "applyAction")
    assert action.shortcut.toString() == "Ctrl+Return"
    assert action.shortcutContext == Qt.ShortcutContext.WidgetWithChildrenShortcut
    panel.cleanup()
    assert list(panel.Observations) == []
    assert not parameters.HasObserver("ModifiedEvent")
    panel.initializeParameterNode()


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
    models = {"a": {"type": "segmentation", "labels": labels}, "b": {"type": "deepgrow", "labels": labels}}
    panel.session.info = {"models": models}
    assert panel.session.models == {"a": values}
