"""The widgets of Slicer that the panel has, on the real scene."""

import qt
from PySide6 import QtCore


class qMRMLWidget(qt.QWidget):
    """Passes the scene to its children; Slicer does it by the connections of the .ui file."""

    def setMRMLScene(self, scene):
        for child in self.findChildren(QtCore.QObject):
            if hasattr(child, "setMRMLScene"):
                child.setMRMLScene(scene)


class qMRMLNodeComboBox(qt.QComboBox):
    """Chooses among the nodes of some classes."""

    currentNodeChanged = QtCore.Signal()

    def __init__(self, parent=None):
        super().__init__(parent)
        self._scene, self._ids, self._filling = None, [], False
        self.currentIndexChanged.connect(lambda _index: None if self._filling else self.currentNodeChanged.emit())

    def setMRMLScene(self, scene):
        self._scene = scene
        events = (scene.NodeAddedEvent, scene.NodeRemovedEvent, scene.EndCloseEvent)
        tags = [scene.AddObserver(event, self._fill) for event in events]
        self.destroyed.connect(lambda: [scene.RemoveObserver(tag) for tag in tags])
        self._fill()

    def currentNode(self):
        index = self.currentIndex
        return self._scene.GetNodeByID(self._ids[index]) if 0 <= index < len(self._ids) and self._ids[index] else None

    def setCurrentNode(self, node):
        wanted = node.GetID() if node is not None else ""
        self.setCurrentIndex(self._ids.index(wanted) if wanted in self._ids else 0)

    def _fill(self, *_):
        before = self._ids[self.currentIndex] if 0 <= self.currentIndex < len(self._ids) else ""
        nodes = []
        for kind in self.property("nodeTypes"):
            found = self._scene.GetNodesByClass(kind)
            found.UnRegister(None)
            each = [found.GetItemAsObject(index) for index in range(found.GetNumberOfItems())]
            nodes += [node for node in each if node.GetClassName() == kind and not node.GetHideFromEditors()]
        self._filling = True
        self.clear()
        self._ids = ["", *(node.GetID() for node in nodes)]
        self.addItem(self.property("noneDisplay") or "None")
        self.addItems([node.GetName() for node in nodes])
        self.setCurrentIndex(self._ids.index(before) if before in self._ids else 0)
        self._filling = False
        if before and before not in self._ids:
            self.currentNodeChanged.emit()


class qMRMLSegmentationShow3DButton(qt.QPushButton):
    """Makes and removes closed surfaces."""

    def __init__(self, parent=None):
        super().__init__(parent)
        self._node = None
        self.setCheckable(True)
        self.setEnabled(False)
        self.clicked.connect(self._show)

    def setSegmentationNode(self, node):
        self._node = node
        self.setEnabled(node is not None)

    def _show(self, on):
        if on:
            self._node.CreateClosedSurfaceRepresentation()
        else:
            self._node.RemoveClosedSurfaceRepresentation()
