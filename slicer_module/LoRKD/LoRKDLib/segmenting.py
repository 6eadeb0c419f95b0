"""The section Segment: what of which volume, completed while typing, and the button that applies and cancels."""

import contextlib
import tempfile
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import qt
import slicer
from slicer.i18n import tr as _

from LoRKDLib.multipart import composed, parsed, suffix
from LoRKDLib.session import Section, Session, client_id, fill
from LoRKDLib.tasks import Failure, Task
from LoRKDLib.typed import AUTO, names, phrases, typed_phrase
from LoRKDLib.volumes import IMAGE, write_volume

POLL_MS = 300


class SegmentSection(Section):
    """Runs inferences; ``done`` is given the JSON of an answer, the file with the segments, and the volume."""

    def __init__(self, ui: Any, session: Session, done: Callable[[dict[str, Any], Path, Any], None]) -> None:
        super().__init__(ui, session, ui.statusLabel)
        self._done, self._volume, self._completion = done, None, Completion(ui.promptEdit)
        ui.departmentCombo.connect("currentIndexChanged(int)", lambda _index: self._choose())
        ui.modalityCombo.connect("currentIndexChanged(int)", lambda _index: self._choose())
        ui.applyButton.connect("clicked()", self._toggle)

    def _toggle(self) -> None:
        """Apply, or cancel what runs."""
        if self.task is None:
            self.apply(self.session.parameters.text)
        else:
            self.stop(_("Cancelled."))

    def apply(self, text: str) -> None:
        """Segment what a text names, unless something runs."""
        if self.task is None and not self.session.missing("server", "volume"):
            self.start(self._apply(text))

    async def _apply(self, text: str) -> None:
        session, parameters = self.session, self.session.parameters
        self._volume = volume = parameters.volume
        model, params, form, query = parameters.department, {"client_id": client_id()}, {}, {"output": "all"}
        params["result_extension"] = ".seg.nrrd" if session.ours else ".nrrd"
        if session.ours:
            params |= {"department": model, "modality": parameters.modality, "text": "; ".join(phrases(text))}
            model = "lorkd"
        image = volume.GetAttribute(IMAGE.format(address=session.client.address))
        with tempfile.TemporaryDirectory(prefix="lorkd-", dir=slicer.app.temporaryPath) as folder:
            path = Path(folder, "volume.nrrd")
            if image:
                query["image"] = image
            else:
                session.consent()
                self._stage(_("Reading the volume"), None)
                sha256 = await write_volume(volume, path)
                if session.vocabulary:
                    params["volume"] = sha256
                    await self._send(sha256, path)
                else:
                    form["file"] = (path.name, path.read_bytes())
            told, name, content = await self._infer(model, params, form, query)
            path = Path(folder, f"result{suffix(name)}")
            path.write_bytes(content)
            self._done(told, path, volume)

    async def _send(self, sha256: str, path: Path) -> None:
        """Send a file, unless the server keeps it already."""
        client = self.session.client
        try:
            await client.call("get", f"/lorkd/volumes/{sha256}")
        except Failure as failure:
            if failure.status != 404:
                raise
            file, sending = qt.QFile(str(path)), lambda share: self._stage(_("Sending the volume"), share)
            file.open(qt.QIODevice.ReadOnly)
            with contextlib.closing(file):
                await client.call("put", "/lorkd/volumes", file, seconds=0, sending=sending, extension=".nrrd")

    async def _infer(
        self, model: str, params: dict[str, str], form: dict[str, tuple[str, bytes]], query: dict[str, Any]
    ) -> tuple[dict[str, Any], str, bytes]:
        """Let a model segment, and give the JSON of its answer, and the name and content of the file with it."""
        client, job = self.session.client, str(uuid.uuid4())
        self._stage(_("Waiting for the server"), None)
        watching = Task(self._watch(job))
        if self.session.vocabulary:
            params["job"] = job
            watching.go()
        try:
            body = composed(params, **form)
            told, name, content = parsed(await client.call("post", f"/infer/{model}", *body, seconds=0, **query))
        except GeneratorExit:  # cancelled
            if "job" in params:
                client.call("delete", f"/lorkd/jobs/{job}")
            raise
        except ValueError as error:
            raise Failure(_("The answer of the server is cut off or damaged. Try again.")) from error
        finally:
            watching.cancel()
        if not name:
            raise Failure(_("The server sent no segments. Its model may be none that segments."))
        return told, name, content

    async def _watch(self, job: str) -> None:
        while True:
            try:
                told = await self.session.client.poll(f"/lorkd/jobs/{job}", POLL_MS, self.say, seconds=5)
            except Failure:  # the request has not reached the queue yet
                continue
            done, total = told.get("done") or 0, told.get("total") or 0
            if told.get("state") == "queued":
                self._stage(_("Waiting, place {position} in the queue").format(**told), None)
            elif told.get("state") == "running":
                text = _("Segmenting: {stage}").format(stage=told["stage"].replace("_", " "))
                self._stage(f"{text} {done}/{total}" if total else text, done / total if total else None)

    def _stage(self, text: str, share: float | None) -> None:
        self.ui.progressBar.setRange(0, 0 if share is None else 100)
        self.ui.progressBar.setValue(int(100 * (share or 0)))
        self.say(text)

    def _choose(self) -> None:
        self.session.parameters.department = self.ui.departmentCombo.currentData or AUTO
        self.session.parameters.modality = self.ui.modalityCombo.currentData or AUTO

    def update(self) -> None:
        """Show departments, structures, whether something runs, and else what is missing for that."""
        ui, session, running = self.ui, self.session, self.task is not None
        if running and not slicer.mrmlScene.IsNodePresent(self._volume):
            self.stop(_("Cancelled, because the volume was removed."))
            return
        if session.info:
            self._describe(session.parameters)
        missing = session.missing("server", "volume", "phrases" if session.ours else "model")
        self.offer(ui.applyButton, "" if running else missing)
        ui.applyButton.setText(_("Cancel") if running else _("Apply"))
        ui.progressBar.setVisible(running)
        for widget in (ui.volumeSelector, ui.segmentationSelector, ui.connectButton):
            widget.setEnabled(not running)

    def _describe(self, parameters: Any) -> None:
        session = self.session
        rows = {AUTO: _("Automatic")} | {key: each["name"].capitalize() for key, each in session.experts.items()}
        rows = rows if session.ours else {key: key for key in session.models}
        fill(self.ui.departmentCombo, rows, parameters.department)
        fill(self.ui.modalityCombo, {AUTO: _("Automatic"), "ct": "CT", "mri": "MRI"}, parameters.modality)
        self._choose()
        text = ", ".join(session.models.get(parameters.department, {}))
        if session.ours:
            text = _("Each phrase goes to the department that knows it.")
        if parameters.department in session.experts:
            expert = session.experts[parameters.department]
            structures = ", ".join(expert["structures"]) or expert["problem"]
            text = _("Revision {revision}: {structures}").format(**expert | {"structures": structures})
        self.ui.departmentLabel.setText(text)
        other = _("This server takes no text: it is no LoRKD server. Choose one of its models above.")
        self.offer(self.ui.promptEdit, "" if session.ours else other)
        self._completion.set_names(names(session.vocabulary, parameters.department))


class Completion:
    """Offers names that the server knows below the cursor while a phrase is typed."""

    def __init__(self, edit: Any) -> None:
        self._edit = edit
        self._completer = qt.QCompleter()
        self._completer.setWidget(edit)
        self._completer.setCaseSensitivity(qt.Qt.CaseInsensitive)
        self._completer.setFilterMode(qt.Qt.MatchContains)
        self._completer.connect("activated(QString)", self.insert)
        edit.connect("textChanged()", self.offer)

    def set_names(self, names: list[str]) -> None:
        """Set what is offered."""
        self._completer.setModel(qt.QStringListModel(names, self._completer))

    def offer(self) -> None:
        """Offer what fits the phrase at the cursor."""
        _start, phrase = typed_phrase(self._edit.plainText, self._edit.textCursor().position())
        self._completer.setCompletionPrefix(phrase)
        if len(phrase) > 1 and self._edit.hasFocus() and self._completer.currentCompletion() not in ("", phrase):
            area = self._edit.cursorRect()
            area.setWidth(self._edit.width // 2)
            self._completer.complete(area)
        else:
            self._completer.popup().hide()

    def insert(self, name: str) -> None:
        """Put a name in place of the phrase at the cursor."""
        cursor = self._edit.textCursor()
        start, phrase = typed_phrase(self._edit.plainText, cursor.position())
        cursor.setPosition(start)
        cursor.setPosition(start + len(phrase), qt.QTextCursor.KeepAnchor)
        cursor.insertText(name)
        self._edit.setTextCursor(cursor)
