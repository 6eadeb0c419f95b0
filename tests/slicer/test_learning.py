"""Annotate and Train against a real server: its store changes, and serves at the end what it served before."""

import json

import nibabel
import numpy as np
import pytest
import requests

from lorkd_monailabel.case_lists.datastore import datastore
from lorkd_monailabel.volumes import read_labels
from tests.slicer.driving import pick
from tests.slicer.start import MODULE

pytestmark = pytest.mark.timeout(300)

BOXES = {"liver": np.s_[3:9, 4:12, 5:15], "spleen": np.s_[12:18, 4:12, 5:15], "left kidney": np.s_[7:14, 9:14, 10:18]}


def draw(slicer, volume, *names):
    """A segmentation with boxes that overlap if they are all drawn; gives their masks."""
    from LoRKDLib.segments import new_segmentation

    node, masks = new_segmentation(volume), {}
    for name in names:
        masks[name] = np.zeros((22, 26, 30), bool)
        masks[name][BOXES[name]] = True
        key = node.GetSegmentation().AddEmptySegment("", name)
        slicer.util.updateSegmentBinaryLabelmapFromArray(masks[name].astype(np.uint8), node, key, volume)
    return node, masks


def submit(qtbot, panel, volume, node):
    panel.ui.volumeSelector.setCurrentNode(volume)
    panel.ui.segmentationSelector.setCurrentNode(node)
    assert panel.ui.submitButton.enabled
    panel.ui.submitButton.click()
    qtbot.waitUntil(lambda: panel.ui.submitButton.enabled, timeout=30_000)
    return panel.ui.submitLabel.text


def test_the_next_case_is_loaded_with_its_geometry(qtbot, slicer, connected, server):
    panel = connected
    panel.ui.strategyCombo.setCurrentText("first")
    panel.ui.nextButton.click()
    qtbot.waitUntil(lambda: panel.ui.nextButton.enabled, timeout=30_000)
    volume = panel.ui.volumeSelector.currentNode()
    image = volume.GetAttribute(f"LoRKD.Image {server.url}")
    wanted = nibabel.load(server.studies / f"{image}.nii.gz")
    matrix = slicer.vtkMRMLSliceNode().GetXYToRAS().__class__()
    volume.GetIJKToRASMatrix(matrix)
    np.testing.assert_allclose(slicer.util.arrayFromVTKMatrix(matrix), wanted.affine, atol=1e-5)
    np.testing.assert_array_equal(slicer.util.arrayFromVolume(volume).T, np.asanyarray(wanted.dataobj))
    assert panel.ui.caseLabel.text.startswith(image)


def test_overlaps_survive_submission(qtbot, slicer, connected, server, make_volume):
    for name, drawn in (("mine 1", list(BOXES)), ("mine 2", ["spleen", "liver"])):
        volume = make_volume(name)
        node, masks = draw(slicer, volume, *drawn)
        assert submit(qtbot, connected, volume, node).startswith(f"Submitted for {name}: ")
        catalogue = server.studies / "datastore_v2.json"
        assert name in json.loads(catalogue.read_text(encoding="utf-8"))["objects"]
        (found,) = [each for each in datastore(server.studies) if each.subject == name]
        array, grid = read_labels(found.label)
        assert found.labels.keys() == masks.keys()
        for structure, values in found.labels.items():
            np.testing.assert_array_equal(np.isin(array, values).T, masks[structure])
        matrix = slicer.vtkMRMLSliceNode().GetXYToRAS().__class__()
        volume.GetIJKToRASMatrix(matrix)
        np.testing.assert_allclose(slicer.util.arrayFromVTKMatrix(matrix), grid.affine, atol=1e-9)


def test_what_is_drawn_and_named_by_our_terms_is_submitted_under_names_that_the_server_knows(
    qtbot, slicer, connected, server, make_volume
):
    slicer.modules.terminologies.logic().LoadTerminologyFromFile(str(MODULE / "Resources/Terminology/LoRKD.term.json"))
    volume, wanted = make_volume("named"), ("left kidney", "soleus", "posterior hippocampus")
    node, _masks = draw(slicer, volume, *BOXES)
    for key, name in zip(node.GetSegmentation().GetSegmentIDs(), wanted, strict=True):
        segment, (label, _color, tag) = node.GetSegmentation().GetSegment(key), pick(slicer, name)
        segment.SetName(label)
        segment.SetTag(segment.GetTerminologyEntryTagName(), tag)
    assert submit(qtbot, connected, volume, node).startswith("Submitted for named: ")
    (found,) = [each for each in datastore(server.studies) if each.subject == "named"]
    assert found.labels.keys() == set(wanted)
    asked = requests.post(f"{server.url}/lorkd/resolve", json={"text": "; ".join(found.labels)}, timeout=10).json()
    assert {each["structure"] for each in asked["targets"]} == set(wanted)
    assert asked["not_understood"] == []


def test_an_expert_learns_and_goes_back(qtbot, slicer, connected, server, make_volume, monkeypatch):
    panel = connected
    for name in ("mine 3", "mine 4", "mine 5"):
        volume = make_volume(name)
        submit(qtbot, panel, volume, draw(slicer, volume, "liver", "spleen")[0])
    json_of = panel.session.client.json

    def quick(verb, path, told=None, **options):
        few = {"steps": 4, "options": {"workers": 0, "augment": False}} if path == "/lorkd/training" else {}
        return json_of(verb, path, {**told, **few} if told else told, **options)

    monkeypatch.setattr(panel.session.client, "json", quick)
    before = server.store.served("abdomen")
    ui = panel.ui
    ui.departmentCombo.setCurrentIndex(1)
    qtbot.waitUntil(lambda: ui.revisionCombo.count > 0 and ui.trainButton.enabled, timeout=10_000)
    ui.trainButton.click()
    qtbot.waitUntil(lambda: ui.trainLabel.text != "Starting …", timeout=10_000)
    assert ui.trainButton.text == "Stop", ui.trainLabel.text
    qtbot.waitUntil(lambda: ui.trainButton.text == "Train", timeout=200_000)
    outcome = ui.trainLabel.text
    if "candidate" in outcome:
        qtbot.waitUntil(lambda: ui.publishButton.enabled, timeout=10_000)  # once the panel has asked for it
        ui.publishButton.click()
    else:
        assert f"Published as revision {before + 1}" in outcome
    qtbot.waitUntil(lambda: ui.revisionCombo.count == before + 1, timeout=10_000)
    assert server.store.served("abdomen") == before + 1

    assert ui.revisionCombo.currentText.endswith(", served")
    assert ui.revisionCombo.currentData == before + 1
    ui.revisionCombo.setCurrentIndex(ui.revisionCombo.findData(before))
    qtbot.waitUntil(lambda: ui.rollbackButton.enabled, timeout=20_000)
    ui.rollbackButton.click()
    qtbot.waitUntil(lambda: ui.revisionCombo.count == before + 2, timeout=10_000)
    assert server.store.served("abdomen") == before + 2
    assert ui.revisionCombo.currentData == before + 2
    assert ui.trainLabel.text == f"Revision {before + 2} of abdomen is served now."
    qtbot.waitUntil(lambda: f"Revision {before + 2}" in ui.departmentLabel.text, timeout=10_000)


def test_without_a_segmentation_nothing_can_be_submitted(slicer, connected, make_volume):
    make_volume()
    connected.initializeParameterNode()
    assert not connected.ui.submitButton.enabled
    assert not connected.ui.editButton.enabled
    assert "Segment something first" in connected.ui.editButton.toolTip


def test_an_empty_segmentation_is_not_submitted(qtbot, slicer, connected, make_volume):
    volume = make_volume()
    node, _masks = draw(slicer, volume)
    assert submit(qtbot, connected, volume, node) == "The segmentation is empty; draw something first."
