"""The panel against a real server: connect, pick, type, apply, see, cancel."""

import time

import numpy as np
import pytest
import requests
import SimpleITK


def run(qtbot, panel, text, seconds=60):
    panel.ui.promptEdit.setPlainText(text)
    assert panel.ui.applyButton.enabled, panel.ui.applyButton.toolTip
    panel.ui.applyButton.click()
    qtbot.waitUntil(lambda: panel.segment.run is None, timeout=seconds * 1000)


def served(server, sha256, text, folder):
    """Name -> mask (z, y, x) of what the server answers, read by another library."""
    params = {"volume": sha256, "text": text, "result_extension": ".seg.nrrd"}
    reply = server.infer("lorkd", None, params, output="image")
    assert reply.status_code == 200, reply.text
    path = folder / "served.seg.nrrd"
    path.write_bytes(reply.content)
    image = SimpleITK.ReadImage(str(path))
    array = SimpleITK.GetArrayFromImage(image).reshape(*reversed(image.GetSize()), -1)
    masks = {}
    for index in range(len([key for key in image.GetMetaDataKeys() if key.endswith("_LabelValue")])):
        told = {key: image.GetMetaData(f"Segment{index}_{key}") for key in ("Name", "LabelValue", "Layer")}
        masks[told["Name"]] = array[..., int(told["Layer"])] == int(told["LabelValue"])
    return masks


def segments(slicer, panel):
    node = panel.session.parameters.segmentation
    segmentation = node.GetSegmentation()
    return {
        segmentation.GetSegment(key).GetName(): slicer.util.arrayFromSegmentBinaryLabelmap(
            node, key, panel.session.parameters.volume
        )
        > 0
        for key in segmentation.GetSegmentIDs()
    }


def test_a_server_says_what_it_is(connected):
    assert "experts: abdomen" in connected.ui.serverLabel.text
    combo = connected.ui.departmentCombo
    assert [combo.itemText(index) for index in range(combo.count)] == ["Automatic", "Abdomen"]
    combo.setCurrentIndex(1)
    assert connected.ui.departmentLabel.text == "Revision 1: liver, spleen, left kidney"
    assert connected.session.parameters.department == "abdomen"
    assert "Select a volume" in connected.ui.applyButton.toolTip


def test_text_becomes_the_servers_segments_voxel_for_voxel(qtbot, slicer, connected, server, make_volume, tmp_path):
    from LoRKDLib.run import SENT
    from LoRKDLib.segments import tag

    make_volume()
    connected.initializeParameterNode()
    run(qtbot, connected, "left kidney; liver\nfoo bar")
    (sha256,) = SENT.values()
    wanted = served(server, sha256, "left kidney; liver", tmp_path)
    found = segments(slicer, connected)

    assert found.keys() == wanted.keys() == {"left kidney", "liver"}
    for name, mask in wanted.items():
        assert mask.any()
        np.testing.assert_array_equal(found[name], mask)
    rows = connected.results.rows
    assert [row.cells[0] for row in rows[:3]] == ["left kidney", "liver", "foo bar"]
    assert rows[0].cells[1] == "abdomen/0001"
    assert "not understood" in rows[2].cells[3]
    assert "Not understood: foo bar." in connected.ui.statusLabel.text
    segmentation = connected.session.parameters.segmentation.GetSegmentation()
    kidney = segmentation.GetSegment(segmentation.GetSegmentIdBySegmentName("left kidney"))
    assert "SCT^64033007^Kidney~SCT^7771000^Left" in tag(kidney, "TerminologyEntry")
    assert slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode") == 1


def test_a_volume_is_sent_once_and_results_are_added(qtbot, slicer, connected, make_volume, monkeypatch):
    make_volume()
    connected.initializeParameterNode()
    sent = []
    put = connected.session.client.put_file
    monkeypatch.setattr(connected.session.client, "put_file", lambda *a, **k: sent.append(a) or put(*a, **k))
    run(qtbot, connected, "liver")
    first = connected.session.parameters.segmentation
    before = segments(slicer, connected)["liver"]
    run(qtbot, connected, "spleen; liver")

    assert len(sent) <= 1
    assert connected.session.parameters.segmentation is first
    found = segments(slicer, connected)
    assert found.keys() == {"liver", "spleen"}
    np.testing.assert_array_equal(found["liver"], before)
    connected.ui.undoButton.click()
    assert segments(slicer, connected).keys() == {"liver"}
    np.testing.assert_array_equal(segments(slicer, connected)["liver"], before)


def test_a_changed_volume_is_another_one(qtbot, slicer, connected, make_volume):
    from LoRKDLib.run import SENT

    node = make_volume()
    connected.initializeParameterNode()
    run(qtbot, connected, "liver")
    slicer.util.updateVolumeFromArray(node, slicer.util.arrayFromVolume(node) + 5)
    run(qtbot, connected, "liver")
    assert len(set(SENT.values())) == 2


def test_nothing_is_sent_without_consent(qtbot, slicer, connected, make_volume, monkeypatch):
    from LoRKDLib.run import SENT

    make_volume()
    connected.initializeParameterNode()
    monkeypatch.setattr(slicer.util, "confirmOkCancelDisplay", lambda *_args, **_named: False)
    run(qtbot, connected, "liver")
    assert connected.ui.statusLabel.text == "Nothing was sent."
    qtbot.waitUntil(lambda: not connected.session.client.calls, timeout=10_000)
    assert SENT == {}


def large(make_volume):
    node = make_volume("large", shape=(150, 150, 150))
    node.SetSpacing(1.5, 1.5, 1.5)
    return node


def started(qtbot, panel):
    panel.initializeParameterNode()
    panel.ui.promptEdit.setPlainText("liver; spleen; left kidney")
    panel.ui.applyButton.click()
    qtbot.waitUntil(lambda: "Segmenting: abdomen" in panel.ui.statusLabel.text, timeout=60_000)
    return panel.segment.run.job


def stopped(qtbot, server, job):
    """The seconds until the server's work has stopped."""
    begin = time.monotonic()

    def state():
        return requests.get(f"{server.url}/lorkd/jobs/{job}", timeout=5).json()["state"]

    qtbot.waitUntil(lambda: state() == "cancelled", timeout=10_000)
    return time.monotonic() - begin


def test_cancel_stops_the_servers_work(qtbot, slicer, connected, server, make_volume):
    large(make_volume)
    job = started(qtbot, connected)
    assert connected.ui.applyButton.text == "Cancel"
    connected.ui.applyButton.click()
    assert connected.ui.applyButton.text == "Apply"
    assert stopped(qtbot, server, job) < 2
    assert connected.ui.statusLabel.text == "Cancelled."
    assert slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode") == 0


@pytest.mark.parametrize("happening", ["volume removed", "scene closed"])
def test_the_scene_may_change_while_it_runs(qtbot, slicer, connected, server, make_volume, happening):
    node = large(make_volume)
    job = started(qtbot, connected)
    if happening == "volume removed":
        slicer.mrmlScene.RemoveNode(node)
    else:
        slicer.mrmlScene.Clear(0)
    assert connected.segment.run is None
    assert stopped(qtbot, server, job) < 2
    qtbot.wait(200)
    assert slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode") == 0
    make_volume("next", shape=(20, 20, 20))
    connected.initializeParameterNode()
    run(qtbot, connected, "liver")
    assert segments(slicer, connected).keys() == {"liver"}


def test_the_parameters_are_in_the_scene(slicer, connected, make_volume, tmp_path):
    volume = make_volume()
    connected.initializeParameterNode()
    connected.ui.promptEdit.setPlainText("liver")
    connected.ui.departmentCombo.setCurrentIndex(1)
    again = connected.logic.getParameterNode()
    assert (again.text, again.department, again.volume) == ("liver", "abdomen", volume)


def test_cleanup_leaves_no_observer(slicer, panel):
    count = len(list(panel.Observations))
    assert count >= 4
    panel.cleanup()
    assert list(panel.Observations) == []
    panel.initializeParameterNode()
