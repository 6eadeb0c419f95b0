"""The panel as a user drives it, by its widgets; and what the scene and the server then hold."""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import requests
import SimpleITK

TERMS = "Segmentation category and type - LoRKD"
RAS_TO_LPS = np.diag([-1, -1, 1, 1])


def connect(qtbot: Any, panel: Any, address: str) -> None:
    """Connect to a server that is there."""
    panel.ui.serverCombo.setEditText(address)
    panel.ui.connectButton.click()
    qtbot.waitUntil(lambda: panel.ui.departmentCombo.count > 0, timeout=20_000)


def order(panel: Any, volume: Any, text: str) -> None:
    """Press Apply."""
    panel.ui.volumeSelector.setCurrentNode(volume)
    panel.ui.promptEdit.setPlainText(text)
    assert panel.ui.applyButton.enabled, panel.ui.applyButton.toolTip
    panel.ui.applyButton.click()


def segment(qtbot: Any, panel: Any, volume: Any, text: str, seconds: int = 60) -> Any:
    """Press Apply and wait for what comes of it; gives the segmentation that is chosen then."""
    order(panel, volume, text)
    qtbot.waitUntil(lambda: panel.ui.applyButton.text == "Apply", timeout=seconds * 1000)
    return panel.ui.segmentationSelector.currentNode()


def rows(panel: Any) -> list[list[str]]:
    """Give the texts of the table of results."""
    table = panel.ui.resultTable
    return [[table.item(row, column).text() for column in range(table.columnCount)] for row in range(table.rowCount)]


def masks(slicer: Any, node: Any, volume: Any) -> dict[str, np.ndarray]:
    """Give name -> mask (z, y, x) of the segments of a segmentation, on a volume's grid."""
    segmentation = node.GetSegmentation()
    return {
        segmentation.GetSegment(key).GetName(): slicer.util.arrayFromSegmentBinaryLabelmap(node, key, volume) > 0
        for key in segmentation.GetSegmentIDs()
    }


def served(url: str, volume: Path, params: dict[str, Any], folder: Path) -> dict[str, np.ndarray]:
    """Give name -> mask (z, y, x) of a server's answer for a volume's file, by another client and another reader."""
    kept = requests.put(
        f"{url}/lorkd/volumes",
        params={"extension": "".join(volume.suffixes)},
        data=volume.read_bytes(),
        timeout=60,
    )
    form = {"params": json.dumps({**params, "volume": kept.json()["sha256"], "result_extension": ".seg.nrrd"})}
    reply = requests.post(f"{url}/infer/lorkd", params={"output": "image"}, data=form, timeout=120)
    assert reply.status_code == 200, reply.text
    path = folder / "served.seg.nrrd"
    path.write_bytes(reply.content)
    image = SimpleITK.ReadImage(str(path))
    array = SimpleITK.GetArrayFromImage(image).reshape(*reversed(image.GetSize()), -1)
    found = {}
    for index in range(len([key for key in image.GetMetaDataKeys() if key.endswith("_LabelValue")])):
        told = {key: image.GetMetaData(f"Segment{index}_{key}") for key in ("Name", "LabelValue", "Layer")}
        found[told["Name"]] = array[..., int(told["Layer"])] == int(told["LabelValue"])
    return found


def pick(slicer: Any, name: str) -> tuple[str, tuple[int, ...], str]:
    """Pick a term of ours as in Slicer's terminology browser: gives name, color and tag that a segment gets by it."""
    logic, entry = slicer.modules.terminologies.logic(), slicer.vtkSlicerTerminologyEntry()
    assert logic.FindTypeInTerminologyBy3dSlicerLabel(TERMS, name, entry), name
    tag = logic.SerializeTerminologyEntry(entry)
    again = slicer.vtkSlicerTerminologyEntry()  # what Slicer finds by the codes of the tag alone
    assert logic.DeserializeTerminologyEntry(tag, again)
    assert logic.UpdateEntryFromLoadedTerminologies(again, [TERMS], [])
    modifier = again.GetTypeModifierObject()
    shown = modifier if modifier.GetCodeValue() else again.GetTypeObject()
    return shown.GetSlicerLabel(), tuple(shown.GetRecommendedDisplayRGBValue()), tag


def written(slicer: Any, volume: Any, path: Path) -> Path:
    """Write a volume of the scene by another library than Slicer's."""
    import vtk

    matrix = vtk.vtkMatrix4x4()
    volume.GetIJKToRASMatrix(matrix)
    affine = RAS_TO_LPS @ slicer.util.arrayFromVTKMatrix(matrix)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    image = SimpleITK.GetImageFromArray(slicer.util.arrayFromVolume(volume))
    image.SetSpacing(spacing)
    image.SetDirection((affine[:3, :3] / spacing).ravel())
    image.SetOrigin(affine[:3, 3])
    SimpleITK.WriteImage(image, str(path))
    return path


def answered(url: str, method: str, route: str) -> int:
    """Give how many requests of a kind a server has answered well, by its own count."""
    told = requests.get(f"{url}/lorkd/metrics", timeout=5)
    told.raise_for_status()
    kind = f'lorkd_requests_total{{method="{method}",route="{route}",status="200"}} '
    return sum(int(float(line.removeprefix(kind))) for line in told.text.splitlines() if line.startswith(kind))


def running(qtbot: Any, panel: Any, url: str) -> str:
    """Wait until the server computes what the panel has ordered; gives the id of the job."""

    def computing() -> list[str]:
        jobs = requests.get(f"{url}/lorkd/jobs", timeout=5).json()
        return [job["id"] for job in jobs if job["state"] == "running" and job["stage"] not in ("", "read")]

    qtbot.waitUntil(lambda: bool(computing()), timeout=60_000)
    return computing()[0]


def stopped(qtbot: Any, url: str, job: str) -> float:
    """Give the seconds until a job of a server is cancelled."""
    begin = time.monotonic()

    def state() -> str:
        return str(requests.get(f"{url}/lorkd/jobs/{job}", timeout=5).json()["state"])

    qtbot.waitUntil(lambda: state() == "cancelled", timeout=10_000)
    return time.monotonic() - begin
