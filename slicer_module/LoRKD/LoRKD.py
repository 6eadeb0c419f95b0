"""3D Slicer module: pick a department, type a prompt, see segments; correct, submit, retrain."""

from pathlib import Path
from typing import Any

import numpy as np
import slicer
import vtk
from LoRKDLib.connecting import ConnectSection
from LoRKDLib.learning import AnnotateSection, TrainSection
from LoRKDLib.results import ResultSection
from LoRKDLib.segmenting import SegmentSection
from LoRKDLib.segments import add_segments, by_value, label_array, new_segmentation, undo
from LoRKDLib.session import Session, remember, remembered
from LoRKDLib.typed import AUTO
from slicer.i18n import tr as _
from slicer.i18n import translate
from slicer.parameterNodeWrapper import parameterNodeWrapper
from slicer.ScriptedLoadableModule import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleLogic,
    ScriptedLoadableModuleTest,
    ScriptedLoadableModuleWidget,
)
from slicer.util import VTKObservationMixin

RESOURCES = Path(__file__).parent / "Resources"
SAMPLE_SHA256 = "146af87511520c500a3706b7b2bfb545f40d5d04dd180be3a7a2c6940e447433"  # of an abdominal CT of Slicer's


class LoRKD(ScriptedLoadableModule):
    """What Slicer shows of the module."""

    def __init__(self, parent: Any) -> None:
        ScriptedLoadableModule.__init__(self, parent)
        self.parent.title = "LoRKD"
        self.parent.categories = [translate("qSlicerAbstractCoreModule", "Segmentation")]
        self.parent.dependencies = ["Segmentations", "SegmentEditor", "Terminologies", "SampleData"]
        self.parent.contributors = ["LoRKD contributors"]
        self.parent.helpText = _(
            "Segments what a text names, with the expert of a department, on a LoRKD server; results can be corrected "
            "and submitted, and experts retrained on them. Not for diagnosis."
        )
        self.parent.acknowledgementText = _("After the method LoRKD, on MONAI Label.")
        slicer.app.connect("startupCompleted()", offer_data)


def offer_data() -> None:
    """Offer our structures where segments are named, and the tutorial's volume in Sample Data."""
    from SampleData import SampleDataLogic

    slicer.modules.terminologies.logic().LoadTerminologyFromFile(str(RESOURCES / "Terminology" / "LoRKD.term.json"))
    SampleDataLogic.registerCustomSampleDataSource(
        category="LoRKD",
        sampleName="LoRKDAbdomenCT",
        uris=f"https://github.com/Slicer/SlicerTestingData/releases/download/SHA256/{SAMPLE_SHA256}",
        checksums=f"SHA256:{SAMPLE_SHA256}",
        fileNames="Panoramix-cropped.nrrd",
        nodeNames="LoRKDAbdomenCT",
        thumbnailFileName=str(RESOURCES / "Icons" / "LoRKD.png"),
    )


@parameterNodeWrapper
class LoRKDParameterNode:
    """What the panel remembers in the scene: on servers that are not ours, the department is the name of a model."""

    volume: slicer.vtkMRMLScalarVolumeNode
    segmentation: slicer.vtkMRMLSegmentationNode
    text: str
    department: str = AUTO
    modality: str = AUTO


class LoRKDWidget(ScriptedLoadableModuleWidget, VTKObservationMixin):
    """Wires the sections of the panel."""

    def setup(self) -> None:
        """Make the panel; nothing is sent and nobody is asked."""
        ScriptedLoadableModuleWidget.setup(self)
        VTKObservationMixin.__init__(self)
        panel = slicer.util.loadUI(self.resourcePath("UI/LoRKD.ui"))
        self.layout.addWidget(panel)
        self.ui = slicer.util.childWidgetVariables(panel)
        panel.setMRMLScene(slicer.mrmlScene)
        self.logic, self.session, self._gui = LoRKDLogic(), Session(), 0
        ConnectSection(self.ui, self.session)
        self.results = ResultSection(self.ui, self.session, lambda text: self.segment.apply(text))
        self.segment = SegmentSection(self.ui, self.session, self.results.show)
        AnnotateSection(self.ui, self.session)
        TrainSection(self.ui, self.session)
        self.ui.auto3DCheck.setChecked(remembered("auto3D") == "yes")
        self.ui.auto3DCheck.connect("toggled(bool)", lambda on: remember("auto3D", "yes" if on else "no"))
        scene = slicer.mrmlScene
        self.addObserver(scene, scene.StartCloseEvent, self.onSceneStartClose)
        self.addObserver(scene, scene.EndCloseEvent, self.onSceneEndClose)
        self.addObserver(scene, scene.NodeRemovedEvent, self.session.changed)
        self.initializeParameterNode()

    def cleanup(self) -> None:
        """Stop everything: the panel goes."""
        self.session.disconnect()
        self.setParameterNode(None)
        self.removeObservers()

    def enter(self) -> None:
        """Show the parameters of the scene; nothing is undone at exit, for the shortcut works in the panel alone."""
        self.initializeParameterNode()

    def onSceneStartClose(self, _caller: Any, _event: Any) -> None:
        """Stop what works on the scene."""
        self.segment.stop()
        self.results.fill(None, [])
        self.setParameterNode(None)

    def onSceneEndClose(self, _caller: Any, _event: Any) -> None:
        """Begin anew."""
        self.initializeParameterNode()

    def initializeParameterNode(self) -> None:
        """Take the parameters of the scene, with its first volume where none is chosen."""
        self.setParameterNode(self.logic.getParameterNode())
        if self.session.parameters.volume is None:
            volumes = slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode")
            volumes = [each for each in volumes if each.GetClassName() == "vtkMRMLScalarVolumeNode"]
            self.session.parameters.volume = volumes[0] if volumes else None

    def setParameterNode(self, parameters: Any) -> None:
        """Let the panel show other parameters, or none."""
        if self.session.parameters is not None:
            self.session.parameters.disconnectGui(self._gui)
            self.removeObserver(self.session.parameters, vtk.vtkCommand.ModifiedEvent, self.session.changed)
        self.session.parameters = parameters
        if parameters is not None:
            self._gui = parameters.connectGui(self.ui)
            self.addObserver(parameters, vtk.vtkCommand.ModifiedEvent, self.session.changed)
        self.session.changed()


class LoRKDLogic(ScriptedLoadableModuleLogic):
    """Gives the parameters of the scene."""

    def getParameterNode(self) -> LoRKDParameterNode:
        """Give them."""
        return LoRKDParameterNode(super().getParameterNode())


class LoRKDTest(ScriptedLoadableModuleTest):
    """What "Reload and Test" does inside Slicer: no server is needed."""

    def runTest(self) -> None:
        """Run all tests."""
        slicer.mrmlScene.Clear(0)
        self.test_an_edited_segment_stays_and_an_unedited_one_gives_way()

    def test_an_edited_segment_stays_and_an_unedited_one_gives_way(self) -> None:
        """Segments come, are edited, are replaced, and go."""
        volume = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "ct")
        slicer.util.updateVolumeFromArray(volume, np.zeros((12, 14, 16), np.int16))
        result, masks = new_segmentation(volume), np.zeros((2, 12, 14, 16), np.uint8)
        masks[0, 2:6, 3:8, 4:9] = masks[1, 8:11, 3:8, 4:9] = 1
        for name, mask in (("liver", masks[0]), ("spleen", masks[1])):
            result.GetSegmentation().AddEmptySegment(name, name)
            slicer.util.updateSegmentBinaryLabelmapFromArray(mask, result, name, volume)
        result.GetSegmentation().CollapseBinaryLabelmaps(True)
        values = {key: value for value, key in by_value(result).items()}

        first = add_segments(result, None, volume, [values["liver"], values["spleen"]])
        node = slicer.mrmlScene.GetNodeByID(first.node)
        array, names = label_array(node, volume)
        assert names == {"liver": [1], "spleen": [2]}
        np.testing.assert_array_equal(array, masks[0] + 2 * masks[1])
        masks[0, 0, 0, 0] = 1
        slicer.util.updateSegmentBinaryLabelmapFromArray(masks[0], node, first.segments[values["liver"]], volume)
        second = add_segments(result, node, volume, list(values.values()))
        assert label_array(node, volume)[1].keys() == {"liver", "liver 2", "spleen"}
        undo(second)
        assert label_array(node, volume)[1].keys() == {"liver", "spleen"}
