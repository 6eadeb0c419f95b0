"""The widgets of CTK that the panel has."""

import qt
from PySide6 import QtCore


class ctkCollapsibleButton(qt.QGroupBox):
    """A section with a title; its contents are shown unless it is collapsed."""

    def __init__(self, parent=None):
        super().__init__(parent)
        self.installEventFilter(self)

    def eventFilter(self, _watched, event):
        if event.type() == QtCore.QEvent.Type.DynamicPropertyChange:
            name = bytes(event.propertyName().data()).decode()
            if name == "text":
                self.setTitle(self.property("text"))
        return False
