"""Work that nobody waits for: it runs while nothing else wants the device, and gives way at once."""

import atexit
import logging
import threading
import uuid
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable

from lorkd_monailabel.jobs import Job, Jobs
from lorkd_monailabel.sliding_window import Cancelled

CLIENT = "active learning"
PAUSE_SECONDS = 0.2
END_SECONDS = 5.0

Work = Callable[[Callable[[int, int], bool]], None]
"""One case; told a function that says whether to go on, to be asked all the time. Raises ``Cancelled`` when not."""

_LOG = logging.getLogger(__name__)


class Background:
    """One thread that does work of lowest priority, as jobs that all can see and cancel.

    It begins when no other job is queued or running. As soon as one is queued, the case under way is given up, to be
    begun anew later.

    Args:
        jobs: of the server.
        device: that the work needs.
        pause_seconds: between two looks at whether the device is free.
    """

    def __init__(self, jobs: Jobs, device: str, *, pause_seconds: float = PAUSE_SECONDS) -> None:
        self._jobs = jobs
        self._device = device
        self._pause_seconds = pause_seconds
        self._lock = threading.Lock()
        self._wanted: OrderedDict[str, deque[Work]] = OrderedDict()  # the first one is under way
        self._thread: threading.Thread | None = None
        self._stopped = threading.Event()

    def want(self, title: str, works: Iterable[Work]) -> None:
        """Do this some time, unless work of this title is under way or waits already."""
        with self._lock:
            todo = deque() if title in self._wanted or self._stopped.is_set() else deque(works)
            if not todo:
                return
            self._wanted[title] = todo
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=CLIENT, daemon=True)
                self._thread.start()
                atexit.register(self.stop)  # a thread that computes while Python ends would crash it

    def busy(self, title: str) -> bool:
        """Say whether work of this title is under way or waits."""
        with self._lock:
            return title in self._wanted

    def stop(self) -> None:
        """End at the next step, for ever."""
        self._stopped.set()
        atexit.unregister(self.stop)
        with self._lock:
            thread = self._thread
        if thread is not None:
            thread.join(END_SECONDS)

    def _run(self) -> None:
        try:
            while (following := self._next()) is not None:
                self._do(*following)
                with self._lock:
                    del self._wanted[following[0]]
        finally:  # whatever happened, the next wish gets a new thread
            with self._lock:
                if self._thread is threading.current_thread():
                    self._thread = None
                    self._wanted.clear()

    def _next(self) -> tuple[str, deque[Work]] | None:
        with self._lock:
            if self._wanted and not self._stopped.is_set():
                return next(iter(self._wanted.items()))
            self._thread = None  # under the same lock as a new wish
            return None

    def _do(self, title: str, todo: deque[Work]) -> None:
        """Do all that there is to do, in as many turns as it takes."""
        total = len(todo)
        while todo and not self._stopped.is_set():
            if self._others_want_it():
                self._stopped.wait(self._pause_seconds)
                continue
            try:
                with self._jobs.turn(str(uuid.uuid4()), client=CLIENT, title=title, device=self._device) as job:
                    self._use(job, todo, total)
            except Cancelled:
                _LOG.info("%s: cancelled with %d of %d cases left", title, len(todo), total)
                return

    def _use(self, job: Job, todo: deque[Work], total: int) -> None:
        """Work until nothing is left, somebody else wants the device, or it is cancelled."""

        def go_on(done: int, of: int) -> bool:
            tells = job.progress("score", total - len(todo), total)
            return tells and not self._stopped.is_set() and not self._others_want_it()

        while todo and go_on(0, 0):
            try:
                todo[0](go_on)
            except Cancelled:
                return
            todo.popleft()

    def _others_want_it(self) -> bool:
        return any(
            status.state in ("queued", "running") and status.client != CLIENT and status.device == self._device
            for status in self._jobs.all()
        )
