"""The panel stays alive while a large volume is read, hashed and sent to a real server."""

import time
from pathlib import Path

import numpy as np

from tests.slicer.driving import answered, order

VOXELS = (400, 512, 512)
BYTES = 400 * 512 * 512 * 2  # 200 MiB
TICK_MS, MOST_MS = 20, 100


def clock():
    """Seconds, without those in which this thread was ready and other programs had the processors (Linux tells)."""
    waited = int(Path("/proc/thread-self/schedstat").read_text(encoding="utf-8").split()[1])
    return time.monotonic() - waited / 1e9


def test_a_timer_does_not_starve_while_200_mib_are_sent(qtbot, slicer, connected, server):
    import qt

    volume = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "large")
    noise = np.random.default_rng(0).integers(-1000, 1000, VOXELS, np.int16)  # zeros might be packed
    slicer.util.updateVolumeFromArray(volume, noise)
    sent = answered(server.url, "PUT", "/lorkd/volumes")
    ticks, shares, texts = [clock()], set(), [""]
    timer = qt.QTimer()

    def tick():
        ticks.append(clock())
        texts.append(connected.ui.statusLabel.text)
        if texts[-1] == "Sending the volume":
            shares.add(connected.ui.progressBar.value)

    timer.connect("timeout()", tick)
    timer.setTimerType(qt.Qt.PreciseTimer)
    timer.start(TICK_MS)
    order(connected, volume, "liver")
    qtbot.waitUntil(lambda: "Sending the volume" in texts and texts[-1] != "Sending the volume", timeout=60_000)
    timer.stop()
    connected.ui.applyButton.click()

    assert answered(server.url, "PUT", "/lorkd/volumes") == sent + 1
    assert max(path.stat().st_size for path in (server.temporary.parent / "volumes").iterdir()) > BYTES
    gaps = np.diff(ticks) * 1000
    assert len(gaps) > 10
    assert len(shares) > 3
    worst = np.argsort(gaps)[-3:]
    assert gaps.max() < MOST_MS, [(float(gaps[index]), texts[index + 1]) for index in worst]


def test_the_clock_sees_work_and_waiting_of_ones_own():
    """Over half a second, as kernels tell to some milliseconds only who waited for a processor."""
    begin, worked = clock(), time.thread_time()
    time.sleep(0.3)
    while time.thread_time() < worked + 0.3:
        pass
    assert clock() - begin > 0.575
