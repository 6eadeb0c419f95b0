"""Lines of the log, and what is kept out of them."""

import json
import logging

import pytest

from lorkd_monailabel.front_door.logs import JsonLines, install, worth_keeping
from lorkd_monailabel.front_door.visits import begin


def entry(name, level=logging.INFO, error=None, **fields):
    record = logging.LogRecord(name, level, "/x/sessions.py", 12, "image %s", ("Meier",), None, "get_session")
    record.exc_info = (type(error), error, error.__traceback__) if error else None
    if fields:
        record.fields = fields
    return record


def test_our_words_are_kept_and_others_are_not():
    ours = json.loads(JsonLines().format(entry("lorkd_monailabel.app", status=200)))
    assert (ours["level"], ours["message"], ours["status"]) == ("INFO", "image Meier", 200)
    others = JsonLines().format(entry("monailabel.utils.sessions", logging.WARNING))
    assert "Meier" not in others
    assert json.loads(others)["at"] == "sessions.py:12 get_session"


def test_an_exception_is_its_type_and_its_way():
    try:
        try:
            open("/patients/Meier")
        except OSError as error:
            raise ValueError("cannot read Meier") from error
    except ValueError as error:
        text = JsonLines().format(
            entry("uvicorn.error", logging.ERROR, error).__class__(
                "uvicorn.error", 40, "x.py", 1, "failed", (), (type(error), error, error.__traceback__)
            )
        )
    line = json.loads(text)
    assert (line["error"], line["cause"]) == ("ValueError", "FileNotFoundError")
    assert line["way"][0].endswith("test_an_exception_is_its_type_and_its_way")
    assert "Meier" not in text


def test_number_of_the_request():
    here = begin()
    assert json.loads(JsonLines().format(entry("lorkd_monailabel")))["request_id"] == here.request_id


@pytest.mark.parametrize(
    ("name", "level", "kept"),
    [
        ("lorkd_monailabel.app", logging.INFO, True),
        ("uvicorn.error", logging.INFO, True),
        ("monailabel.endpoints.infer", logging.INFO, False),
        ("monailabel.endpoints.infer", logging.WARNING, True),
        ("task_train", logging.INFO, False),
        ("task_train", logging.ERROR, False),
    ],
)
def test_what_is_worth_keeping(name, level, kept):
    assert worth_keeping(entry(name, level)) is kept


def test_installed_once(monkeypatch):
    handler = logging.StreamHandler()
    logger = logging.getLogger("monailabel_like_logger")
    logger.addHandler(handler)
    install()
    install()
    try:
        assert isinstance(handler.formatter, JsonLines)
        assert len(handler.filters) == 1
    finally:
        logger.removeHandler(handler)
