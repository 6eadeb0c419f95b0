"""Completes phrases of the prompt with names that the server knows."""

from typing import Any

import qt

from LoRKDLib.prompt import typed_phrase

MOST_SHOWN = 12


class Completion:
    """Shows names below the cursor while a phrase is typed."""

    def __init__(self, edit: Any) -> None:
        self._edit = edit
        self._start = 0
        self._busy = False
        self._completer = qt.QCompleter()
        self._completer.setWidget(edit)
        self._completer.setCaseSensitivity(qt.Qt.CaseInsensitive)
        self._completer.setFilterMode(qt.Qt.MatchContains)
        self._completer.setMaxVisibleItems(MOST_SHOWN)
        self._completer.connect("activated(QString)", self.insert)
        edit.connect("textChanged()", self.offer)

    def set_names(self, names: list[str]) -> None:
        """Set what is offered."""
        self._completer.setModel(qt.QStringListModel(names, self._completer))

    def offer(self) -> None:
        """Offer what fits the phrase at the cursor."""
        cursor = self._edit.textCursor()
        self._start, phrase = typed_phrase(self._edit.plainText, cursor.position())
        if self._busy or len(phrase) < 2 or not self._edit.hasFocus():
            self._completer.popup().hide()
            return
        self._completer.setCompletionPrefix(phrase)
        if self._completer.completionCount() and self._completer.currentCompletion() != phrase:
            area = self._edit.cursorRect()
            area.setWidth(self._edit.width // 2)
            self._completer.complete(area)
        else:
            self._completer.popup().hide()

    def insert(self, name: str) -> None:
        """Put a name in place of the phrase at the cursor."""
        cursor = self._edit.textCursor()
        end = cursor.position()
        cursor.setPosition(self._start)
        cursor.setPosition(end, qt.QTextCursor.KeepAnchor)
        self._busy = True
        cursor.insertText(name)
        self._busy = False
        self._edit.setTextCursor(cursor)
