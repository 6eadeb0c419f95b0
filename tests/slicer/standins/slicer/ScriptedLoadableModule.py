"""The four base classes of scripted modules."""

from pathlib import Path
from types import SimpleNamespace


class ScriptedLoadableModule:
    """Metadata of a module."""

    def __init__(self, parent):
        self.parent = parent


class ScriptedLoadableModuleWidget:
    """A panel: a layout in a parent widget."""

    def __init__(self, parent=None):
        import qt

        self.parent = parent or qt.QWidget()
        self.moduleName = type(self).__name__.removesuffix("Widget")
        self.layout = self.parent.layout() or qt.QVBoxLayout(self.parent)

    def setup(self):
        """Nothing more without developer mode."""

    def resourcePath(self, name):
        """Give the path of a resource beside the module."""
        import inspect

        return str(Path(inspect.getfile(type(self))).parent / "Resources" / name)


class ScriptedLoadableModuleLogic:
    """Has one parameter node in the scene."""

    def __init__(self, parent=None):
        self.moduleName = type(self).__name__.removesuffix("Logic")

    def getParameterNode(self):
        """Give the scene's node of this module, made when it is asked for first."""
        import slicer

        nodes = slicer.util.getNodesByClass("vtkMRMLScriptedModuleNode")
        for node in nodes:
            if node.GetModuleName() == self.moduleName:
                return node
        node = slicer.mrmlScene.CreateNodeByClass("vtkMRMLScriptedModuleNode")
        node.UnRegister(None)
        node.SetSingletonTag(self.moduleName)
        node.SetModuleName(self.moduleName)
        node.SetName(self.moduleName)
        return slicer.mrmlScene.AddNode(node)


class ScriptedLoadableModuleTest:
    """A self-test."""

    def __init__(self, *_args):
        self.shown = SimpleNamespace()

    def delayDisplay(self, *_args):
        """Show nothing."""
