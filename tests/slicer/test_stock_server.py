"""A MONAI Label server that is not ours: its models segment, values stay values, text is off with a reason."""

import socket
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest

from tests.server.conftest import Server, wait_for
from tests.slicer.driving import connect

APP = """
import tempfile
import SimpleITK
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType

LABELS = ["background", "spleen", "liver"]


class Organs(InferTask):
    def __init__(self, labels):
        super().__init__(InferType.SEGMENTATION, labels=labels, dimension=3, description="thresholds")

    def is_valid(self):
        return True

    def __call__(self, request):
        image = SimpleITK.ReadImage(request["image"])
        values = {"list": (1, 2), "dict": (9, 4)}["list" if isinstance(self.labels, list) else "dict"]
        labels = values[0] * (image > 200) + values[1] * (image < -200)
        path = tempfile.NamedTemporaryFile(suffix=".nrrd", delete=False).name
        SimpleITK.WriteImage(SimpleITK.Cast(labels, SimpleITK.sitkUInt8), path)
        return path, {}


class Stock(MONAILabelApp):
    def __init__(self, app_dir, studies, conf):
        super().__init__(app_dir, studies, conf, name="Stock")

    def init_infers(self):
        return {"listed": Organs(LABELS), "mapped": Organs({"background": 0, "liver": 4, "spleen": 9})}
"""


@pytest.fixture(scope="module")
def stock(tmp_path_factory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("stock")
    (folder / "app").mkdir()
    (folder / "studies").mkdir()
    (folder / "app" / "main.py").write_text(APP, encoding="utf-8")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "monailabel.main", "start_server", "--app", str(folder / "app")]
    command += ["--studies", str(folder / "studies"), "--host", "127.0.0.1", "--port", str(port)]
    log = folder / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=folder, stdout=output, stderr=subprocess.STDOUT)
    try:
        server = Server("stock", f"http://127.0.0.1:{port}", folder / "studies", None, folder, log, process)
        wait_for(server)
        yield server
    finally:
        process.terminate()
        process.wait(timeout=20)


@pytest.mark.parametrize("model", ["listed", "mapped"])
def test_its_models_segment_by_value(qtbot, slicer, panel, stock: Server, make_volume, model):
    volume = make_volume()
    ui = panel.ui
    connect(qtbot, panel, stock.url)
    assert "2 segmentation models" in ui.serverLabel.text
    assert not ui.promptEdit.enabled
    assert "takes no text" in ui.promptEdit.toolTip
    assert "lorkd serve" in ui.trainButton.toolTip
    assert not ui.trainButton.enabled
    panel.initializeParameterNode()
    ui.departmentCombo.setCurrentIndex(ui.departmentCombo.findData(model))
    ui.applyButton.click()
    qtbot.waitUntil(lambda: ui.applyButton.text == "Apply", timeout=60_000)

    node = ui.segmentationSelector.currentNode()
    array = slicer.util.arrayFromVolume(volume)
    wanted = {"spleen": array > 200, "liver": array < -200}
    segmentation = node.GetSegmentation()
    assert {segmentation.GetSegment(key).GetName() for key in segmentation.GetSegmentIDs()} == wanted.keys()
    for name, mask in wanted.items():
        key = segmentation.GetSegmentIdBySegmentName(name)
        np.testing.assert_array_equal(slicer.util.arrayFromSegmentBinaryLabelmap(node, key, volume) > 0, mask)
        assert segmentation.GetSegment(key).GetColor() != (0.5, 0.5, 0.5)
