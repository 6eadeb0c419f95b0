"""Results -> segments of the scene, and segments -> a label map to submit: by value, never by position."""

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import slicer
import vtk
from slicer.i18n import tr as _

from LoRKDLib.tasks import Failure

MADE = "LoRKD.Made"
"""Tag of a segment that a run made: a fingerprint of its voxels, by which an edited one is known."""


class Added(NamedTuple):
    """What a run did: its segmentation's id, value -> id of each new segment, and the segments that gave way."""

    node: str
    segments: dict[int, str]
    replaced: list[Any]


@contextmanager
def result_of(path: Path, names: dict[str, int]) -> Iterator[Any]:
    """Give a segmentation node with the segments of a file, for as long as it is needed.

    A .seg.nrrd has names, colors and codes of its own; the values of a label map have the names that are given.
    """
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "LoRKD result")
    node.SetHideFromEditors(True)
    try:
        storage = slicer.vtkMRMLSegmentationStorageNode()
        storage.SetFileName(str(path))
        if not storage.ReadData(node):
            raise Failure(_("The file with the segments can't be read. Try again."))
        if not path.name.endswith(".seg.nrrd"):
            called = {value: name for name, value in names.items()}
            for value, key in by_value(node).items():
                node.GetSegmentation().GetSegment(key).SetName(called.get(value, f"{value}"))
        yield node
    finally:
        slicer.mrmlScene.RemoveNode(node)


def by_value(node: Any) -> dict[int, str]:
    """Give value -> id of the segments of a result."""
    segmentation = node.GetSegmentation()
    return {segmentation.GetSegment(key).GetLabelValue(): key for key in segmentation.GetSegmentIDs()}


def add_segments(result: Any, target: Any, volume: Any, values: list[int]) -> Added:
    """Add segments of a result, by their values, to a segmentation, or to a new one beside the volume.

    What somebody has edited stays, and the new segment comes beside it, with a number and in another shade; what is as
    a run made it gives way.
    """
    node = target or new_segmentation(volume)
    segmentation, replaced, added = node.GetSegmentation(), [], {}
    sources = by_value(result)
    modified = node.StartModify()
    for value in dict.fromkeys(values):
        segment, number = _copy(result.GetSegmentation().GetSegment(sources[value])), 1
        name = segment.GetName()
        while _edited(node, old := segmentation.GetSegmentIdBySegmentName(segment.GetName())):
            number += 1
            segment.SetName(f"{name} {number}")
            dark = sum(segment.GetColor()) < 1.5
            segment.SetColor(*((each + dark) / 2 for each in segment.GetColor()))
        if old:
            replaced.append(_copy(segmentation.GetSegment(old)))
            segmentation.RemoveSegment(old)
        added[value] = segmentation.GenerateUniqueSegmentID(segment.GetName())
        segmentation.AddSegment(segment, added[value])
    segmentation.CollapseBinaryLabelmaps(False)
    for key in added.values():
        segmentation.GetSegment(key).SetTag(MADE, fingerprint(node, key))
    node.EndModify(modified)
    if segmentation.ContainsRepresentation("Closed surface"):
        node.CreateClosedSurfaceRepresentation()
    return Added(node.GetID(), added, replaced)


def undo(added: Added) -> None:
    """Take a run's segments away and put back those that had given way; an empty segmentation goes too."""
    node = slicer.mrmlScene.GetNodeByID(added.node)
    for key in added.segments.values():
        node.GetSegmentation().RemoveSegment(key)
    for segment in added.replaced:
        node.GetSegmentation().AddSegment(segment)
    if not node.GetSegmentation().GetNumberOfSegments():
        slicer.mrmlScene.RemoveNode(node)


def new_segmentation(volume: Any) -> Any:
    """Add an empty segmentation beside a volume."""
    scene = slicer.mrmlScene
    name = scene.GenerateUniqueName(f"{volume.GetName()} {_('segmentation')}")
    node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", name)
    node.CreateDefaultDisplayNodes()
    node.SetReferenceImageGeometryParameterFromVolumeNode(volume)
    node.SetAndObserveTransformNodeID(volume.GetTransformNodeID())
    tree = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    other = tree.GetItemByDataNode(volume)
    if other:
        tree.CreateItem(tree.GetItemParent(other), node)
    return node


def _copy(segment: Any) -> Any:
    copy = slicer.vtkSegment()
    copy.DeepCopy(segment)
    return copy


def _edited(node: Any, key: str) -> bool:
    """Whether there is a segment, and it is not as a run made it."""
    segment, made = node.GetSegmentation().GetSegment(key), vtk.reference("")
    return segment is not None and not (segment.GetTag(MADE, made) and str(made) == fingerprint(node, key))


def fingerprint(node: Any, key: str) -> str:
    """Give what changes when a voxel of a segment does, wherever its array begins; "" without voxels."""
    image = node.GetBinaryLabelmapInternalRepresentation(key)
    if image is None or not image.GetNumberOfPoints():
        return ""
    array = slicer.util.arrayFromSegmentInternalBinaryLabelmap(node, key)
    mask = array == node.GetSegmentation().GetSegment(key).GetLabelValue()
    if not mask.any():
        return ""
    used = [np.flatnonzero(mask.any(axis=axes)) for axes in ((1, 2), (0, 2), (0, 1))]
    own = mask[tuple(slice(each[0], each[-1] + 1) for each in used)]
    origin = [int(first + each[0]) for first, each in zip(image.GetExtent()[4::-2], used, strict=True)]  # z, y, x
    return f"{origin} {own.shape} {zlib.crc32(np.packbits(own).tobytes())}"


def label_array(node: Any, volume: Any) -> tuple[np.ndarray, dict[str, list[int]]]:
    """Give all segments that have voxels as one uint16 array (Z, Y, X) on a volume's grid, and name -> values.

    The values of single segments are 1, 2, ... in their order; where segments overlap, each combination has a value of
    its own, and a name stands for several values.
    """
    segmentation = node.GetSegmentation()
    keys = [key for key in segmentation.GetSegmentIDs() if fingerprint(node, key)]
    if not keys:
        raise Failure(_("The segmentation is empty; draw something first."))
    names = [segmentation.GetSegment(key).GetName() for key in keys]
    members = [set(), *({name} for name in dict.fromkeys(names))]  # names that a value stands for
    array = np.zeros(volume.GetImageData().GetDimensions()[::-1], np.uint16)
    for name, key in zip(names, keys, strict=True):
        mask = slicer.util.arrayFromSegmentBinaryLabelmap(node, key, volume) > 0
        under = array[mask]
        for value in np.unique(under):
            together = members[value] | {name}
            if together not in members:
                members.append(together)
            if len(members) > np.iinfo(np.uint16).max:
                raise Failure(_("There are too many overlaps; remove some."))
            under[under == value] = members.index(together)
        array[mask] = under
    return array, {name: [value for value, each in enumerate(members) if name in each] for name in names}
