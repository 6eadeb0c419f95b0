"""What the sections of the panel share: the server, the parameter node, one status line, and who is told of changes."""

import uuid
from collections.abc import Callable
from typing import Any, NamedTuple

import qt
import slicer
from slicer.i18n import tr as _

from LoRKDLib.client import Answer, Client, Failure

MOST_ADDRESSES = 10


class Server(NamedTuple):
    """What a server says of itself.

    Attributes:
        info: of MONAI Label's ``/info/``.
        vocabulary: of our route; empty on other servers.
    """

    info: dict[str, Any]
    vocabulary: dict[str, Any]

    @property
    def ours(self) -> dict[str, Any]:
        """Give our part of its information; empty on other servers, which know no text."""
        return self.info.get("lorkd") or {}

    @property
    def routes(self) -> bool:
        """Whether it keeps volumes, tells of jobs and trains by our routes."""
        return bool(self.vocabulary)

    def department(self, key: str) -> dict[str, Any]:
        """Give what it says of a department; empty for an unknown one."""
        return next((each for each in self.ours.get("departments", []) if each["id"] == key), {})

    def models(self) -> dict[str, dict[str, Any]]:
        """Give its models that segment."""
        models = self.info.get("models") or {}
        return {name: each for name, each in models.items() if each.get("type") == "segmentation"}


def label_values(model: dict[str, Any]) -> dict[str, int]:
    """Give name -> value of a model's labels; a list counts from 1, without the background, which has no value."""
    labels = model.get("labels") or {}
    if isinstance(labels, list):
        names = [name for name in labels if str(name).lower() != "background"]
        return {str(name): value for value, name in enumerate(names, start=1)}
    return {str(name): int(value) for name, value in labels.items() if int(value)}


class Session:
    """Shared state; ``listeners`` are called after each change, ``say`` is given what the status line shows."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.client: Client | None = None
        self.server: Server | None = None
        self.parameters: Any = None
        self.busy = False
        self.listeners: list[Callable[[], None]] = []
        self.say = say
        self._consented: set[str] = set()

    def changed(self) -> None:
        """Tell all sections."""
        for listener in self.listeners:
            listener()

    def failed(self, failure: Failure) -> None:
        """Show why a request failed."""
        self.say(failure.text)

    def connect(self, address: str, token: str, failed: Callable[[str], None]) -> None:
        """Ask a server what it is; what was known of the last one is forgotten at once."""
        self.disconnect()
        self.client = client = Client(address, token, slicer.app)

        def told(answer: Answer) -> None:
            info = answer.json()
            if not isinstance(info, dict) or "models" not in info:
                failed(_("{address} is no MONAI Label server. Correct the address.").format(address=address))
            elif "lorkd" in info:
                client.get(
                    "/lorkd/vocabulary", lambda words: known(info, words.json()), lambda _failure: known(info, {})
                )
            else:
                known(info, {})

        def known(info: dict[str, Any], vocabulary: dict[str, Any]) -> None:
            if client is self.client:
                self.server = Server(info, vocabulary)
                remember("servers", "\n".join([address, *(each for each in addresses() if each != address)]))
                self.changed()

        client.get("/info/", told, lambda failure: failed(failure.text))

    def refresh(self) -> None:
        """Ask the server again, for instance after a training; a failure leaves what is known."""
        client, server = self.client, self.server
        if client is None or server is None:
            return

        def told(answer: Answer) -> None:
            if client is self.client:
                self.server = Server(answer.json(), server.vocabulary)
                self.changed()

        client.get("/info/", told, self.failed)

    def disconnect(self) -> None:
        """Abort all requests and forget the server."""
        if self.client is not None:
            self.client.close()
        self.client = self.server = None
        self.changed()

    def consent(self) -> bool:
        """Whether images may be sent to the server: the user is asked once, before the first."""
        if self.client is None:
            return False
        address = self.client.address
        if address in self._consented:
            return True
        text = _(
            "The volume is going to be sent to {address}. Make sure that you may send it there: "
            "its voxels, and no name of a patient, leave this computer."
        ).format(address=address)
        key = f"LoRKD/consent/{address.replace('/', '_')}"
        if slicer.util.confirmOkCancelDisplay(text, _("Send the volume?"), dontShowAgainSettingsKey=key):
            self._consented.add(address)
            return True
        return False


def remember(name: str, value: str) -> None:
    """Keep a preference of this user; never a token."""
    qt.QSettings().setValue(f"LoRKD/{name}", value)


def remembered(name: str, default: str = "") -> str:
    """Give a preference of this user."""
    return str(slicer.util.settingsValue(f"LoRKD/{name}", default) or default)


def addresses() -> list[str]:
    """Give the servers that were used, the last first."""
    return [each for each in remembered("servers").split("\n") if each][:MOST_ADDRESSES]


def client_id() -> str:
    """Give the name by which servers know this user; a random one until it is changed."""
    known = remembered("client")
    if not known:
        known = f"slicer-{uuid.uuid4().hex[:8]}"
        remember("client", known)
    return known
