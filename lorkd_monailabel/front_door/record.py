"""Middleware, the outermost: gives each request its number, measures it, logs it, audits it, and survives it."""

import logging
import time

import anyio.to_thread
from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lorkd_monailabel.front_door.errors import UNEXPECTED, answer
from lorkd_monailabel.front_door.figures import FIGURES
from lorkd_monailabel.front_door.visits import Visit, begin

CLIENT_GONE = 499
"""What nginx calls it, for the log and the figures; nobody is there to receive it."""

_READING = ("GET", "HEAD", "OPTIONS")
_LOG = logging.getLogger(__name__)


class Record:
    """Middleware: see above.

    Args:
        app: the application behind it.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves the request; whatever happens behind is answered."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        here, began, status = begin(), time.perf_counter(), 0

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-ID"] = here.request_id
            await send(message)

        try:
            await self.app(scope, receive, noted)
        except ClientDisconnect:
            status = CLIENT_GONE
        except Exception as error:
            _LOG.error("%s %s failed", scope["method"], here.route, exc_info=error)
            if status:  # the answer is under way and can only be cut
                raise
            await answer(500, UNEXPECTED)(scope, receive, noted)
        finally:
            seconds = time.perf_counter() - began
            FIGURES.observe(scope["method"], here.route, status=status, seconds=seconds)
            fields = {"user": here.user, "status": status, "ms": round(seconds * 1000, 1)}
            _LOG.info("%s %s", scope["method"], here.route, extra={"fields": fields})
        if scope["method"] not in _READING and status not in (401, 404, 405):
            await anyio.to_thread.run_sync(audit, scope["method"], here, status)


def audit(method: str, here: Visit, status: int) -> None:
    """Note in the audit log what may have changed something."""
    from monailabel.interfaces.utils.app import app_instance

    try:
        app_instance().audit.record(
            f"{method} {here.route}",
            user=here.user,
            client=here.client,
            image=here.image,
            status=status,
            request_id=here.request_id,
        )
    except OSError as error:  # a full disk must not stop the work, but somebody must hear of it
        _LOG.error("the audit log can't be written", exc_info=error)
