"""Segmenting on a real server: the panel is driven by its widgets; the scene and the server tell what came of it."""

import numpy as np
import pytest

from tests.slicer.driving import answered, masks, order, rows, running, segment, served, stopped, written

SMALL = (20, 20, 20)


def tag(segment, name):
    import vtk

    found = vtk.reference("")
    return str(found) if segment.GetTag(name, found) else ""


def segmentations(slicer):
    return slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode")


def test_a_server_says_what_it_is(slicer, connected, server, make_volume):
    ui = connected.ui
    assert "experts: abdomen" in ui.serverLabel.text
    assert [ui.departmentCombo.itemText(index) for index in range(ui.departmentCombo.count)] == ["Automatic", "Abdomen"]
    ui.departmentCombo.setCurrentIndex(1)
    assert ui.departmentLabel.text == f"Revision {server.store.served('abdomen')}: liver, spleen, left kidney"
    assert "Select a volume" in ui.applyButton.toolTip
    volume = make_volume()
    ui.volumeSelector.setCurrentNode(volume)
    ui.promptEdit.setPlainText("liver")
    parameters = connected.logic.getParameterNode()
    assert (parameters.text, parameters.department, parameters.volume) == ("liver", "abdomen", volume)


def test_text_becomes_the_servers_segments_voxel_for_voxel(qtbot, slicer, connected, server, make_volume, tmp_path):
    volume = make_volume()
    node = segment(qtbot, connected, volume, "left kidney; liver\nfoo bar")
    found = masks(slicer, node, volume)
    wanted = served(server.url, written(slicer, volume, tmp_path / "x.nrrd"), {"text": "left kidney; liver"}, tmp_path)

    assert found.keys() == wanted.keys() == {"left kidney", "liver"}
    for name, mask in wanted.items():
        assert mask.any()
        np.testing.assert_array_equal(found[name], mask)
    first, second, third, *_ = rows(connected)
    expert = f"abdomen/{server.store.served('abdomen'):04}"
    assert first[:2] == ["left kidney", expert]
    assert second[:2] == ["liver", expert]
    assert third[0] == "foo bar"
    assert "not understood" in third[3]
    assert "Not understood: foo bar." in connected.ui.statusLabel.text
    segmentation = node.GetSegmentation()
    kidney = segmentation.GetSegment(segmentation.GetSegmentIdBySegmentName("left kidney"))
    assert "SCT^64033007^Kidney~SCT^7771000^Left" in tag(kidney, "TerminologyEntry")
    assert segmentations(slicer) == 1


def test_a_volume_is_sent_once_and_results_are_added(qtbot, slicer, connected, server, make_volume):
    volume, ui = make_volume(shape=(21, 26, 30)), connected.ui
    sent = answered(server.url, "PUT", "/lorkd/volumes")
    first = segment(qtbot, connected, volume, "liver")
    before = masks(slicer, first, volume)["liver"]
    assert segment(qtbot, connected, volume, "spleen; liver") is first
    assert answered(server.url, "PUT", "/lorkd/volumes") == sent + 1

    found = masks(slicer, first, volume)
    assert found.keys() == {"liver", "spleen"}
    np.testing.assert_array_equal(found["liver"], before)
    ui.undoButton.click()
    found = masks(slicer, first, volume)
    assert found.keys() == {"liver"}
    np.testing.assert_array_equal(found["liver"], before)


def test_what_the_server_has_already_is_not_sent(qtbot, slicer, connected, server, make_volume):
    segment(qtbot, connected, make_volume(), "liver")
    sent = answered(server.url, "PUT", "/lorkd/volumes")
    segment(qtbot, connected, make_volume("the same in another node"), "liver")
    assert answered(server.url, "PUT", "/lorkd/volumes") == sent


def test_a_changed_volume_is_another_one(qtbot, slicer, connected, server, make_volume):
    volume = make_volume(shape=(20, 26, 30))
    sent = answered(server.url, "PUT", "/lorkd/volumes")
    segment(qtbot, connected, volume, "liver")
    slicer.util.updateVolumeFromArray(volume, slicer.util.arrayFromVolume(volume) + 5)
    segment(qtbot, connected, volume, "liver")
    assert answered(server.url, "PUT", "/lorkd/volumes") == sent + 2


def test_nothing_is_sent_without_consent(qtbot, slicer, connected, server, make_volume, monkeypatch):
    monkeypatch.setattr(slicer.util, "confirmOkCancelDisplay", lambda *_args, **_named: False)
    sent = answered(server.url, "PUT", "/lorkd/volumes"), answered(server.url, "POST", "/infer/{model}")
    order(connected, make_volume(), "liver")
    assert connected.ui.statusLabel.text == "Nothing was sent."
    qtbot.wait(300)
    assert (answered(server.url, "PUT", "/lorkd/volumes"), answered(server.url, "POST", "/infer/{model}")) == sent


@pytest.fixture
def computing(qtbot, connected, server, make_volume):
    """A run that takes a while: its volume and its job."""
    volume = make_volume("large", shape=(150, 150, 150))
    volume.SetSpacing(1.5, 1.5, 1.5)
    order(connected, volume, "liver; spleen; left kidney")
    return volume, running(qtbot, connected, server.url)


def test_cancel_stops_the_servers_work(qtbot, slicer, connected, server, computing):
    ui = connected.ui
    assert ui.applyButton.text == "Cancel"
    ui.applyButton.click()
    assert ui.applyButton.text == "Apply"
    assert stopped(qtbot, server.url, computing[1]) < 2
    assert ui.statusLabel.text == "Cancelled."
    assert segmentations(slicer) == 0


@pytest.mark.parametrize("happening", ["volume removed", "scene closed", "panel gone"])
def test_what_nobody_waits_for_is_stopped(qtbot, slicer, connected, server, computing, happening, make_volume):
    volume, job = computing
    if happening == "volume removed":
        slicer.mrmlScene.RemoveNode(volume)
    elif happening == "scene closed":
        slicer.mrmlScene.Clear(0)
    else:
        connected.cleanup()
    assert stopped(qtbot, server.url, job) < 2
    assert segmentations(slicer) == 0
    if happening != "panel gone":
        small = make_volume("next", shape=SMALL)
        assert masks(slicer, segment(qtbot, connected, small, "liver"), small).keys() == {"liver"}
