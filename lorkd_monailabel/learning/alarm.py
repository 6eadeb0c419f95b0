"""A failure on one of several processes ends all of them, with its sentence on the first one's stderr.

The failing process writes its sentence into the store by which the processes found each other. A thread of each looks
there a few times a second: its main thread may wait in C++ for numbers that will never come.
"""

import json
import os
import threading
import traceback
from collections.abc import Callable
from datetime import timedelta
from types import TracebackType

from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

LOOK_EVERY_S = 0.2
ANSWER_S = 10.0
FAILED, ANNOUNCED = "failed", "announced"

Describe = Callable[[BaseException], tuple[str, int]]
"""Exception -> its sentence and the exit status; status 1 is a mistake of ours, whose traceback is shown."""

Announce = Callable[[str], None]
"""Shows a sentence."""


class Alarm:
    """Ends this process where its block fails, or that of another process.

    The environment names the store, as ``torchrun`` writes it.

    Args:
        rank: number of this process.
        describe: exception -> sentence and exit status.
        announce: called at most once, on the first process; elsewhere only where that one does not answer.
    """

    def __init__(self, rank: int, *, describe: Describe, announce: Announce) -> None:
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        # A connection of its own: one that waits for a key lets nobody else ask.
        self.store = PrefixStore(f"alarm/{attempt}", TCPStore(host, port, is_master=False))
        self.rank = rank
        self.describe = describe
        self.announce = announce
        self.over = threading.Event()
        self.speaking = threading.Lock()
        self.thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Alarm":
        self.thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.over.set()
            self.thread.join()
        else:
            self._fail(error)

    def _watch(self) -> None:
        while not self.over.wait(LOOK_EVERY_S):
            try:
                found = self.store.get(FAILED) if self.store.check([FAILED]) else None
            except RuntimeError:  # whoever keeps the store is gone
                os._exit(1)
            if found is not None:
                self._end(*json.loads(found))

    def _fail(self, error: BaseException) -> None:
        self.over.set()  # this process ends by its own hand
        sentence, status = self.describe(error)
        if status == 1:
            traceback.print_exception(error)
        try:
            self.store.set(FAILED, json.dumps([sentence, status]))
            if self.rank:
                self.store.wait([ANNOUNCED], timedelta(seconds=ANSWER_S))
        except RuntimeError:  # nobody answers any more
            self.announce(sentence)
        self._end(sentence, status)

    def _end(self, sentence: str, status: int) -> None:
        """End this process without waiting for anything: what others would have to answer may never come."""
        with self.speaking:  # whichever thread comes first says it
            if self.rank == 0:
                self.announce(sentence)
                try:
                    self.store.set(ANNOUNCED, "")
                except RuntimeError:
                    pass
            os._exit(status)
