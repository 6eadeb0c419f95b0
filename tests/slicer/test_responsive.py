"""The panel stays alive while a large volume is sent."""

import time

import numpy as np

VOXELS = (400, 512, 512)
MOST_MS = 100


def test_the_panel_does_not_starve_while_200_mib_are_sent(qtbot, slicer, connected):
    import qt

    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "big")
    slicer.util.updateVolumeFromArray(node, np.zeros(VOXELS, np.int16))
    connected.initializeParameterNode()
    connected.ui.promptEdit.setPlainText("liver")
    ticks, stages, shares = [], set(), set()
    stage = connected.segment._stage

    def seen(text, share):
        stages.add(text)
        shares.add(share)
        stage(text, share)

    connected.segment._stage = seen
    timer = qt.QTimer()
    timer.connect("timeout()", lambda: ticks.append(time.monotonic()))
    timer.start(20)
    ticks.append(time.monotonic())
    connected.ui.applyButton.click()
    qtbot.waitUntil(lambda: "Waiting for the server" in stages, timeout=60_000)
    timer.stop()
    connected.segment.cancel()

    gaps = np.diff(ticks) * 1000
    assert len(gaps) > 5
    assert len([share for share in shares if share and share < 1]) > 5
    assert gaps.max() < MOST_MS
