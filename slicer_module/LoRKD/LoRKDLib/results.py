"""The sections Result and Correct: a row a phrase, 3D, the way to the Segment Editor, and the way back."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import qt
import slicer
from slicer.i18n import tr as _

from LoRKDLib.segments import Added, add_segments, by_value, result_of, undo
from LoRKDLib.session import Section, Session

Row = tuple[tuple[str, str, str, str], str, str]
"""Of the table: its cells, the id of the segment that it stands for, and the text that it offers; both may be empty."""


class ResultSection(Section):
    """Puts results into the scene; ``segment`` runs the text of a suggestion."""

    def __init__(self, ui: Any, session: Session, segment: Callable[[str], None]) -> None:
        super().__init__(ui, session, ui.statusLabel)
        self._segment = segment
        self._added: Added | None = None
        self._rows: list[Row] = []
        for header in (ui.resultTable.horizontalHeader(), ui.resultTable.verticalHeader()):
            header.setSectionResizeMode(qt.QHeaderView.ResizeToContents)
        ui.resultTable.connect("cellClicked(int,int)", self._go)
        ui.undoButton.connect("clicked()", self._undo)
        ui.editButton.connect("clicked()", self._edit)

    def show(self, told: dict[str, Any], path: Path, volume: Any) -> None:
        """Add what was found in a volume to the segmentation, and say what became of each phrase.

        Servers that are not ours say nothing of phrases: all labels of their model were asked for.
        """
        about, parameters = told.get("lorkd") or {}, self.session.parameters
        names = told.get("label_names") or self.session.models.get(parameters.department, {})
        with result_of(path, names) as result:
            there = by_value(result)
            answers = about.get("answers") or [
                {"structure": name, "status": "found" if value in there else "absent", "value": value}
                for name, value in names.items()
            ]
            found = [each["value"] for each in answers if each["status"] == "found" and each["value"] in there]
            added = add_segments(result, parameters.segmentation, volume, found) if found else None
        if added:
            parameters.segmentation = slicer.mrmlScene.GetNodeByID(added.node)
            if self.ui.auto3DCheck.checked:
                parameters.segmentation.CreateClosedSurfaceRepresentation()
        missed = about.get("not_understood") or []
        said = _("{found} of {asked} structures found.").format(found=len(found), asked=len(answers))
        if missed:
            said += " " + _("Not understood: {list}.").format(list=", ".join(each["phrase"] for each in missed))
        self.say(f"{said} {about.get('fallback') or ''}".strip())
        self.fill(added, list(_rows(answers, missed, added.segments if added else {})))

    def fill(self, added: Added | None, rows: list[Row]) -> None:
        """Show what a run did."""
        self._added, self._rows, table = added, rows, self.ui.resultTable
        table.setRowCount(len(rows))
        for index, (cells, _segment, _suggestion) in enumerate(rows):
            for column, text in enumerate(cells):
                table.setItem(index, column, qt.QTableWidgetItem(text))
            table.item(index, 2).setTextAlignment(qt.Qt.AlignRight | qt.Qt.AlignVCenter)  # ml: a number
        self.session.changed()

    def _go(self, index: int, _column: int) -> None:
        """Segment a suggestion, or go to a segment in the slices."""
        (_cells, segment, suggestion), node = self._rows[index], self._node()
        if suggestion:
            self._segment(suggestion)
        elif node is not None and node.GetSegmentation().GetSegment(segment):
            slicer.vtkMRMLSliceNode.JumpAllSlices(slicer.mrmlScene, *node.GetSegmentCenterRAS(segment))

    def _undo(self) -> None:
        undo(self._added)
        self.fill(None, [])
        self.say(_("The last run was undone."))

    def _edit(self) -> None:
        """Open the Segment Editor on the selected segment, with the volume it was made of."""
        slicer.util.selectModule("SegmentEditor")
        editor = slicer.modules.segmenteditor.widgetRepresentation().self().editor
        editor.setSegmentationNode(self.session.parameters.segmentation)
        editor.setSourceVolumeNode(self.session.parameters.volume)
        index = self.ui.resultTable.currentRow()
        if index >= 0 and self._rows[index][1]:
            editor.setCurrentSegmentID(self._rows[index][1])

    def update(self) -> None:
        """Show what can be done now."""
        self.ui.show3DButton.setSegmentationNode(self.session.parameters.segmentation)
        self.offer(self.ui.undoButton, "" if self._node() else _("There is no run to undo."))
        self.offer(self.ui.editButton, self.session.missing("volume", "segmentation"))

    def _node(self) -> Any:
        return slicer.mrmlScene.GetNodeByID(self._added.node) if self._added else None


def _rows(answers: list[dict[str, Any]], missed: list[dict[str, Any]], segments: dict[int, str]) -> Iterator[Row]:
    states = {"found": _("found"), "absent": _("not found in this volume"), "no expert": _("no expert knows it")}
    for each in answers:
        ml = f"{each['ml']:.1f}" if each["status"] == "found" and "ml" in each else ""
        cells = (each["structure"], each.get("expert") or "", ml, states.get(each["status"], ""))
        yield cells, segments.get(each["value"], ""), ""
    for each in missed:
        yield (each["phrase"], "", "", _("not understood")), "", ""
        for name in each["candidates"]:
            yield (f"→ {name}", "", "", _("click to segment this instead")), "", name
