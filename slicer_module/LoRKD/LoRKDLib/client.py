"""A MONAI Label server by HTTP: Qt does it without threads, tells how far an upload is, and can be aborted."""

import json
from collections.abc import Callable
from typing import Any, NamedTuple
from urllib.parse import quote, urlencode

import qt

from LoRKDLib.errors import Problem, sentence

SECONDS = 20
"""That an answer may take which is no inference, upload or download."""


class Answer(NamedTuple):
    """A successful answer."""

    body: bytes
    content_type: str
    disposition: str

    def json(self) -> Any:
        """Give the body read as JSON, an empty object where it is none."""
        try:
            return json.loads(self.body)
        except ValueError:
            return {}


class Failure(NamedTuple):
    """An answer that is none: the status of HTTP, 0 without one, and a sentence for the user."""

    status: int
    text: str


Done = Callable[[Answer], None]
Failed = Callable[[Failure], None]


class Call:
    """A request under way; ``abort`` ends it without a word to anybody."""

    def __init__(
        self, client: "Client", reply: Any, done: Done, failed: Failed, *, seconds: float, source: Any
    ) -> None:
        self._client, self._reply, self._done, self._failed = client, reply, done, failed
        self._source = source  # a file that is sent must live as long as its request
        self._timer = qt.QTimer()
        self._late = False
        reply.connect("finished()", self._finished)
        if seconds:
            self._timer.setSingleShot(True)
            self._timer.connect("timeout()", self._timed_out)
            self._timer.start(int(seconds * 1000))

    def watch(self, progress: Callable[[int, int], None]) -> None:
        """Tell how many bytes have been sent, of how many."""
        self._reply.connect("uploadProgress(qint64,qint64)", progress)

    def abort(self) -> None:
        """End it now; neither callback is called."""
        self._done = self._failed = _nothing
        if self._reply is not None:
            self._reply.abort()

    def _timed_out(self) -> None:
        self._late = True
        if self._reply is not None:
            self._reply.abort()

    def _finished(self) -> None:
        reply, self._reply = self._reply, None
        if reply is None:
            return
        self._timer.stop()
        self._client.calls.discard(self)
        status = int(reply.attribute(qt.QNetworkRequest.HttpStatusCodeAttribute) or 0)
        error, body = reply.error(), bytes(reply.readAll().data())
        if self._source is not None:
            self._source.close()
        reply.deleteLater()
        if error == qt.QNetworkReply.NoError and 200 <= status < 300:
            kind, name = qt.QNetworkRequest.ContentTypeHeader, qt.QNetworkRequest.ContentDispositionHeader
            self._done(Answer(body, str(reply.header(kind) or ""), str(reply.header(name) or "")))
            return
        broken = status < 300
        problem = Problem(
            self._client.address,
            status=0 if broken else status,
            kind="timeout" if self._late else _kinds().get(error, "") if broken else "",
            body=b"" if broken else body,
            detail=str(reply.errorString()),
        )
        self._failed(Failure(problem.status, sentence(problem)))


class Client:
    """One server.

    Args:
        address: without a slash at its end.
        token: that goes with every request; empty for none. It is kept in memory only.
        parent: Qt object that owns the connections.
    """

    def __init__(self, address: str, token: str, parent: Any) -> None:
        self.address = address
        self.calls: set[Call] = set()
        self._token = token
        self._manager = qt.QNetworkAccessManager(parent)

    def get(self, path: str, done: Done, failed: Failed, *, seconds: float = SECONDS, **query: str) -> Call:
        """GET a path."""
        return self._call(self._manager.get(self._request(path, query)), done, failed, seconds)

    def delete(self, path: str, done: Done, failed: Failed) -> Call:
        """DELETE a path."""
        return self._call(self._manager.deleteResource(self._request(path, {})), done, failed, SECONDS)

    def post(self, path: str, body: Any, done: Done, failed: Failed) -> Call:
        """POST an object as JSON."""
        request = self._request(path, {}, "application/json")
        return self._call(self._manager.post(request, json.dumps(body).encode()), done, failed, SECONDS)

    def form(self, path: str, form: tuple[str, bytes], done: Done, failed: Failed, **query: str) -> Call:
        """POST a form, however long the answer takes."""
        return self._call(self._manager.post(self._request(path, query, form[0]), form[1]), done, failed, 0)

    def put_form(self, path: str, form: tuple[str, bytes], done: Done, failed: Failed, **query: str) -> Call:
        """PUT a form, however long the answer takes."""
        return self._call(self._manager.put(self._request(path, query, form[0]), form[1]), done, failed, 0)

    def put_file(self, path: str, name: str, done: Done, failed: Failed, **query: str) -> Call:
        """PUT a file as it is, piece by piece.

        Raises:
            OSError: the file can't be read.
        """
        source = qt.QFile(name)
        if not source.open(qt.QIODevice.ReadOnly):
            raise OSError(name)
        request = self._request(path, query, "application/octet-stream")
        return self._call(self._manager.put(request, source), done, failed, 0, source)

    def close(self) -> None:
        """Abort what is under way; the object is not used afterwards."""
        for call in list(self.calls):
            call.abort()
        self._manager.deleteLater()

    def _request(self, path: str, query: dict[str, str], content_type: str = "") -> Any:
        url = self.address + quote(path) + (f"?{urlencode(query)}" if query else "")
        request = qt.QNetworkRequest(qt.QUrl(url))
        # a token must not follow to another address
        request.setAttribute(qt.QNetworkRequest.RedirectPolicyAttribute, qt.QNetworkRequest.ManualRedirectPolicy)
        if content_type:
            request.setRawHeader(b"Content-Type", content_type.encode())
        if self._token:
            request.setRawHeader(b"Authorization", f"Bearer {self._token}".encode())
        return request

    def _call(self, reply: Any, done: Done, failed: Failed, seconds: float, source: Any = None) -> Call:
        call = Call(self, reply, done, failed, seconds=seconds, source=source)
        self.calls.add(call)
        return call


def _kinds() -> dict[Any, str]:
    errors = qt.QNetworkReply
    return {
        errors.ConnectionRefusedError: "refused",
        errors.HostNotFoundError: "host",
        errors.TimeoutError: "timeout",
        errors.SslHandshakeFailedError: "tls",
        errors.RemoteHostClosedError: "closed",
    }


def _nothing(_: Any) -> None:
    """For a call that was aborted."""
