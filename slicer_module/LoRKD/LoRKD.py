"""3D Slicer module: pick a department, type a prompt, see segments; correct, submit, retrain."""

from pathlib import Path
from typing import Any

import qt
import slicer
import vtk
from LoRKDLib.annotating import AnnotateSection
from LoRKDLib.connection import ConnectionSection
from LoRKDLib.parameters import LoRKDParameterNode
from LoRKDLib.results import ResultSection
from LoRKDLib.segmenting import SegmentSection
from LoRKDLib.session import Session, client_id, remember, remembered
from LoRKDLib.training import TrainSection
from slicer.i18n import tr as _
from slicer.i18n import translate
from slicer.ScriptedLoadableModule import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleLogic,
    ScriptedLoadableModuleTest,
    ScriptedLoadableModuleWidget,
)
from slicer.util import VTKObservationMixin


class LoRKD(ScriptedLoadableModule):
    """What Slicer shows of the module."""

    def __init__(self, parent: Any) -> None:
        ScriptedLoadableModule.__init__(self, parent)
        self.parent.title = "LoRKD"
        self.parent.categories = [translate("qSlicerAbstractCoreModule", "Segmentation")]
        self.parent.dependencies = ["Segmentations", "Terminologies", "SegmentEditor"]
        self.parent.contributors = ["LoRKD contributors"]
        self.parent.helpText = _(
            "Segments what a text names, with the expert of a department, on a LoRKD server; results can be corrected "
            "and submitted, and experts retrained on them. Not for diagnosis."
        )
        self.parent.acknowledgementText = _("After the method LoRKD, on MONAI Label.")


class LoRKDWidget(ScriptedLoadableModuleWidget, VTKObservationMixin):
    """Wires the sections of the panel."""

    def __init__(self, parent: Any = None) -> None:
        ScriptedLoadableModuleWidget.__init__(self, parent)
        VTKObservationMixin.__init__(self)
        self.session: Session | None = None
        self._gui = None

    def setup(self) -> None:
        """Make the panel; nothing is sent and nobody is asked."""
        ScriptedLoadableModuleWidget.setup(self)
        panel = slicer.util.loadUI(self.resourcePath("UI/LoRKD.ui"))
        self.layout.addWidget(panel)
        self.ui = slicer.util.childWidgetVariables(panel)
        panel.setMRMLScene(slicer.mrmlScene)
        self.logic = LoRKDLogic()
        self.session = Session(self.ui.statusLabel.setText)
        self.connection = ConnectionSection(self.ui, self.session)
        self.results = ResultSection(self.ui, self.session, lambda text: self.segment.apply(text))
        self.segment = SegmentSection(self.ui, self.session, self.results.show)
        self.annotate = AnnotateSection(self.ui, self.session)
        self.train = TrainSection(self.ui, self.session)
        self.ui.clientEdit.setText(client_id())
        self.ui.clientEdit.connect("editingFinished()", self._rename)
        self.ui.auto3DCheck.setChecked(remembered("auto3D") == "yes")
        self.ui.auto3DCheck.connect("toggled(bool)", lambda on: remember("auto3D", "yes" if on else "no"))
        self._shortcut = qt.QShortcut(qt.QKeySequence("Ctrl+Return"), panel)
        self._shortcut.setContext(qt.Qt.WidgetWithChildrenShortcut)
        self._shortcut.connect("activated()", self._run)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.StartCloseEvent, self.onSceneStartClose)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.EndCloseEvent, self.onSceneEndClose)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.NodeRemovedEvent, self.onNodeRemoved)
        self.initializeParameterNode()

    def cleanup(self) -> None:
        """Stop everything: the panel goes."""
        self.segment.cancel()
        self.session.disconnect()
        self.setParameterNode(None)
        self._shortcut.setEnabled(False)
        self.removeObservers()

    def enter(self) -> None:
        """Show the parameters of the scene."""
        self.initializeParameterNode()
        self._shortcut.setEnabled(True)

    def exit(self) -> None:
        """Leave the keys to other modules; a run goes on."""
        self._shortcut.setEnabled(False)

    def onSceneStartClose(self, _caller: Any, _event: Any) -> None:
        """Stop what works on the scene."""
        self.segment.cancel()
        self.results.clear()
        self.setParameterNode(None)

    def onSceneEndClose(self, _caller: Any, _event: Any) -> None:
        """Begin anew."""
        self.initializeParameterNode()

    def onNodeRemoved(self, _caller: Any, _event: Any) -> None:
        """Show what is missing now; what runs for a volume that is gone is of no use."""
        run = self.segment.run
        if run is not None and slicer.mrmlScene.GetNodeByID(run.volume_id) is None:
            self.segment.cancel()
            self.session.say(_("Cancelled, because the volume was removed."))
        if self.session.parameters is not None:
            self.results.update()

    def initializeParameterNode(self) -> None:
        """Take the parameters of the scene, with its first volume where none is chosen."""
        self.setParameterNode(self.logic.getParameterNode())
        parameters = self.session.parameters
        if parameters.volume is None:
            first = slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLScalarVolumeNode")
            if first is not None and not first.IsA("vtkMRMLLabelMapVolumeNode"):
                parameters.volume = first

    def setParameterNode(self, parameters: Any) -> None:
        """Let the panel show other parameters, or none."""
        old = self.session.parameters
        if old is not None:
            old.disconnectGui(self._gui)
            self.removeObserver(old, vtk.vtkCommand.ModifiedEvent, self._changed)
        self.session.parameters = parameters
        if parameters is not None:
            self._gui = parameters.connectGui(self.ui)
            self.addObserver(parameters, vtk.vtkCommand.ModifiedEvent, self._changed)
        self.session.changed()

    def _changed(self, _caller: Any = None, _event: Any = None) -> None:
        self.session.changed()

    def _run(self) -> None:
        if self.segment.run is None:
            self.segment.toggle()

    def _rename(self) -> None:
        remember("client", self.ui.clientEdit.text.strip())
        self.ui.clientEdit.setText(client_id())


class LoRKDLogic(ScriptedLoadableModuleLogic):
    """Gives the parameters of the scene."""

    def getParameterNode(self) -> LoRKDParameterNode:
        """Give them."""
        return LoRKDParameterNode(super().getParameterNode())


class LoRKDTest(ScriptedLoadableModuleTest):
    """What "Reload and Test" does inside Slicer: no server is needed."""

    def runTest(self) -> None:
        """Run all tests."""
        import importlib.util

        path = Path(__file__).parent / "Testing" / "Python" / "LoRKDSelfTest.py"
        spec = importlib.util.spec_from_file_location("LoRKDSelfTest", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        self.setUp()
        module.run()

    def setUp(self) -> None:
        """Begin with an empty scene."""
        slicer.mrmlScene.Clear(0)
