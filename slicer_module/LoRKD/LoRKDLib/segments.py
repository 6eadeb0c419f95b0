"""Results -> segments of the scene, and segments -> a label map to submit: by value, never by position."""

import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import slicer
import vtk
from slicer.i18n import tr as _

MADE = "LoRKD.Made"
"""Tag of a segment that a run made: a fingerprint of its voxels, by which an edited one is known."""


class Added(NamedTuple):
    """What a run did to a segmentation, for it to be undone.

    Attributes:
        node: id of the segmentation.
        segments: value in the result -> id of the new segment.
        replaced: segments that were as an earlier run had made them, and gave way.
        created: whether the run made the segmentation.
    """

    node: str
    segments: dict[int, str]
    replaced: list[Any]
    created: bool


def read_result(path: Path, names: dict[str, int]) -> Any:
    """Give a segmentation node, in no view, with the segments of a file.

    Args:
        path: a .seg.nrrd with names, colors and codes, or a label map.
        names: name -> value, for a label map.

    Raises:
        OSError: it can't be read.
    """
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "LoRKD result")
    node.SetHideFromEditors(True)
    if path.name.endswith(".seg.nrrd"):
        storage = slicer.vtkMRMLSegmentationStorageNode()
        storage.SetFileName(str(path))
        good = storage.ReadData(node)
    else:
        good = _import(path, node, names)
    if not good:
        slicer.mrmlScene.RemoveNode(node)
        raise OSError(path.name)
    return node


def _import(path: Path, node: Any, names: dict[str, int]) -> bool:
    labels = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode", "LoRKD labels")
    try:
        storage = slicer.vtkMRMLVolumeArchetypeStorageNode()
        storage.SetFileName(str(path))
        logic = slicer.modules.segmentations.logic()
        if not storage.ReadData(labels) or not logic.ImportLabelmapToSegmentationNode(labels, node):
            return False
    finally:
        slicer.mrmlScene.RemoveNode(labels)
    called = {int(value): name for name, value in names.items()}
    for value, key in by_value(node).items():
        segment = node.GetSegmentation().GetSegment(key)
        segment.SetName(called.get(value, _("label {value}").format(value=value)))
        _standard(segment)
    return True


def _standard(segment: Any) -> None:
    """Give a segment the code and color of Slicer's list of anatomy, where its name stands there."""
    entry = slicer.vtkSlicerTerminologyEntry()  # a used one would keep the side of the last
    logic = slicer.modules.terminologies.logic()
    name = segment.GetName().replace("_", " ").lower()
    context = "Segmentation category and type - 3D Slicer General Anatomy list"
    if logic.FindTypeInTerminologyBy3dSlicerLabel(context, name, entry):
        segment.SetTag(segment.GetTerminologyEntryTagName(), logic.SerializeTerminologyEntry(entry))
        kind = entry.GetTypeModifierObject() if entry.GetTypeModifierObject().GetCodeValue() else entry.GetTypeObject()
        segment.SetColor([channel / 255 for channel in kind.GetRecommendedDisplayRGBValue()])


def by_value(node: Any) -> dict[int, str]:
    """Give value -> id of the segments of a result."""
    segmentation = node.GetSegmentation()
    return {segmentation.GetSegment(key).GetLabelValue(): key for key in segmentation.GetSegmentIDs()}


def add_segments(result: Any, target: Any, volume: Any, values: list[int]) -> Added:
    """Add segments of a result to a segmentation; what somebody has edited stays, and the new one comes beside it.

    Args:
        result: as ``read_result`` gives it.
        target: the segmentation; None for a new one.
        volume: that was segmented.
        values: of the segments that are wanted.
    """
    created = target is None
    node = new_segmentation(volume) if created else target
    segmentation, replaced, added = node.GetSegmentation(), [], {}
    sources = by_value(result)
    modified = node.StartModify()
    for value in dict.fromkeys(values):
        name = result.GetSegmentation().GetSegment(sources[value]).GetName()
        old = segmentation.GetSegmentIdBySegmentName(name)
        if old and tag(segmentation.GetSegment(old), MADE) == fingerprint(node, old):
            replaced.append(_copy(segmentation.GetSegment(old)))
            segmentation.RemoveSegment(old)
            old = ""
        key = segmentation.GenerateUniqueSegmentID("Segment")
        segment = _copy(result.GetSegmentation().GetSegment(sources[value]))
        if old:
            segment.SetName(_free_name(segmentation, name))
        segmentation.AddSegment(segment, key)
        added[value] = key
    segmentation.CollapseBinaryLabelmaps(False)
    for key in added.values():
        segmentation.GetSegment(key).SetTag(MADE, fingerprint(node, key))
    node.EndModify(modified)
    if segmentation.ContainsRepresentation("Closed surface"):
        node.CreateClosedSurfaceRepresentation()
    return Added(node.GetID(), added, replaced, created)


def undo(added: Added) -> bool:
    """Take a run's segments away and put back those that had given way; False where the segmentation is gone."""
    node = slicer.mrmlScene.GetNodeByID(added.node)
    if node is None:
        return False
    for key in added.segments.values():
        node.GetSegmentation().RemoveSegment(key)
    for segment in added.replaced:
        node.GetSegmentation().AddSegment(segment)
    if added.created and not node.GetSegmentation().GetNumberOfSegments():
        slicer.mrmlScene.RemoveNode(node)
    return True


def new_segmentation(volume: Any) -> Any:
    """Add an empty segmentation beside a volume."""
    scene = slicer.mrmlScene
    name = scene.GenerateUniqueName(f"{volume.GetName()} {_('segmentation')}")
    node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", name)
    node.CreateDefaultDisplayNodes()
    node.SetReferenceImageGeometryParameterFromVolumeNode(volume)
    node.SetAndObserveTransformNodeID(volume.GetTransformNodeID())
    tree = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    own, other = tree.GetItemByDataNode(node), tree.GetItemByDataNode(volume)
    if own and other:
        tree.SetItemParent(own, tree.GetItemParent(other))
    return node


def _copy(segment: Any) -> Any:
    copy = slicer.vtkSegment()
    copy.DeepCopy(segment)
    return copy


def _free_name(segmentation: Any, name: str) -> str:
    number = 2
    while segmentation.GetSegmentIdBySegmentName(f"{name} {number}"):
        number += 1
    return f"{name} {number}"


def tag(segment: Any, name: str) -> str:
    """Give a tag of a segment, empty where it has none."""
    found = vtk.reference("")
    return str(found) if segment.GetTag(name, found) else ""


def fingerprint(node: Any, key: str) -> str:
    """Give what changes when a voxel of a segment does, wherever its array begins."""
    image = node.GetBinaryLabelmapInternalRepresentation(key)
    if image is None or not image.GetNumberOfPoints():
        return "empty"
    extent = image.GetExtent()
    array = slicer.util.arrayFromSegmentInternalBinaryLabelmap(node, key)
    mask = array == node.GetSegmentation().GetSegment(key).GetLabelValue()
    box, origin = [], []
    for axis in range(3):
        used = np.flatnonzero(mask.any(axis=tuple({0, 1, 2} - {axis})))
        if not used.size:
            return "empty"
        box.append(slice(int(used[0]), int(used[-1]) + 1))
        origin.append(extent[4 - 2 * axis] + int(used[0]))  # arrays are z, y, x
    own = mask[tuple(box)]
    return f"{origin} {own.shape} {zlib.crc32(np.packbits(own).tobytes())}"


def label_array(node: Any, volume: Any) -> tuple[np.ndarray, dict[str, list[int]]]:
    """Give all segments as one array on a volume's grid, and name -> values.

    Where segments overlap, each combination has a value of its own, and a name stands for several values. The values
    of single segments are 1, 2, ... in their order, so that readers that know no lists are right without overlaps.

    Returns:
        uint16 (Z, Y, X), and the values of each name that has voxels.

    Raises:
        ValueError: there are no voxels, or more combinations than uint16 holds.
    """
    segmentation = node.GetSegmentation()
    keys = [key for key in segmentation.GetSegmentIDs() if fingerprint(node, key) != "empty"]
    if not keys:
        raise ValueError(_("The segmentation is empty; draw something first."))
    shape = tuple(reversed(volume.GetImageData().GetDimensions()))
    array = np.zeros(shape, np.uint16)
    members: list[frozenset[int]] = [frozenset(), *(frozenset([number]) for number in range(len(keys)))]
    index = {each: value for value, each in enumerate(members)}
    for number, key in enumerate(keys):
        mask = slicer.util.arrayFromSegmentBinaryLabelmap(node, key, volume) > 0
        under = array[mask]
        for value in np.unique(under):
            together = members[value] | {number}
            if together not in index:
                index[together] = len(members)
                members.append(together)
            if len(members) > np.iinfo(np.uint16).max:
                raise ValueError(_("There are too many overlaps; remove some."))
            under[under == value] = index[together]
        array[mask] = under
    present = set(np.unique(array).tolist())
    names: dict[str, list[int]] = {}
    for number, key in enumerate(keys):
        values = [value for value, each in enumerate(members) if number in each and value in present]
        if values:
            names.setdefault(segmentation.GetSegment(key).GetName(), []).extend(values)
    return array, names
