"""The sections Result and Correct: a row a phrase, 3D, the way to the Segment Editor, and the way back."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import qt
import slicer
from slicer.i18n import tr as _

from LoRKDLib.segments import Added, add_segments, by_value, read_result, undo
from LoRKDLib.session import Session, label_values


class Row(NamedTuple):
    """A row of the table: its cells, and the segment it stands for or the text it offers; both may be empty."""

    cells: tuple[str, str, str, str]
    segment: str = ""
    suggestion: str = ""


class ResultSection:
    """Puts results into the scene.

    Args:
        ui: of the panel.
        session: shared state.
        segment: runs the text of a suggestion.
    """

    def __init__(self, ui: Any, session: Session, segment: Callable[[str], None]) -> None:
        self.ui, self.session, self._segment = ui, session, segment
        self.rows: list[Row] = []
        self.added: Added | None = None
        ui.resultTable.setHorizontalHeaderLabels([_("Structure"), _("Expert"), _("ml"), _("State")])
        ui.resultTable.horizontalHeader().setSectionResizeMode(qt.QHeaderView.ResizeToContents)
        ui.resultTable.horizontalHeader().setStretchLastSection(True)
        ui.resultTable.connect("cellClicked(int,int)", self.clicked)
        ui.undoButton.connect("clicked()", self.undo)
        ui.editButton.connect("clicked()", self.edit)
        session.listeners.append(self.update)

    def show(self, told: dict[str, Any], path: Path, volume: Any) -> None:
        """Add what was found to the segmentation, and say what became of each phrase."""
        about, parameters = told.get("lorkd") or {}, self.session.parameters
        server = self.session.server
        names = told.get("label_names") or (label_values(server.models().get(parameters.department, {})))
        try:
            result = read_result(path, names)
        except OSError:
            self.session.say(_("The file with the segments can't be read. Try again."))
            return
        try:
            there = by_value(result)
            answers = about.get("answers") or [
                {"structure": name, "status": "found" if value in there else "absent", "value": value}
                for name, value in names.items()
            ]
            found = [each["value"] for each in answers if each["status"] == "found" and each["value"] in there]
            self.added = add_segments(result, parameters.segmentation, volume, found) if found else None
        finally:
            slicer.mrmlScene.RemoveNode(result)
        if self.added:
            node = slicer.mrmlScene.GetNodeByID(self.added.node)
            parameters.segmentation = node
            if self.ui.auto3DCheck.checked:
                node.CreateClosedSurfaceRepresentation()
        self.rows = list(self._rows(answers, about.get("not_understood") or []))
        self._fill()
        self.session.say(self._summary(answers, about))
        self.update()

    def _rows(self, answers: list[dict[str, Any]], missed: list[dict[str, Any]]) -> Any:
        words = {"found": _("found"), "absent": _("not found in this volume"), "no expert": _("no expert knows it")}
        for each in answers:
            ml = f"{each['ml']:.1f}" if each["status"] == "found" and "ml" in each else ""
            key = self.added.segments.get(each["value"], "") if self.added else ""
            yield Row((each["structure"], each.get("expert") or "", ml, words.get(each["status"], "")), key)
        for each in missed:
            yield Row((each["phrase"], "", "", _("not understood")))
            for name in each["candidates"]:
                yield Row((f"→ {name}", "", "", _("click to segment this instead")), suggestion=name)

    def _summary(self, answers: list[dict[str, Any]], about: dict[str, Any]) -> str:
        found = sum(each["status"] == "found" for each in answers)
        text = _("{found} of {asked} structures found.").format(found=found, asked=len(answers))
        if about.get("not_understood"):
            text += " " + _("Not understood: {phrases}.").format(
                phrases=", ".join(each["phrase"] for each in about["not_understood"])
            )
        return f"{text} {about['fallback']}" if about.get("fallback") else text

    def _fill(self) -> None:
        table = self.ui.resultTable
        table.setRowCount(len(self.rows))
        for index, row in enumerate(self.rows):
            for column, text in enumerate(row.cells):
                table.setItem(index, column, qt.QTableWidgetItem(text))

    def clicked(self, index: int, _column: int) -> None:
        """Go to a segment in the slices, or segment a suggestion."""
        row = self.rows[index]
        if row.suggestion and not self.session.busy:
            self._segment(row.suggestion)
        node = self._segmentation()
        if row.segment and node is not None and node.GetSegmentation().GetSegment(row.segment):
            center = node.GetSegmentCenterRAS(row.segment)
            if center is not None:
                slicer.vtkMRMLSliceNode.JumpAllSlices(slicer.mrmlScene, *center)
        self.update()

    def undo(self) -> None:
        """Take the last run back."""
        if self.added is not None and self.session.parameters is not None:
            done, self.added = undo(self.added), None
            self.rows = []
            self._fill()
            self.session.say(_("The last run was undone.") if done else _("Its segmentation is gone already."))
            self.update()

    def edit(self) -> None:
        """Open the Segment Editor on the selected segment, with the volume it was made of."""
        parameters = self.session.parameters
        slicer.util.selectModule("SegmentEditor")
        editor = slicer.modules.segmenteditor.widgetRepresentation().self().editor
        editor.setSegmentationNode(parameters.segmentation)
        editor.setSourceVolumeNode(parameters.volume)
        index = self.ui.resultTable.currentRow()
        if 0 <= index < len(self.rows) and self.rows[index].segment:
            editor.setCurrentSegmentID(self.rows[index].segment)

    def clear(self) -> None:
        """Forget the last run: the scene it stands in is closed."""
        self.added, self.rows = None, []
        self._fill()

    def update(self) -> None:
        """Show what can be done now."""
        parameters = self.session.parameters
        node = parameters.segmentation if parameters is not None else None
        self.ui.show3DButton.setSegmentationNode(node)
        self.ui.undoButton.setEnabled(self._segmentation() is not None)
        ready = node is not None and parameters.volume is not None
        self.ui.editButton.setEnabled(ready)
        self.ui.editButton.setToolTip(
            _("Open the selected segment with its volume.")
            if ready
            else _("There is no segmentation yet; segment something first.")
        )

    def _segmentation(self) -> Any:
        return slicer.mrmlScene.GetNodeByID(self.added.node) if self.added else None
