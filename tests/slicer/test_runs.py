"""Runs against a server that answers as a test wants: what a real one does too seldom to wait for."""

import http.server
import json
import threading
import time

import numpy as np
import pytest
import SimpleITK
from PySide6.QtCore import Qt
from PySide6.QtTest import QTest

from tests.slicer.driving import connect, rows
from tests.slicer.start import load_module

DEPARTMENT = {"id": "abdomen", "name": "abdomen", "expert": True, "revision": 1, "problem": "", "structures": ["liver"]}
INFO = {
    "models": {},
    "strategies": {"first": {}},
    "lorkd": {"version": "1", "device": "cpu", "departments": [DEPARTMENT]},
}
LIVER = {"structure": "liver", "status": "found", "value": 5, "expert": "abdomen/0001", "ml": 1.5}


class Double(http.server.BaseHTTPRequestHandler):
    """Gives (status, headers, body) of ``server.replies[verb, path]``; 404 where there is none; None waits."""

    def answer(self):
        path = self.path.partition("?")[0]
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.seen.append((self.command, path, body))
        reply = self.server.replies.get((self.command, path), (404, {}, b""))
        while reply is None and not self.server.leave.is_set():
            time.sleep(0.02)
        status, headers, body = reply or (503, {}, b"")
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = do_PUT = do_DELETE = answer

    def log_message(self, *_args):
        """Say nothing."""


def told(content):
    return 200, {"Content-Type": "application/json"}, json.dumps(content).encode()


def segments(tmp_path, about, value=5):
    """An answer to an inference: a label map and what is said of it."""
    array = np.zeros((22, 26, 30), np.uint8)
    array[4:9, 5:12, 6:20] = value
    path = tmp_path / "result.nrrd"
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(array), str(path))
    head = '--x\r\nContent-Disposition: form-data; name="'
    params = f'{head}params"\r\n\r\n{json.dumps(about)}\r\n{head}file"; filename="../../evil.nrrd"\r\n\r\n'
    body = params.encode() + path.read_bytes() + b"\r\n--x--\r\n"
    return 200, {"Content-Type": "multipart/form-data; boundary=x"}, body


@pytest.fixture
def double(tmp_path):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Double) as server:
        server.seen, server.leave, server.handle_error = [], threading.Event(), lambda *_args: None
        answer = {"label_names": {"liver": 5}, "lorkd": {"answers": [LIVER], "not_understood": []}}
        server.replies = {
            ("GET", "/info/"): told(INFO),
            ("GET", "/lorkd/vocabulary"): told({"departments": [], "groups": []}),
            ("GET", "/lorkd/experts/abdomen"): told({"department": "abdomen", "served": 1, "revisions": []}),
            ("PUT", "/lorkd/volumes"): told({}),
            ("POST", "/infer/lorkd"): segments(tmp_path, answer),
        }
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.leave.set()
        server.shutdown()
        thread.join()


@pytest.fixture
def ready(qtbot, panel, double, make_volume):
    """The panel, connected, with a volume and a phrase."""
    volume = make_volume()
    volume.SetIJKToRASMatrix(grid())
    connect(qtbot, panel, f":{double.server_port}")
    panel.ui.volumeSelector.setCurrentNode(volume)
    panel.ui.promptEdit.setPlainText("liver")
    return panel


def grid():
    """That of a file without one: RAS of LPS."""
    import vtk

    matrix = vtk.vtkMatrix4x4()
    matrix.SetElement(0, 0, -1)
    matrix.SetElement(1, 1, -1)
    return matrix


def run(qtbot, panel):
    panel.ui.applyButton.click()
    qtbot.waitUntil(lambda: panel.ui.applyButton.text == "Apply", timeout=10_000)
    return panel.ui.statusLabel.text


def asked(double, verb, path):
    return len([each for each in double.seen if each[:2] == (verb, path)])


def begun(qtbot, panel, double):
    """A run that the server does not answer."""
    double.replies["POST", "/infer/lorkd"] = None
    panel.ui.applyButton.click()
    qtbot.waitUntil(lambda: asked(double, "POST", "/infer/lorkd") == 1, timeout=10_000)


def segmentations(slicer):
    return slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode")


def test_a_run_leaves_a_segment_and_no_popup_no_file_and_no_other_node(qtbot, slicer, ready, monkeypatch, tmp_path):
    shown = []
    for name in ("infoDisplay", "warningDisplay", "errorDisplay", "messageBox", "confirmYesNoDisplay"):
        monkeypatch.setattr(slicer.util, name, lambda *_args, _name=name, **_named: shown.append(_name))
    monkeypatch.setattr("PySide6.QtWidgets.QDialog.exec", lambda *_args: shown.append("dialog"))
    before = slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLVolumeNode")
    assert run(qtbot, ready) == "1 of 1 structures found."
    assert shown == []
    assert rows(ready) == [["liver", "abdomen/0001", "1.5", "found"]]
    segmentation = ready.ui.segmentationSelector.currentNode().GetSegmentation()
    assert [segmentation.GetSegment(key).GetName() for key in segmentation.GetSegmentIDs()] == ["liver"]
    assert segmentations(slicer) == 1
    assert slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLVolumeNode") == before
    temporary = type(tmp_path)(slicer.app.temporaryPath)
    assert list(temporary.rglob("lorkd-*")) == []
    assert list(temporary.parent.rglob("evil*")) == []


def test_nothing_that_is_found_is_said_and_adds_nothing(qtbot, slicer, ready, double, tmp_path):
    absent = {**LIVER, "status": "absent", "expert": "abdomen/0001"}
    missed = {"phrase": "foo", "candidates": ["liver"]}
    about = {"label_names": {"liver": 5}, "lorkd": {"answers": [absent], "not_understood": [missed]}}
    double.replies["POST", "/infer/lorkd"] = segments(tmp_path, about, value=0)
    assert run(qtbot, ready) == "0 of 1 structures found. Not understood: foo."
    assert [row[3] for row in rows(ready)][:2] == ["not found in this volume", "not understood"]
    assert segmentations(slicer) == 0
    assert not ready.ui.undoButton.enabled


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (
            (503, {}, b'{"detail": "the queue is full"}'),
            "not ready. Try again in a while. The server says: the queue is",
        ),
        ((500, {}, b"Internal Server Error"), "answered with an error (500)"),
        ((400, {}, b'{"detail": "the volume has 2 axes; send 3"}'), "the volume has 2 axes; send 3."),
        ((409, {}, b'{"detail": "job x was cancelled"}'), "Cancelled on the server."),
        ((200, {}, b'--x\r\nContent-Disposition: form-data; name="params"\r\n\r\n{}\r\n--x\r\nCon'), "cut off"),
        ((200, {"Content-Length": "1000"}, b"--x\r\n"), "broke off"),
        ((200, {}, b"{}"), "sent no segments"),
        ((200, {}, b"<html>"), "cut off or damaged"),
    ],
)
def test_what_goes_wrong_is_said_and_the_next_run_works(qtbot, slicer, ready, double, reply, words):
    good = double.replies["POST", "/infer/lorkd"]
    double.replies["POST", "/infer/lorkd"] = reply
    assert words in run(qtbot, ready)
    assert segmentations(slicer) == 0
    double.replies["POST", "/infer/lorkd"] = good
    assert run(qtbot, ready) == "1 of 1 structures found."


def test_segments_that_cannot_be_read_leave_no_node(qtbot, slicer, ready, double, monkeypatch):
    status, headers, body = double.replies["POST", "/infer/lorkd"]
    double.replies["POST", "/infer/lorkd"] = (status, headers, body.replace(b"NRRD", b"DRRN"))
    assert "can't be read" in run(qtbot, ready)
    assert segmentations(slicer) == 0


def test_a_full_disk_is_said(qtbot, slicer, ready, monkeypatch, tmp_path):
    monkeypatch.setattr(slicer.app, "temporaryPath", str(tmp_path / "gone"))
    assert "Is the disk full?" in run(qtbot, ready)


def test_the_shortcut_applies_and_then_cancels(qtbot, slicer, ready, double):
    double.replies["POST", "/infer/lorkd"] = None
    ready.parent.show()
    ready.parent.activateWindow()
    ready.ui.promptEdit.setFocus()
    qtbot.waitUntil(ready.ui.promptEdit.hasFocus, timeout=5_000)
    press = lambda: QTest.keyClick(ready.ui.promptEdit, Qt.Key.Key_Return, Qt.KeyboardModifier.ControlModifier)  # noqa: E731
    press()
    qtbot.waitUntil(lambda: asked(double, "POST", "/infer/lorkd") == 1, timeout=10_000)
    assert ready.ui.applyButton.text == "Cancel"
    press()
    assert ready.ui.statusLabel.text == "Cancelled."
    qtbot.waitUntil(lambda: any(each[0] == "DELETE" for each in double.seen), timeout=10_000)
    (job,) = [path for verb, path, _body in double.seen if verb == "DELETE"]
    assert job.startswith("/lorkd/jobs/")
    assert asked(double, "POST", "/infer/lorkd") == 1
    assert ready.ui.promptEdit.plainText == "liver"


def test_a_segmentation_that_is_deleted_meanwhile_is_made_anew(qtbot, slicer, ready, double):
    run(qtbot, ready)
    good = double.replies["POST", "/infer/lorkd"]
    ready.ui.applyButton.click()
    slicer.mrmlScene.RemoveNode(ready.ui.segmentationSelector.currentNode())
    double.replies["POST", "/infer/lorkd"] = good
    qtbot.waitUntil(lambda: ready.ui.applyButton.text == "Apply", timeout=10_000)
    assert ready.ui.statusLabel.text == "1 of 1 structures found."
    assert segmentations(slicer) == 1


@pytest.mark.parametrize("happening", ["volume", "scene", "panel"])
def test_what_disappears_meanwhile_ends_the_run(qtbot, slicer, ready, double, happening):
    begun(qtbot, ready, double)
    if happening == "volume":
        slicer.mrmlScene.RemoveNode(ready.ui.volumeSelector.currentNode())
        assert ready.ui.statusLabel.text == "Cancelled, because the volume was removed."
    elif happening == "scene":
        slicer.mrmlScene.Clear(0)
    else:
        ready.cleanup()
    assert ready.ui.applyButton.text == "Apply"
    qtbot.waitUntil(lambda: any(each[0] == "DELETE" for each in double.seen), timeout=10_000)
    assert segmentations(slicer) == 0
    ready.enter()


def test_consent_is_asked_once_for_a_server(qtbot, slicer, ready, monkeypatch):
    asked = []
    confirm = lambda *_args, **named: asked.append(named["dontShowAgainSettingsKey"]) or True  # noqa: E731
    monkeypatch.setattr(slicer.util, "confirmOkCancelDisplay", confirm)
    run(qtbot, ready)
    run(qtbot, ready)
    (key,) = asked
    assert key.startswith("LoRKD/consent/http:__127.0.0.1:")


def test_the_last_address_is_there_the_next_time(qtbot, ready, double):
    again = load_module().LoRKDWidget()
    qtbot.addWidget(again.parent)
    again.setup()
    assert again.ui.serverCombo.currentText == f"http://127.0.0.1:{double.server_port}"
    assert not again.ui.applyButton.enabled
    again.cleanup()


def test_a_server_cannot_choose_where_an_image_is_written(qtbot, slicer, ready, double, tmp_path):
    image = tmp_path / "image.nrrd"
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(np.ones((5, 6, 7), np.int16)), str(image))
    double.replies["POST", "/activelearning/first"] = told({"id": "case"})
    header = {"Content-Disposition": 'attachment; filename="../../evil.nrrd"'}
    double.replies["GET", "/datastore/image"] = (200, header, image.read_bytes())
    ready.ui.nextButton.click()
    qtbot.waitUntil(lambda: ready.ui.caseLabel.text == "case.", timeout=10_000)
    assert ready.ui.volumeSelector.currentNode().GetName() == "case"
    assert list(type(tmp_path)(slicer.app.temporaryPath).parent.rglob("evil*")) == []


def test_what_can_be_trained_is_said(qtbot, slicer, panel, double):
    row = {"department": "abdomen", "labels": 1, "structures": {"liver": 1}, "trainable": False}
    double.replies["GET", "/lorkd/training/departments"] = told([{**row, "reason": "one label more is needed"}])
    connect(qtbot, panel, f":{double.server_port}")
    ui = panel.ui
    qtbot.waitUntil(lambda: ui.trainCombo.itemText(0) == "Abdomen, labels: 1", timeout=10_000)
    assert ui.trainCombo.toolTip == "liver: 1"
    qtbot.waitUntil(lambda: ui.trainButton.toolTip == "one label more is needed", timeout=10_000)
    assert not ui.trainButton.enabled


def test_a_training_is_watched_though_the_server_is_silent_for_a_while(qtbot, slicer, ready, double, monkeypatch):
    from LoRKDLib import learning

    monkeypatch.setattr(learning, "POLL_MS", 30)
    state = {"id": "r", "department": "abdomen", "state": "running", "stage": "train", "step": 1, "steps": 4}
    state |= {"loss": 0.25, "seconds_left": 61, "result": {}, "message": "", "position": 0}
    double.replies["POST", "/lorkd/training"] = told(state)
    double.replies["GET", "/lorkd/training/r"] = (200, {"Content-Length": "1000"}, b"")  # breaks off
    ui = ready.ui
    qtbot.waitUntil(lambda: ui.trainButton.enabled, timeout=10_000)
    ui.trainButton.click()
    qtbot.waitUntil(lambda: ui.trainLabel.text == "train: 1 of 4, loss 0.250, 1:01 left", timeout=10_000)
    qtbot.waitUntil(lambda: "broke off" in ui.trainLabel.text, timeout=10_000)
    assert ui.trainButton.text == "Stop"
    ui.trainButton.click()
    qtbot.waitUntil(lambda: asked(double, "DELETE", "/lorkd/training/r") == 1, timeout=10_000)
    double.replies["GET", "/lorkd/training/r"] = told({**state, "state": "stopped", "message": "stopped; it is saved"})
    qtbot.waitUntil(lambda: ui.trainButton.text == "Train", timeout=10_000)
    assert ui.trainLabel.text == "stopped; it is saved"
