"""The section Server: which one, and what it is."""

from typing import Any

from slicer.i18n import tr as _

from LoRKDLib.address import server_url
from LoRKDLib.session import Session, addresses


class ConnectionSection:
    """Connects to a server and says what it offers."""

    def __init__(self, ui: Any, session: Session) -> None:
        self.ui, self.session = ui, session
        ui.serverCombo.addItems(addresses())
        ui.serverCombo.lineEdit().setPlaceholderText("http://127.0.0.1:8000")
        ui.serverCombo.lineEdit().connect("returnPressed()", self.connect)
        ui.connectButton.connect("clicked()", self.connect)
        session.listeners.append(self.update)

    def connect(self) -> None:
        """Connect to what the address field names."""
        try:
            address = server_url(self.ui.serverCombo.currentText)
        except ValueError as error:
            self.failed(_("{text} is no address. Enter one such as http://127.0.0.1:8000.").format(text=error))
            return
        self.ui.serverCombo.setEditText(address)
        self.ui.serverLabel.setText(_("Connecting …"))
        self.session.connect(address, self.ui.tokenEdit.text.strip(), self.failed)
        self.ui.serverLabel.setText(_("Connecting …"))

    def failed(self, text: str) -> None:
        """Say why there is no connection."""
        self.session.disconnect()
        self.ui.serverLabel.setText(text)

    def update(self) -> None:
        """Show what the server is."""
        server = self.session.server
        if server is None:
            self.ui.serverLabel.setText(_("Not connected."))
            return
        combo, known = self.ui.serverCombo, addresses()
        if [combo.itemText(index) for index in range(combo.count)] != known:
            text = combo.currentText
            combo.clear()
            combo.addItems(known)
            combo.setEditText(text)
        if server.ours:
            experts = [each["name"] for each in server.ours["departments"] if each["expert"]]
            text = _("LoRKD {version} on {device}, experts: {experts}.").format(
                version=server.ours["version"], device=server.ours["device"], experts=", ".join(experts) or _("none")
            )
            if not server.routes:
                text += " " + _("It runs without its front door: no progress, no training from here.")
        else:
            text = _("{name}: a MONAI Label server with {count} segmentation models.").format(
                name=server.info.get("name") or "MONAI Label", count=len(server.models())
            )
        self.ui.serverLabel.setText(text)
