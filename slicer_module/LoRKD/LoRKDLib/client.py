"""A MONAI Label server by HTTP: Qt does it without threads, tells how far an upload is, and can be aborted."""

import json
from collections.abc import Callable
from typing import Any
from urllib.parse import quote, urlencode

import qt
from slicer.i18n import tr as _

from LoRKDLib.tasks import Awaited, Failure, pause

SECONDS = 20
"""That an answer may take which is no inference, upload or download."""


class Call(Awaited):
    """A request under way; awaiting it gives the body of the answer, or raises ``Failure``."""

    disposition = ""
    """Header of the answer that names the file in it."""

    def __init__(self, address: str, reply: Any, seconds: float, sending: Callable[[float], None] | None) -> None:
        super().__init__(self._stop)
        self._address, self._reply, self._late = address, reply, False
        self._timer = qt.QTimer()
        self._timer.connect("timeout()", self._time_out)
        if seconds:
            self._timer.start(int(seconds * 1000))
        if sending is not None:
            reply.connect("uploadProgress(qint64,qint64)", lambda done, total: total > 0 and sending(done / total))
        reply.connect("finished()", self._finish)

    def _stop(self) -> None:
        if self._reply is not None:
            self._reply.abort()

    def _time_out(self) -> None:
        self._late = True
        self._stop()

    def _finish(self) -> None:
        self._timer.stop()
        reply, self._reply = self._reply, None
        reply.deleteLater()
        if self.then is None:  # nobody waits
            return
        status = int(reply.attribute(qt.QNetworkRequest.HttpStatusCodeAttribute) or 0)
        error = qt.QNetworkReply.TimeoutError if self._late else reply.error()
        body = bytes(reply.readAll().data())
        if status >= 300:
            self.end(failure=Failure(refusal(self._address, status, body), status))
        elif error != qt.QNetworkReply.NoError:
            self.end(failure=Failure(silence(self._address, error, str(reply.errorString()))))
        else:
            self.disposition = str(reply.header(qt.QNetworkRequest.ContentDispositionHeader) or "")
            self.end(body)


class Client:
    """One server; a token goes with every request, and is kept in memory only."""

    def __init__(self, address: str, token: str, manager: Any) -> None:
        self.address, self._token, self._manager = address, token, manager

    def call(
        self,
        verb: str,
        path: str,
        body: Any = b"",
        content_type: str = "application/octet-stream",
        *,
        seconds: float = SECONDS,
        sending: Callable[[float], None] | None = None,
        **query: str,
    ) -> Call:
        """Send a request; the body is bytes or an open file of Qt, ``sending`` is told the share that has been sent.

        An answer may take any time if ``seconds`` is 0; the rest is the query of the address.
        """
        request = qt.QNetworkRequest(qt.QUrl(f"{self.address}{quote(path)}?{urlencode(query)}".rstrip("?")))
        # a token must not follow to another address
        request.setAttribute(qt.QNetworkRequest.RedirectPolicyAttribute, qt.QNetworkRequest.ManualRedirectPolicy)
        if self._token:
            request.setRawHeader(b"Authorization", f"Bearer {self._token}".encode())
        send = getattr(self._manager, {"delete": "deleteResource"}.get(verb, verb))
        if verb in ("post", "put"):
            request.setRawHeader(b"Content-Type", content_type.encode())
        reply = send(request, body) if verb in ("post", "put") else send(request)
        return Call(self.address, reply, seconds, sending)

    async def json(self, verb: str, path: str, told: Any = None, **options: Any) -> Any:
        """Send JSON, and give that of the answer, or nothing; the options are those of ``call``."""
        body = await self.call(verb, path, json.dumps(told).encode(), "application/json", **options)
        try:
            return json.loads(body)
        except ValueError:
            return {}

    async def poll(self, path: str, milliseconds: int, say: Callable[[str], None], **options: Any) -> Any:
        """Give the JSON of an answer after some time, however long the server keeps silent; that is said."""
        while True:
            await pause(milliseconds)
            try:
                return await self.json("get", path, **options)
            except Failure as failure:
                if failure.status:
                    raise
                say(str(failure))


def silence(address: str, error: Any, detail: str) -> str:
    """Say why no answer came, by Qt's error, and what to do about it."""
    kinds = qt.QNetworkReply
    texts = {
        kinds.ConnectionRefusedError: _("No server answers at {address}. Start it there, or correct the address."),
        kinds.HostNotFoundError: _("There is no machine of that name: {address}. Correct the address."),
        kinds.TimeoutError: _("The server at {address} does not answer in time. Try again, or ask its operator."),
        kinds.SslHandshakeFailedError: _(
            "The certificate of {address} is not trusted ({detail}). Nothing was sent; ask the operator."
        ),
        kinds.RemoteHostClosedError: _("The server at {address} broke off. See whether it runs, and connect again."),
    }
    text = texts.get(error, _("The server at {address} can't be reached: {detail}."))
    return text.format(address=address, detail=detail)


def refusal(address: str, status: int, body: bytes) -> str:
    """Say why a server refused a request, in its own sentence if there is one, and what to do about it."""
    texts = {
        401: _("The server wants a token, or does not know this one. Enter it under Server and connect again."),
        403: _("This token may not do that. Ask the operator for a role that may."),
        404: _("{address} does not have that."),
        409: _("Cancelled on the server."),
        413: _("That is more than the server takes. Crop the volume, or ask the operator."),
        429: _("The server is busy with as many requests as it takes. Try again in a while."),
        503: _("The server is not ready. Try again in a while."),
        3: _("{address} sends requests on to another address. Enter that one."),
        4: _("{address} refused the request ({status})."),
        5: _("{address} answered with an error ({status}). Its log says more; ask the operator."),
    }
    text = texts.get(status, texts[status // 100]).format(address=address, status=status)
    try:
        detail = json.loads(body)["detail"]
        if isinstance(detail, list):  # FastAPI's, of what is wrong with a request
            detail = "; ".join(each["msg"] for each in detail)
    except (ValueError, KeyError, TypeError):
        return text
    detail = str(detail).rstrip(".")
    return f"{detail}." if status == 400 else _("{text} The server says: {detail}.").format(text=text, detail=detail)
