"""Tests of the HTML page."""

import math
from html.parser import HTMLParser

import pytest

from train.reporting.page import NOTHING, Cell, Page, number, said, span

VOID = {"meta", "img", "br", "link", "hr", "input"}
HOSTILE = "<script src='http://example.org/x.js'>alert(1)</script> & \"quoted\""


class Reader(HTMLParser):
    """Reads a page: that every tag is closed in order, what attributes there are, what a reader sees."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.seen: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.seen.append(data)

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]


def test_a_page_is_read_as_it_was_written() -> None:
    page = Page("A title", subtitle="and more", style="p > b { color: red; }")
    page.section("One")
    page.text("a paragraph", "advice")
    page.tiles({"steps": "7"})
    page.table("A caption", ("name", "count"), [[Cell("liver"), number(3, 0)]])
    page.tables(("key", "value"), {"first": [[Cell("a"), Cell("1")]], "second": []})
    page.figure("A figure", b"\x89PNG...", "what it shows")
    page.gallery([("Another", b"<svg/>", "something")])
    page.footer("the end")
    text = bytes(page).decode("utf-8")
    read = Reader(text)
    assert text.startswith("<!DOCTYPE html>\n<html lang=")
    assert "p > b { color: red; }" in text
    assert [tag for tag, _ in read.tags][:2] == ["html", "head"]
    assert [own["alt"] for own in read.all("img")] == ["what it shows", "something"]
    assert [own["src"].partition(";")[0] for own in read.all("img")] == ["data:image/png", "data:image/svg+xml"]
    assert [own["scope"] for own in read.all("th")] == ["col", "col", "row", "col", "col", "row", "col", "col"]
    seen = " ".join(" ".join(read.seen).split())
    assert seen == (
        "A title A title and more One a paragraph steps 7 A caption name count liver 3 first key value a 1 "
        "second key value A figure Another the end"
    )


def test_what_comes_from_files_is_text_and_nothing_else() -> None:
    page = Page(HOSTILE, subtitle=HOSTILE, style="")
    page.section(HOSTILE)
    page.text(HOSTILE)
    page.tiles({HOSTILE: HOSTILE})
    page.table(HOSTILE, (HOSTILE,), [[Cell(HOSTILE, color='"><script>', bar=2.0)]])
    page.figure(HOSTILE, b"<svg/>", HOSTILE)
    read = Reader(bytes(page).decode("utf-8"))
    assert read.all("script") == []
    assert read.seen.count(HOSTILE) == 11
    assert read.all("img")[0]["alt"] == HOSTILE
    assert read.all("span")[-1]["style"] == 'width: 100.0%; background: "><script>'


def test_a_page_forbids_what_is_not_in_it() -> None:
    read = Reader(bytes(Page("title", subtitle="", style="")).decode("utf-8"))
    policy = next(own["content"] for own in read.all("meta") if own.get("http-equiv") == "Content-Security-Policy")
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (1234.567, 2, "1,234.57"),
        (-0.25, 2, "\N{MINUS SIGN}0.25"),
        (7, 0, "7"),
        (None, 2, NOTHING),
        (math.nan, 2, NOTHING),
        (True, 0, NOTHING),
        ("<b>", 0, NOTHING),
    ],
)
def test_numbers(value: object, digits: int, text: str) -> None:
    assert number(value, digits) == Cell(text, number=True)


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, NOTHING), ("", NOTHING), ([], NOTHING), (True, "yes"), (False, "no"), ([1, 2.5], "1, 2.5"), (0, "0")],
)
def test_settings(value: object, text: str) -> None:
    assert said(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (59.4, "59.4 s"), (125, "2 min 5 s"), (3599.6, "1 h 0 min"), (9000, "2 h 30 min")],
)
def test_times(seconds: float, text: str) -> None:
    assert span(seconds) == text
