"""One inference, from the volume in the scene to the answer: nothing blocks, and each step can be cancelled."""

import json
import shutil
import tempfile
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import qt
import slicer
from slicer.i18n import tr as _

from LoRKDLib.client import Answer, Call, Client, Failure
from LoRKDLib.multipart import Part, composed, parsed
from LoRKDLib.volumes import Packing, content_key, write_volume

POLL_MS = 300
MOST_SILENT = 3
"""Questions for progress that may stay without an answer one after the other."""
GONE = 404
SENT: dict[tuple[Any, ...], str] = {}
"""Server and content of a volume -> its hash there, as long as Slicer runs."""


class Order(NamedTuple):
    """What to segment.

    Attributes:
        volume: node of the scene.
        model: of the server.
        params: of the request.
        keeps: whether the server keeps volumes and tells of jobs.
        image: id of the volume where the server has it among its studies; else empty.
        extension: of the file that is wanted.
    """

    volume: Any
    model: str
    params: dict[str, str]
    keeps: bool
    image: str
    extension: str


class Listener(NamedTuple):
    """Who is told what.

    Attributes:
        stage: words, and the share that is done or None where that is not known.
        done: the JSON of the answer and the file with the segments; it is removed afterwards.
        failed: a sentence.
    """

    stage: Callable[[str, float | None], None]
    done: Callable[[dict[str, Any], Path], None]
    failed: Callable[[str], None]


class Run:
    """A run under way.

    Args:
        client: of the server.
        order: what to segment.
        listener: told of all that happens; after ``cancel`` of nothing.
    """

    def __init__(self, client: Client, order: Order, listener: Listener) -> None:
        self.job = str(uuid.uuid4())
        self.volume_id = order.volume.GetID()
        self.over = False
        self._client, self._order, self._listener = client, order, listener
        self._folder = Path(tempfile.mkdtemp(prefix="lorkd-", dir=slicer.app.temporaryPath))
        self._work: list[Call | Packing] = []
        self._silent = 0
        self._asked: Call | None = None
        self._key = (client.address, *content_key(order.volume))
        self._poll = qt.QTimer()
        self._poll.connect("timeout()", self._ask_progress)

    def start(self) -> None:
        """Begin; the volume is only read now."""
        if self._order.image:
            self._infer({}, {"image": self._order.image})
        elif not self._order.keeps:
            self._send_whole()
        elif self._key in SENT:
            self._ask(SENT[self._key])
        else:
            self._prepare()

    def cancel(self) -> None:
        """Stop here and on the server."""
        if not self.over:
            if self._order.keeps:
                self._client.delete(f"/lorkd/jobs/{self.job}", _ignore, _ignore)
            self._end()

    def _path(self) -> Path:
        return self._folder / "volume.nrrd"

    def _prepare(self) -> None:
        self._listener.stage(_("Reading the volume"), None)
        self._work.append(Packing(self._order.volume, self._path(), self._ask))

    def _ask(self, sha256: str) -> None:
        SENT[self._key] = sha256
        self._listener.stage(_("Asking the server for the volume"), None)

        def missing(failure: Failure) -> None:
            if failure.status != GONE:
                self._fail(failure)
            elif self._path().exists():
                self._upload(sha256)
            else:  # it was there and has expired
                del SENT[self._key]
                self._prepare()

        known = lambda _answer: self._infer({"volume": sha256}, {})  # noqa: E731
        self._work.append(self._client.get(f"/lorkd/volumes/{sha256}", known, missing))

    def _upload(self, sha256: str) -> None:
        call = self._client.put_file(
            "/lorkd/volumes",
            str(self._path()),
            lambda answer: self._infer({"volume": answer.json().get("sha256", sha256)}, {}),
            self._fail,
            extension=".nrrd",
        )
        call.watch(self._sending)
        self._work.append(call)

    def _sending(self, done: int, total: int) -> None:
        if not self.over and total > 0:
            self._listener.stage(_("Sending the volume"), done / total)

    def _send_whole(self) -> None:
        write_volume(self._order.volume, self._path())
        part = Part("volume.nrrd", self._path().read_bytes())
        self._infer({}, {}, {"file": part})

    def _infer(self, params: dict[str, str], query: dict[str, str], files: dict[str, Part] | None = None) -> None:
        self._path().unlink(missing_ok=True)
        asked = {**self._order.params, **params, "result_extension": self._order.extension}
        if self._order.keeps:
            asked["job"] = self.job
            self._poll.start(POLL_MS)
        self._listener.stage(_("Waiting for the server"), None)
        form = composed({"params": json.dumps(asked)}, files or {})
        path = f"/infer/{self._order.model}"
        call = self._client.form(path, form, self._answered, self._fail, output="all", **query)
        if files:
            call.watch(self._sending)
        self._work.append(call)

    def _ask_progress(self) -> None:
        if self._asked is None:
            self._asked = self._client.get(f"/lorkd/jobs/{self.job}", self._progress, self._no_progress, seconds=5)

    def _progress(self, answer: Answer) -> None:
        self._asked, self._silent = None, 0
        if self.over:
            return
        told = answer.json()
        if told.get("state") == "queued":
            self._listener.stage(_("Waiting, place {place} in the queue").format(place=told.get("position", 0)), None)
        elif told.get("state") == "running":
            done, total = int(told.get("done") or 0), int(told.get("total") or 0)
            text = _("Segmenting: {stage}").format(stage=str(told.get("stage", "")).replace("_", " "))
            self._listener.stage(f"{text} {done}/{total}" if total else text, done / total if total else None)

    def _no_progress(self, failure: Failure) -> None:
        self._asked = None
        self._silent = 0 if failure.status else self._silent + 1
        if self._silent >= MOST_SILENT:
            self._fail(failure)

    def _answered(self, answer: Answer) -> None:
        try:
            told, file = parsed(answer.content_type, answer.body)
        except ValueError:
            self._fail(Failure(0, _("The answer of the server is cut off or damaged. Try again.")))
            return
        if file is None:
            self._fail(Failure(0, _("The server sent no segments. Its model may be none that segments.")))
            return
        suffix = ".seg.nrrd" if file.name.endswith(".seg.nrrd") else "".join(Path(file.name).suffixes[-2:])
        path = self._folder / f"result{suffix}"
        path.write_bytes(file.content)
        self._stop()
        try:
            self._listener.done(told, path)
        finally:
            self._end()

    def _fail(self, failure: Failure) -> None:
        if not self.over:
            self._end()
            self._listener.failed(failure.text)

    def _stop(self) -> None:
        self.over = True
        self._poll.stop()
        for work in [*self._work, *([self._asked] if self._asked else [])]:
            work.abort()
        self._work, self._asked = [], None

    def _end(self) -> None:
        self._stop()
        shutil.rmtree(self._folder, ignore_errors=True)


def _ignore(_: Any) -> None:
    """Nobody waits for the answer."""
