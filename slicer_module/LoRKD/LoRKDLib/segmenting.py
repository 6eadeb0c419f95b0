"""The section Segment: what of which volume, and the one button that applies and cancels."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import slicer
from slicer.i18n import tr as _

from LoRKDLib.completion import Completion
from LoRKDLib.parameters import AUTO
from LoRKDLib.prompt import names, phrases
from LoRKDLib.run import Listener, Order, Run
from LoRKDLib.session import Session, client_id, label_values
from LoRKDLib.volumes import IMAGE, SERVER

TEXT_MODEL = "lorkd"
Done = Callable[[dict[str, Any], Path, Any], None]


class SegmentSection:
    """Runs inferences.

    Args:
        ui: of the panel.
        session: shared state.
        done: given the JSON of an answer, the file with the segments, and the volume.
    """

    def __init__(self, ui: Any, session: Session, done: Done) -> None:
        self.ui, self.session, self._done = ui, session, done
        self.run: Run | None = None
        self._rows: list[tuple[str, str]] = []
        self._filling = False
        self._completion = Completion(ui.promptEdit)
        for value, text in ((AUTO, _("Automatic")), ("ct", "CT"), ("mri", "MRI")):
            ui.modalityCombo.addItem(text, value)
        ui.departmentCombo.connect("currentIndexChanged(int)", self._chosen)
        ui.modalityCombo.connect("currentIndexChanged(int)", self._chosen)
        ui.applyButton.connect("clicked()", self.toggle)
        session.listeners.append(self.update)

    def toggle(self) -> None:
        """Apply, or cancel what runs."""
        if self.run is not None:
            self.cancel()
            self.session.say(_("Cancelled."))
        elif not self.missing():
            self.apply(self.session.parameters.text)

    def apply(self, text: str) -> None:
        """Segment what a text names."""
        session, parameters = self.session, self.session.parameters
        volume, server = parameters.volume, session.server
        there = volume.GetAttribute(SERVER) == session.client.address
        image = volume.GetAttribute(IMAGE) or "" if there else ""
        if not image and not session.consent():
            session.say(_("Nothing was sent."))
            return
        params = {"client_id": client_id()}
        if server.ours:
            model, params["text"] = TEXT_MODEL, "; ".join(phrases(text))
            params |= {"department": parameters.department, "modality": parameters.modality}
        else:
            model = parameters.department
        extension = ".seg.nrrd" if server.ours else ".nrrd"
        order = Order(volume, model, params, keeps=server.routes, image=image, extension=extension)
        finished = lambda told, path: self._answered(told, path, volume)  # noqa: E731
        self.run = Run(session.client, order, Listener(self._stage, finished, self._failed))
        self._busy()
        try:
            self.run.start()
        except OSError:
            self.cancel()
            session.say(_("The volume can't be written to the folder for temporary files. Is the disk full?"))

    def cancel(self) -> None:
        """Stop what runs, here and on the server."""
        if self.run is not None:
            run, self.run = self.run, None
            run.cancel()
            self._busy()

    def missing(self) -> str:
        """Say what is missing before Apply can be pressed; empty if nothing is."""
        server, parameters = self.session.server, self.session.parameters
        if server is None:
            return _("Connect to a server first.")
        if parameters is None or parameters.volume is None or parameters.volume.GetImageData() is None:
            return _("Select a volume.")
        if server.ours and not phrases(parameters.text):
            return _("Type what to segment.")
        if not server.ours and parameters.department not in server.models():
            return _("Choose a model.")
        return ""

    def update(self) -> None:
        """Show departments, structures and whether Apply can be pressed."""
        server, parameters = self.session.server, self.session.parameters
        if self.run is not None and (server is None or parameters is None):
            self.cancel()
        if server is not None:
            self._fill(server)
        self.ui.promptEdit.setEnabled(server is None or bool(server.ours))
        self.ui.promptEdit.setToolTip(
            _("One phrase a line, or separated by a semicolon.")
            if server is None or server.ours
            else _("This server takes no text: it is no LoRKD server. Choose one of its models above.")
        )
        self._busy()

    def _fill(self, server: Any) -> None:
        combo, parameters = self.ui.departmentCombo, self.session.parameters
        if server.ours:
            rows = [(_("Automatic"), AUTO)]
            rows += [(each["name"].capitalize(), each["id"]) for each in server.ours["departments"] if each["expert"]]
        else:
            rows = [(name, name) for name in server.models()]
        self._filling = True
        if rows != self._rows:
            self._rows = rows
            combo.clear()
            for text, key in rows:
                combo.addItem(text, key)
        keys = [key for _text, key in rows]
        if parameters is not None:
            if parameters.department not in keys and keys:
                parameters.department = keys[0]
            combo.setCurrentIndex(keys.index(parameters.department) if keys else -1)
            modality = self.ui.modalityCombo
            modality.setCurrentIndex(max(0, modality.findData(parameters.modality)))
        self._filling = False
        self._describe()

    def _describe(self) -> None:
        server, key = self.session.server, self.ui.departmentCombo.currentData
        if server is None or key is None:
            return
        about = server.department(key)
        if about:
            text = _("Revision {revision}: {structures}").format(
                revision=about["revision"], structures=", ".join(about["structures"]) or about["problem"]
            )
        elif server.ours:
            text = _("Each phrase goes to the department that knows it.")
        else:
            text = ", ".join(label_values(server.models()[key]))
        self.ui.departmentLabel.setText(text)
        self._completion.set_names(names(server.vocabulary, key))

    def _chosen(self, _index: int) -> None:
        if not self._filling and self.session.parameters is not None:
            self.session.parameters.department = self.ui.departmentCombo.currentData or AUTO
            self.session.parameters.modality = self.ui.modalityCombo.currentData

    def _busy(self) -> None:
        """Show whether something runs, and else what is missing."""
        running, missing = self.run is not None, self.missing()
        self.session.busy = running
        button = self.ui.applyButton
        button.setText(_("Cancel") if running else _("Apply"))
        button.setEnabled(running or not missing)
        tip = _("Stop, here and on the server.") if running else missing or _("Segment (Ctrl+Enter).")
        button.setToolTip(tip)
        self.ui.progressBar.setVisible(running)
        for widget in (self.ui.volumeSelector, self.ui.segmentationSelector, self.ui.connectButton):
            widget.setEnabled(not running)

    def _stage(self, text: str, share: float | None) -> None:
        bar = self.ui.progressBar
        bar.setRange(0, 0 if share is None else 100)
        bar.setValue(int(100 * (share or 0)))
        self.session.say(text)

    def _answered(self, told: dict[str, Any], path: Path, volume: Any) -> None:
        self.run = None
        self._busy()
        if slicer.mrmlScene.GetNodeByID(volume.GetID()) is not volume:
            self.session.say(_("The volume is gone, so the result was not kept."))
            return
        self._done(told, path, volume)

    def _failed(self, text: str) -> None:
        self.run = None
        self._busy()
        self.session.say(text)
