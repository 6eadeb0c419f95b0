"""The server's log: a line of JSON each, without patient data.

MONAI Label logs whole requests, with the ids and paths of images. Of its lines only warnings are kept, and of those
only where in its source they come from; of an exception, its type and its way through the source, never its text.
"""

import json
import logging
import logging.handlers
import time
import traceback
from typing import Any

from lorkd_monailabel.front_door.visits import visit

OURS = ("lorkd_monailabel", "uvicorn")
"""Loggers whose words are kept. What they say must name no image."""

_STREAMS = (logging.StreamHandler, logging.handlers.RotatingFileHandler)


class JsonLines(logging.Formatter):
    """Makes a line of a log entry; ``fields`` of the entry become its own keys."""

    def format(self, record: logging.LogRecord) -> str:
        """Give the line."""
        line: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{record.msecs:03.0f}Z",
            "level": record.levelname,
            "logger": record.name,
        }
        if _is_ours(record.name):
            line["message"] = record.getMessage()
        else:
            line["at"] = f"{record.filename}:{record.lineno} {record.funcName}"
        if visit().request_id:
            line["request_id"] = visit().request_id
        line.update(getattr(record, "fields", {}))
        if record.exc_info and record.exc_info[1]:
            line.update(described(record.exc_info[1]))
        return json.dumps(line, ensure_ascii=True, default=str)


def described(error: BaseException) -> dict[str, Any]:
    """Tell of an exception its type and where it came from."""
    frames = traceback.extract_tb(error.__traceback__)
    way = [f"{frame.filename.rpartition('/')[2]}:{frame.lineno} {frame.name}" for frame in frames]
    cause = error.__cause__
    return {"error": type(error).__name__, "way": way, **({"cause": type(cause).__name__} if cause else {})}


def worth_keeping(record: logging.LogRecord) -> bool:
    """Whether an entry is kept: all of ours, of others what warns; never what a training process prints."""
    if record.name.startswith("task_"):
        return False
    return _is_ours(record.name) or record.levelno >= logging.WARNING


def install() -> None:
    """Make every stream and file that MONAI Label and uvicorn log to write such lines from now on."""
    names = [name for name in logging.root.manager.loggerDict if isinstance(logging.getLogger(name), logging.Logger)]
    for logger in (logging.root, *map(logging.getLogger, names)):
        for handler in logger.handlers:
            if type(handler) in _STREAMS and not isinstance(handler.formatter, JsonLines):
                handler.setFormatter(JsonLines())
                handler.addFilter(worth_keeping)


def _is_ours(name: str) -> bool:
    return name.partition(".")[0] in OURS
