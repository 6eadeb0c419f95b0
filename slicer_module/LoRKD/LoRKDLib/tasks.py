"""Coroutines on Qt's event loop: what takes time is awaited where it is needed, without threads."""

import inspect
from collections.abc import Callable, Coroutine, Generator
from typing import Any

import qt
from slicer.i18n import tr as _


class Failure(Exception):
    """Ends a task with a sentence for the user; ``status`` is that of HTTP, 0 where no server answered."""

    def __init__(self, text: str, status: int = 0) -> None:
        super().__init__(text)
        self.status = status


class Awaited:
    """Something that takes time: ``end`` lets the task go on that waits for it, ``abort`` is called when none waits."""

    def __init__(self, abort: Callable[[], None]) -> None:
        self._abort = abort
        self.then: Callable[[Any, Failure | None], None] | None = None

    def __await__(self) -> Generator["Awaited", Any, Any]:
        try:
            return (yield self)
        finally:
            self.then = None
            self._abort()

    def end(self, value: Any = None, failure: Failure | None = None) -> None:
        """Give what was waited for, or why it does not come."""
        if self.then is not None:
            self.then(value, failure)


def pause(milliseconds: int) -> Awaited:
    """Let Qt do other things for some time."""
    timer = qt.QTimer()
    waiting = Awaited(timer.stop)
    timer.connect("timeout()", waiting.end)
    timer.start(milliseconds)
    return waiting


class Task:
    """A coroutine under way; ``over`` is told at its end why it failed, or "", and nothing after ``cancel``."""

    def __init__(self, steps: Coroutine[Awaited, Any, None], over: Callable[[str], None] = lambda _text: None) -> None:
        self._steps, self._over, self._cancelled = steps, over, False

    def go(self, value: Any = None, failure: Failure | None = None) -> None:
        """Go on to the next wait, with what the last one was for."""
        try:
            awaited = self._steps.throw(failure) if failure else self._steps.send(value)
        except StopIteration:
            self._over("")
        except Failure as failed:
            self._over(str(failed))
        except OSError as error:
            self._over(_("A file can't be written or read ({error}). Is the disk full?").format(error=error))
        except BaseException:
            self._over(_("The module has a fault; the Python console says more."))
            raise
        else:
            awaited.then = self.go
            if self._cancelled:
                self._steps.close()

    def cancel(self) -> None:
        """End it where it waits; its ``finally`` clauses tidy up."""
        self._over, self._cancelled = lambda _text: None, True
        if inspect.getcoroutinestate(self._steps) != inspect.CORO_RUNNING:
            self._steps.close()
