"""The sections Annotate and Train: labels for the server to learn from, what came of it, and the way back."""

import json
import tempfile
from pathlib import Path
from typing import Any

import slicer
from slicer.i18n import tr as _

from LoRKDLib.multipart import composed, suffix
from LoRKDLib.segments import label_array
from LoRKDLib.session import Section, Session, Work, client_id, fill
from LoRKDLib.tasks import Failure
from LoRKDLib.typed import AUTO
from LoRKDLib.volumes import IMAGE, read_volume, write_volume

POLL_MS = 1000
OVER = ("done", "failed", "stopped")


class AnnotateSection(Section):
    """Gets cases and submits segmentations."""

    def __init__(self, ui: Any, session: Session) -> None:
        super().__init__(ui, session, ui.caseLabel)
        self.wire(ui.nextButton, self._next, ui.caseLabel)
        self.wire(ui.submitButton, self._submit, ui.submitLabel)

    async def _next(self) -> None:
        """Load the case that the server wants annotated next."""
        client, department = self.session.client, self.session.parameters.department
        self.say(_("Asking for a case …"))
        asked = {"client_id": client_id()}
        if self.session.ours and department != AUTO:
            asked["department"] = department
        told = await client.json("post", f"/activelearning/{self.ui.strategyCombo.currentText}", asked)
        image = told.get("id")
        if not image:
            raise Failure(_("Every image has a label, or somebody who works on it."))
        self.say(_("Loading {image} …").format(image=image))
        call = client.call("get", "/datastore/image", seconds=0, image=image)
        content = await call
        with tempfile.TemporaryDirectory(prefix="lorkd-", dir=slicer.app.temporaryPath) as folder:
            path = Path(folder, f"image{suffix(call.disposition) or '.nii.gz'}")
            path.write_bytes(content)
            volume = read_volume(path, image)
        volume.SetAttribute(IMAGE.format(address=client.address), image)
        slicer.util.setSliceViewerLayers(background=volume, fit=True)
        self.session.parameters.volume, self.session.parameters.segmentation = volume, None
        self.say(f"{image}. {(told.get('lorkd') or {}).get('reason', '')}".strip())

    async def _submit(self) -> None:
        """Send the segmentation as the final label of its image; an image that the server lacks is sent first."""
        client, volume = self.session.client, self.session.parameters.volume
        image = volume.GetAttribute(IMAGE.format(address=client.address))
        if not image:
            self.session.consent()
        array, names = label_array(self.session.parameters.segmentation, volume)
        about: dict[str, Any] = {"client_id": client_id()}
        if all(len(values) == 1 for values in names.values()):
            about["label_info"] = [{"name": name, "idx": value} for name, (value,) in names.items()]
        elif self.session.ours:
            about["params"] = {"label_names": names}
        else:
            raise Failure(_("Segments overlap, and this server keeps no overlaps; remove them first."))
        self.say(_("Sending …"))
        with tempfile.TemporaryDirectory(prefix="lorkd-", dir=slicer.app.temporaryPath) as folder:
            path = Path(folder, "label.nrrd")
            if not image:
                await write_volume(volume, path)
                form = composed({}, file=(f"{volume.GetName()}.nrrd", path.read_bytes()))
                image = json.loads(await client.call("put", "/datastore/image", *form, seconds=0))["image"]
                volume.SetAttribute(IMAGE.format(address=client.address), image)
            await write_volume(volume, path, array)
            form = composed(about, label=(path.name, path.read_bytes()))
        await client.call("put", "/datastore/label", *form, seconds=0, image=image, tag="final")
        self.say(_("Submitted for {image}: {names}.").format(image=image, names=", ".join(sorted(names))))
        await self.session.refresh()

    def update(self) -> None:
        """Show strategies and what can be done now."""
        ui, session = self.ui, self.session
        strategies = {name: name for name in session.info.get("strategies") or {}}
        fill(ui.strategyCombo, strategies, ui.strategyCombo.currentData or "uncertainty_diversity")
        working = _("Wait for what is under way.") if self.task else ""
        self.offer(ui.nextButton, working or session.missing("server"))
        self.offer(ui.submitButton, working or session.missing("server", "volume", "segmentation"))


class TrainSection(Section):
    """Starts, watches and stops trainings, and rolls experts back."""

    def __init__(self, ui: Any, session: Session) -> None:
        super().__init__(ui, session, ui.trainLabel)
        self._run = ""
        self._seen: dict[str, Any] = {}
        self._history: dict[str, Any] = {}
        self._cases: dict[str, dict[str, Any]] = {}
        ui.trainButton.connect("clicked()", self._toggle)
        self.wire(ui.publishButton, self._publish, ui.trainLabel)
        self.wire(ui.rollbackButton, lambda: self._serve("rollback", ui.revisionCombo.currentData), ui.trainLabel)
        ui.trainCombo.connect("currentIndexChanged(int)", lambda _index: self.start(self._look()))
        ui.revisionCombo.connect("currentIndexChanged(int)", session.changed)

    @property
    def _department(self) -> str:
        return str(self.ui.trainCombo.currentData or "")

    def _toggle(self) -> None:
        """Train, or stop the training that runs."""
        if self._run:
            self.session.client.call("delete", f"/lorkd/training/{self._run}")
        else:
            self.start(self._train())

    async def _train(self) -> None:
        client = self.session.client
        self.say(_("Starting …"))
        told = await client.json("post", "/lorkd/training", {"department": self._department})
        try:
            while told["state"] not in OVER:
                self._run = told["id"]
                self.say(_progress(told))
                self.ui.trainBar.setRange(0, told["steps"])
                self.ui.trainBar.setValue(told["step"])
                self.session.changed()
                told = await client.poll(f"/lorkd/training/{self._run}", POLL_MS, self.say, lines="0")
        finally:
            self._run = ""
        self.say(_outcome(told))
        await self.session.refresh()

    def _publish(self) -> Work:
        return self._serve(f"candidates/{self._history['candidates'][0]['id']}/publish")

    async def _serve(self, path: str, revision: int | None = None) -> None:
        order = {"revision": revision} if revision else {}
        told = await self.session.client.json("post", f"/lorkd/experts/{self._department}/{path}", order)
        self.say(_("Revision {served} of {department} is served now.").format(**told))
        await self.session.refresh()

    async def _look(self) -> None:
        """Ask for the revisions of the department, and for the labels of all, which not each server tells."""
        client, self._seen = self.session.client, self.session.info
        self._history = await client.json("get", f"/lorkd/experts/{self._department}")
        try:
            told = await client.json("get", "/lorkd/training/departments")
        except Failure:
            told = []
        self._cases = {each["department"]: each for each in told}
        self.ui.revisionCombo.clear()  # the one in use is chosen anew

    def update(self) -> None:
        """Show whose experts can be trained on how many labels, their revisions, and what can be done now."""
        ui, session, history, running = self.ui, self.session, self._history, bool(self._run)
        rows = {key: each["name"].capitalize() for key, each in session.experts.items() if session.vocabulary}
        for key in rows.keys() & self._cases.keys():
            rows[key] = _("{name}, labels: {labels}").format(name=rows[key], **self._cases[key])
        fill(ui.trainCombo, rows, self._department)
        if rows and self.task is None and session.info is not self._seen:  # the server was asked what it is now
            self.start(self._look())
            return
        known = history["revisions"] if rows and history.get("department") == self._department else []
        revisions = {each["revision"]: _revision(each, history["served"]) for each in known}
        fill(ui.revisionCombo, revisions, ui.revisionCombo.currentData or history.get("served"))
        about = self._cases.get(self._department, {"trainable": True, "structures": {}})
        ui.trainCombo.setToolTip(", ".join(f"{name}: {count}" for name, count in about["structures"].items()))
        other = ui.revisionCombo.currentData not in (None, history.get("served"))
        busy = session.missing("server", "training") or (self.task and _("Wait for what is under way.")) or ""
        self.offer(ui.trainButton, "" if running else busy or ("" if about["trainable"] else about["reason"]))
        self.offer(ui.publishButton, busy or ("" if history.get("candidates") else _("There is no candidate.")))
        self.offer(ui.rollbackButton, busy or ("" if other else _("Choose a revision that is not in use.")))
        ui.trainButton.setText(_("Stop") if running else _("Train"))
        ui.trainBar.setVisible(running)
        ui.trainCombo.setEnabled(self.task is None)


def _revision(about: dict[str, Any], served: int) -> str:
    dice = _(", Dice {dice:.3f}").format(**about) if about["dice"] is not None else ""
    return f"{about['revision']}{dice}{_(', served') if about['revision'] == served else ''}"


def _progress(told: dict[str, Any]) -> str:
    if told["state"] == "queued":
        return _("Waiting, place {position} in the queue.").format(**told)
    if told["state"] == "stopping":
        return _("Stopping; what was learned is saved …")
    text = _("{stage}: {step} of {steps}").format(**told)
    if told["loss"] is not None:
        text += _(", loss {loss:.3f}").format(**told)
    if told["seconds_left"] is not None:
        minutes, seconds = divmod(int(told["seconds_left"]), 60)
        text += _(", {minutes}:{seconds:02d} left").format(minutes=minutes, seconds=seconds)
    return text


def _outcome(told: dict[str, Any]) -> str:
    outcome = told["result"].get(told["department"], {})
    if told["state"] != "done" or not outcome:
        return told["message"] or _("The training ended.")
    if outcome["published"]:
        return _("Published as revision {revision}. {message}").format(**outcome)
    return _("Kept as a candidate, not published. {message}").format(**outcome)
