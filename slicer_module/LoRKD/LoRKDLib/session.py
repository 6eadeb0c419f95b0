"""What the sections of the panel share: the server, the parameter node, the user's preferences, and their manners."""

import uuid
from collections.abc import Callable, Coroutine
from typing import Any

import qt
import slicer
from slicer.i18n import tr as _

from LoRKDLib.client import Client
from LoRKDLib.tasks import Awaited, Failure, Task
from LoRKDLib.typed import phrases

Work = Coroutine[Awaited, Any, None]


class Session:
    """Shared state; whoever changes it calls ``changed``, and all sections show it.

    Attributes:
        client: of the server; None without one.
        info: what the server says at MONAI Label's ``/info/``; empty without one.
        vocabulary: what it says at our route; empty where it does not have that.
        parameters: of the scene; None while there are none.
    """

    def __init__(self) -> None:
        self.client: Client | None = None
        self.info: dict[str, Any] = {}
        self.vocabulary: dict[str, Any] = {}
        self.parameters: Any = None
        self.sections: list[Any] = []
        self.manager = qt.QNetworkAccessManager(slicer.app)
        self._consented: set[str] = set()

    @property
    def ours(self) -> dict[str, Any]:
        """Give our part of the server's information; empty on other servers, which know no text."""
        return self.info.get("lorkd") or {}

    @property
    def experts(self) -> dict[str, dict[str, Any]]:
        """Give id -> what the server says of a department, for those that have an expert."""
        return {each["id"]: each for each in self.ours.get("departments", []) if each["expert"]}

    @property
    def models(self) -> dict[str, dict[str, int]]:
        """Give name -> label -> value of the models that segment; labels in a list count from the background's 0."""
        found = {}
        for name, model in self.info.get("models", {}).items():
            labels = model.get("labels") or {}
            if isinstance(labels, list):
                labels = {label: value for value, label in enumerate(labels, "background" not in labels)}
            if model.get("type") == "segmentation":
                found[name] = {str(label): int(value) for label, value in labels.items() if int(value)}
        return found

    def changed(self, *_event: Any) -> None:
        """Let all sections show what is so now."""
        for section in self.sections if self.parameters else []:
            section.update()

    async def refresh(self) -> None:
        """Ask the server what it is now, for instance after a training."""
        info = await self.client.json("get", "/info/")
        if not isinstance(info, dict) or "models" not in info:
            text = _("{address} is no MONAI Label server. Correct the address.")
            raise Failure(text.format(address=self.client.address))
        try:
            self.vocabulary = await self.client.json("get", "/lorkd/vocabulary")
        except Failure as failure:  # not each server has our routes
            if not failure.status:
                raise
            self.vocabulary = {}
        self.info = info
        self.changed()

    def disconnect(self) -> None:
        """Forget the server, and end what was asked of it."""
        for section in self.sections:
            section.stop()
        self.client, self.info, self.vocabulary = None, {}, {}
        self.changed()

    def missing(self, *needs: str) -> str:
        """Say the first thing that is missing of what is needed; empty if all is there."""
        parameters, volume = self.parameters, self.parameters.volume
        there = {
            "server": (self.info, _("Connect to a server first.")),
            "training": (self.vocabulary, _("This server trains no experts; `lorkd serve` starts one that does.")),
            "volume": (volume and volume.GetImageData(), _("Select a volume.")),
            "phrases": (phrases(parameters.text), _("Type what to segment.")),
            "model": (parameters.department in self.models, _("Choose a model.")),
            "segmentation": (parameters.segmentation, _("Segment something first.")),
        }
        return next((text for found, text in map(there.__getitem__, needs) if not found), "")

    def consent(self) -> None:
        """Ask the user whether volumes may be sent to the server, once before the first; if not, that is a Failure."""
        text = _(
            "The volume is going to be sent to {address}. Make sure that you may send it there: "
            "its voxels, and no name of a patient, leave this computer."
        ).format(address=self.client.address)
        key = f"LoRKD/consent/{self.client.address.replace('/', '_')}"
        if key not in self._consented and not slicer.util.confirmOkCancelDisplay(
            text, _("Send the volume?"), dontShowAgainSettingsKey=key
        ):
            raise Failure(_("Nothing was sent."))
        self._consented.add(key)


class Section:
    """A section of the panel: does one thing at a time, and says in a label what comes of it."""

    def __init__(self, ui: Any, session: Session, label: Any) -> None:
        self.ui, self.session, self.say = ui, session, label.setText
        self.task: Task | None = None
        self._tips: dict[str, str] = {}
        session.sections.append(self)

    def start(self, work: Work) -> None:
        """Begin something, in place of what is under way."""
        self.stop()
        self.task = Task(work, self._over)
        self.task.go()
        self.session.changed()

    def stop(self, text: str = "") -> None:
        """End what is under way, and say why."""
        if self.task is not None:
            self.task.cancel()
            self._over(text)

    def _over(self, text: str) -> None:
        self.task = None
        if text:
            self.say(text)
        self.session.changed()

    def wire(self, button: Any, work: Callable[[], Work], label: Any) -> None:
        """Let a button start something that a label tells of."""

        def clicked() -> None:
            self.say = label.setText
            self.start(work())

        button.connect("clicked()", clicked)

    def offer(self, widget: Any, missing: str) -> None:
        """Let a widget be used, or say in its tool tip what is missing for that."""
        tip = self._tips.setdefault(widget.name, widget.toolTip)
        widget.setEnabled(not missing)
        widget.setToolTip(missing or tip)


def fill(combo: Any, rows: dict[Any, str], chosen: Any) -> None:
    """Show the texts of keys in a combo box, and choose a key or else the first."""
    old = {combo.itemData(index): combo.itemText(index) for index in range(combo.count)}
    blocked = combo.blockSignals(True)
    if old != rows:
        combo.clear()
        for key, text in rows.items():
            combo.addItem(text, key)
    if rows:
        combo.setCurrentIndex(max(0, combo.findData(chosen)))
    combo.blockSignals(blocked)


def remember(name: str, value: str) -> None:
    """Keep a preference of this user; never a token."""
    qt.QSettings().setValue(f"LoRKD/{name}", value)


def remembered(name: str) -> str:
    """Give a preference of this user; empty where there is none."""
    return str(slicer.util.settingsValue(f"LoRKD/{name}", "") or "")


def client_id() -> str:
    """Give the name by which servers know this user; a random one until it is changed."""
    if not remembered("client"):
        remember("client", f"slicer-{uuid.uuid4().hex[:8]}")
    return remembered("client")
