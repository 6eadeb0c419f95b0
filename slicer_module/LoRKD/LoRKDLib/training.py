"""The section Train: an expert learns from what was submitted; what came of it, and the way back."""

from typing import Any

import qt
from slicer.i18n import tr as _

from LoRKDLib.client import Answer, Failure
from LoRKDLib.session import Session

POLL_MS = 1000
OVER = ("done", "failed", "stopped")


class TrainSection:
    """Starts, watches and stops trainings, and rolls experts back."""

    def __init__(self, ui: Any, session: Session) -> None:
        self.ui, self.session = ui, session
        self.run = ""
        self._filled: Any = None
        self._candidate = ""
        self._poll = qt.QTimer()
        self._poll.connect("timeout()", self._ask)
        ui.trainButton.connect("clicked()", self.toggle)
        ui.publishButton.connect("clicked()", self.publish)
        ui.rollbackButton.connect("clicked()", self.roll_back)
        ui.trainCombo.connect("currentIndexChanged(int)", lambda _index: self._list_revisions())
        session.listeners.append(self.update)

    @property
    def department(self) -> str:
        """Whose expert is meant; empty for none."""
        return str(self.ui.trainCombo.currentData or "")

    def toggle(self) -> None:
        """Train, or stop the training that runs."""
        if self.run:
            self.ui.trainLabel.setText(_("Stopping; what was learned is saved …"))
            self.session.client.delete(f"/lorkd/training/{self.run}", self._told, self._failed)
        else:
            self._candidate = ""
            self.ui.trainLabel.setText(_("Starting …"))
            order = {"department": self.department}
            self.session.client.post("/lorkd/training", order, self._started, self._failed)

    def _started(self, answer: Answer) -> None:
        self.run = str(answer.json().get("id") or "")
        self._poll.start(POLL_MS)
        self._told(answer)

    def _ask(self) -> None:
        if self.session.client is not None and self.run:
            self.session.client.get(f"/lorkd/training/{self.run}", self._told, self._failed, lines="0")

    def _told(self, answer: Answer) -> None:
        told = answer.json()
        if told.get("id") != self.run:
            return
        if told["state"] in OVER:
            self.stop_watching()
            outcome = (told.get("result") or {}).get(told["department"]) or {}
            self._candidate = outcome.get("candidate") or ""
            self.ui.trainLabel.setText(_outcome(told, outcome))
            self.session.refresh()
            self._list_revisions()
        else:
            self.ui.trainLabel.setText(_progress(told))
            self.ui.trainBar.setRange(0, told["steps"])
            self.ui.trainBar.setValue(told["step"])
        self._show()

    def _failed(self, failure: Failure) -> None:
        self.ui.trainLabel.setText(failure.text)
        if failure.status:
            self.stop_watching()
        self._show()

    def stop_watching(self) -> None:
        """Ask no more; the training goes on."""
        self._poll.stop()
        self.run = ""

    def publish(self) -> None:
        """Publish the candidate that the last training left."""
        path = f"/lorkd/experts/{self.department}/candidates/{self._candidate}/publish"
        self._candidate = ""
        self.session.client.post(path, {}, self._served, self._failed)

    def roll_back(self) -> None:
        """Publish the chosen revision anew."""
        order = {"revision": self.ui.revisionCombo.currentData}
        self.session.client.post(f"/lorkd/experts/{self.department}/rollback", order, self._served, self._failed)

    def _served(self, answer: Answer) -> None:
        told = answer.json()
        text = _("Revision {served} of {department} is served now.")
        self.ui.trainLabel.setText(text.format(served=told.get("served"), department=told.get("department")))
        self.session.refresh()
        self._list_revisions()

    def _list_revisions(self) -> None:
        if self.session.client is not None and self.department:
            self.session.client.get(f"/lorkd/experts/{self.department}", self._revisions, self._failed)

    def _revisions(self, answer: Answer) -> None:
        told, combo = answer.json(), self.ui.revisionCombo
        if told.get("department") != self.department:
            return
        combo.clear()
        for each in told["revisions"]:
            dice = _(", Dice {dice:.3f}").format(dice=each["dice"]) if each["dice"] is not None else ""
            served = _(", served") if each["revision"] == told["served"] else ""
            combo.addItem(f"{each['revision']}{dice}{served}", each["revision"])
        self._show()

    def update(self) -> None:
        """Show whose experts can be trained."""
        server = self.session.server
        known = [each for each in server.ours.get("departments", []) if each["expert"]] if server else []
        if server is None:
            self.stop_watching()
        rows = [(each["name"].capitalize(), each["id"]) for each in known] if server and server.routes else []
        if rows != self._filled:
            self._filled = rows
            self.ui.trainCombo.clear()
            self.ui.revisionCombo.clear()
            for text, key in rows:
                self.ui.trainCombo.addItem(text, key)
        self._show()

    def _show(self) -> None:
        server, running, button = self.session.server, bool(self.run), self.ui.trainButton
        ready = server is not None and server.routes and bool(self.department)
        button.setText(_("Stop") if running else _("Train"))
        button.setEnabled(running or ready)
        button.setToolTip(
            _("Stop; what was learned is saved, and training again goes on from there.")
            if running
            else _("Retrain the department's expert on all submitted labels.")
            if ready
            else _("Connect to a server first.")
            if server is None
            else _("This server trains no experts: it is no LoRKD server with its front door.")
        )
        self.ui.trainBar.setVisible(running)
        self.ui.trainCombo.setEnabled(not running)
        self.ui.publishButton.setEnabled(ready and bool(self._candidate))
        self.ui.rollbackButton.setEnabled(ready and not running and self.ui.revisionCombo.count > 0)


def _progress(told: dict[str, Any]) -> str:
    if told["state"] == "queued":
        return _("Waiting, place {place} in the queue.").format(place=told["position"])
    text = _("{stage}: {step} of {steps}").format(**{key: told[key] for key in ("stage", "step", "steps")})
    if told["loss"] is not None:
        text += _(", loss {loss:.3f}").format(loss=told["loss"])
    if told["seconds_left"] is not None:
        minutes, seconds = divmod(int(told["seconds_left"]), 60)
        text += _(", {minutes}:{seconds:02d} left").format(minutes=minutes, seconds=seconds)
    return text


def _outcome(told: dict[str, Any], outcome: dict[str, Any]) -> str:
    if told["state"] != "done":
        return told["message"] or _("The training ended.")
    if outcome.get("published"):
        return _("Published as revision {revision}. {message}").format(**outcome)
    return _("Kept as a candidate, not published. {message}").format(message=outcome.get("message") or told["message"])
