"""The widgets of CTK that the panel has."""

import qt
from PySide6 import QtCore

_TITLE_HEIGHT = 18


class ctkCollapsibleButton(qt.QGroupBox):
    """A section with a title; its contents are shown unless it is collapsed."""

    contentsCollapsed = QtCore.Signal(bool)

    def __init__(self, parent=None):
        super().__init__(parent)
        self._text, self._collapsed = "", False

    def setText(self, text):
        self._text = text
        self.setTitle(f"{'▸' if self._collapsed else '▾'} {text}")

    def setCollapsed(self, collapsed):
        changed, self._collapsed = collapsed != self._collapsed, collapsed
        self.setMaximumHeight(_TITLE_HEIGHT if collapsed else 16_777_215)  # Qt's own greatest height
        self.setText(self._text)
        if changed:
            self.contentsCollapsed.emit(collapsed)

    text = QtCore.Property(str, lambda self: self._text, setText)
    collapsed = QtCore.Property(bool, lambda self: self._collapsed, setCollapsed)
