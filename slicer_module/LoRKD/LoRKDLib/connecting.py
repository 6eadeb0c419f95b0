"""The section Server: which one, and what it is; and the name by which it knows the user."""

from typing import Any

from slicer.i18n import tr as _

from LoRKDLib.client import Client
from LoRKDLib.session import Section, Session, client_id, fill, remember, remembered
from LoRKDLib.tasks import Failure
from LoRKDLib.typed import server_url

MOST_ADDRESSES = 10


class ConnectSection(Section):
    """Connects to a server and says what it offers."""

    def __init__(self, ui: Any, session: Session) -> None:
        super().__init__(ui, session, ui.serverLabel)
        self._remember("")
        ui.serverCombo.lineEdit().setPlaceholderText("http://127.0.0.1:8000")
        ui.serverCombo.lineEdit().connect("returnPressed()", ui.connectButton.click)
        ui.connectButton.connect("clicked()", self._connect)
        ui.clientEdit.setText(client_id())
        ui.clientEdit.connect("editingFinished()", self._rename)

    def _connect(self) -> None:
        self.session.disconnect()
        self.say(_("Connecting …"))
        self.start(self._ask(self.ui.serverCombo.currentText))

    async def _ask(self, typed: str) -> None:
        try:
            address = server_url(typed)
        except ValueError as error:
            text = _("{text} is no address. Enter one such as http://127.0.0.1:8000.")
            raise Failure(text.format(text=error)) from error
        self.session.client = Client(address, self.ui.tokenEdit.text.strip(), self.session.manager)
        await self.session.refresh()
        self._remember(address)

    def _remember(self, address: str) -> None:
        """Keep an address as the last that was used, and offer all."""
        known = [each for each in (address, *remembered("servers").split("\n")) if each]
        known = list(dict.fromkeys(known))[:MOST_ADDRESSES]
        remember("servers", "\n".join(known))
        fill(self.ui.serverCombo, {each: each for each in known}, address)

    def _rename(self) -> None:
        remember("client", self.ui.clientEdit.text.strip())
        self.ui.clientEdit.setText(client_id())

    def update(self) -> None:
        """Say what the server is."""
        session = self.session
        if session.ours:
            experts = ", ".join(each["name"] for each in session.experts.values()) or _("none")
            self.say(_("LoRKD {version} on {device}, experts: {experts}.").format(experts=experts, **session.ours))
        elif session.info:
            text = _("{name}: a MONAI Label server with {count} segmentation models.")
            self.say(text.format(name=session.info.get("name") or "MONAI Label", count=len(session.models)))
