"""Slicer without its application: the real scene and logics of slicer-core, real Qt, stand-ins for Slicer's widgets."""

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
os.environ.setdefault("VTK_DEFAULT_OPENGL_WINDOW", "vtkEGLRenderWindow")
STANDINS = Path(__file__).parent / "standins"
MODULE = Path(__file__).parents[2] / "slicer_module" / "LoRKD"


def start(temporary: Path) -> ModuleType:
    """Give ``slicer`` with a scene and ``slicer.app``; a second call gives the same."""
    if str(STANDINS) not in sys.path:
        sys.path[:0] = [str(STANDINS), str(MODULE)]
    import qt
    import slicer
    import slicer.util
    import vtk

    if hasattr(slicer, "mrmlScene"):
        return slicer
    vtk.vtkObject.GlobalWarningDisplayOff()  # the logics miss Slicer's files of terms and colors, and say so
    scene, logic = slicer.vtkMRMLScene(), slicer.vtkSlicerApplicationLogic()
    logic.SetMRMLScene(scene)
    colors = slicer.vtkMRMLColorLogic()  # grey, with which volumes are shown
    colors.SetMRMLScene(scene)
    logic.SetColorLogic(colors)
    logic.SetModuleLogic("Colors", colors)
    names = {
        "segmentations": "vtkSlicerSegmentationsModuleLogic",
        "volumes": "vtkSlicerVolumesLogic",
        "terminologies": "vtkSlicerTerminologiesModuleLogic",
        "subjecthierarchy": "vtkSlicerSubjectHierarchyModuleLogic",
    }
    modules = {}
    for name, kind in names.items():
        own = getattr(slicer, kind)()
        own.SetMRMLApplicationLogic(logic)
        own.SetMRMLScene(scene)
        modules[name] = SimpleNamespace(logic=lambda own=own: own)
    vtk.vtkObject.GlobalWarningDisplayOn()
    slicer.mrmlScene = scene
    slicer.modules = SimpleNamespace(**modules)
    slicer.app = qt.QObject()
    slicer.app.temporaryPath = str(temporary)
    slicer.app.applicationLogic = lambda: logic
    slicer.app.testingEnabled = lambda: True
    slicer.app.layoutManager = lambda: None
    return slicer


def load_module() -> Any:
    """Give the module's own Python module, as Slicer loads it: by its path."""
    spec = importlib.util.spec_from_file_location("LoRKD", MODULE / "LoRKD.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["LoRKD"] = module
    spec.loader.exec_module(module)
    return module
