"""What can be tested inside Slicer without a server: segments come and go, and become a label map by their values."""

import unittest

import numpy as np
import slicer
from LoRKDLib.segments import MADE, add_segments, fingerprint, label_array, tag, undo


class LoRKDSelfTest(unittest.TestCase):
    """On a volume and a result made here."""

    def setUp(self):
        slicer.mrmlScene.Clear(0)
        self.volume = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "ct")
        slicer.util.updateVolumeFromArray(self.volume, np.zeros((12, 14, 16), np.int16))
        self.volume.SetSpacing(2, 2, 3)

    def result(self):
        """Give a result with the values 2 and 7."""
        array = np.zeros((12, 14, 16), np.uint8)
        array[2:6, 3:8, 4:9], array[8:11, 3:8, 4:9] = 7, 2
        labels = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode", "labels")
        labels.CopyOrientation(self.volume)
        slicer.util.updateVolumeFromArray(labels, array)
        node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "result")
        slicer.modules.segmentations.logic().ImportLabelmapToSegmentationNode(labels, node)
        for value, name in ((2, "spleen"), (7, "liver")):
            segmentation = node.GetSegmentation()
            (key,) = (k for k in segmentation.GetSegmentIDs() if segmentation.GetSegment(k).GetLabelValue() == value)
            segmentation.GetSegment(key).SetName(name)
        return node, array

    def test_segments_come_by_value_and_go_again(self):
        result, array = self.result()
        added = add_segments(result, None, self.volume, [7, 2])
        node = slicer.mrmlScene.GetNodeByID(added.node)
        for value, key in added.segments.items():
            mask = slicer.util.arrayFromSegmentBinaryLabelmap(node, key, self.volume)
            np.testing.assert_array_equal(mask > 0, array == value)
            assert tag(node.GetSegmentation().GetSegment(key), MADE) == fingerprint(node, key)
        labels, names = label_array(node, self.volume)
        assert names == {"liver": [1], "spleen": [2]}
        np.testing.assert_array_equal(labels == 1, array == 7)
        np.testing.assert_array_equal(labels == 2, array == 2)
        assert undo(added)
        assert slicer.mrmlScene.GetNodeByID(added.node) is None

    def test_an_edited_segment_stays_and_an_unedited_one_gives_way(self):
        result, _array = self.result()
        first = add_segments(result, None, self.volume, [7, 2])
        node = slicer.mrmlScene.GetNodeByID(first.node)
        mask = slicer.util.arrayFromSegmentBinaryLabelmap(node, first.segments[7], self.volume)
        mask[0, 0, 0] = 1
        slicer.util.updateSegmentBinaryLabelmapFromArray(mask, node, first.segments[7], self.volume)
        second = add_segments(result, node, self.volume, [7, 2])
        segmentation = node.GetSegmentation()
        names = sorted(segmentation.GetSegment(key).GetName() for key in segmentation.GetSegmentIDs())
        assert names == ["liver", "liver 2", "spleen"]
        assert undo(second)
        names = sorted(segmentation.GetSegment(key).GetName() for key in segmentation.GetSegmentIDs())
        assert names == ["liver", "spleen"]


def run():
    """Run all tests; raises if one fails."""
    suite = unittest.defaultTestLoader.loadTestsFromTestCase(LoRKDSelfTest)
    outcome = unittest.TextTestRunner(verbosity=2).run(suite)
    if not outcome.wasSuccessful():
        raise RuntimeError(f"{len(outcome.failures) + len(outcome.errors)} tests of LoRKD failed; see the log")
