"""An HTML page without a single outside resource: text, tables and figures, each safe whatever a file says."""

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from xml.etree.ElementTree import Element, SubElement, tostring

NOTHING = "\N{EN DASH}"
"""In the place of a figure that there is not."""

MINUS = "\N{MINUS SIGN}"

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
"""What a browser may load for the page: nothing but what stands in it."""


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Attributes:
        text: of the cell.
        number: whether it is a figure, which is set to the right.
        color: CSS colour of a swatch before the text and of the bar; empty for no swatch.
        bar: length of a bar behind the text, 0..1; None for none.
    """

    text: str
    number: bool = False
    color: str = ""
    bar: float | None = None


def number(value: object, digits: int) -> Cell:
    """Write a figure with so many digits behind the point; what is none, or not finite, is a dash."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return Cell(NOTHING, number=True)
    return Cell(f"{value:z,.{digits}f}".replace("-", MINUS), number=True)


def said(value: object) -> str:
    """Write a setting as people read it."""
    match value:
        case None | "" | [] | {}:
            return NOTHING
        case bool():
            return "yes" if value else "no"
        case list():
            return ", ".join(map(said, value))
        case _:
            return str(value)


def span(seconds: float) -> str:
    """Write a time in the two units that suit it."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


class Page:
    """A page that is written from top to bottom; the tree escapes every text.

    Args:
        title: of the page.
        subtitle: below it.
        style: sheet, the only thing that is taken as it is.
    """

    def __init__(self, title: str, *, subtitle: str, style: str) -> None:
        self.root = Element("html", lang="en")
        head = SubElement(self.root, "head")
        SubElement(head, "meta", charset="utf-8")
        SubElement(head, "meta", {"http-equiv": "Content-Security-Policy", "content": POLICY})
        SubElement(head, "meta", name="viewport", content="width=device-width, initial-scale=1")
        SubElement(head, "title").text = title
        SubElement(head, "style").text = style
        body = SubElement(self.root, "body")
        header = SubElement(body, "header")
        SubElement(header, "h1").text = title
        SubElement(header, "p", {"class": "soft"}).text = subtitle
        self.main = SubElement(body, "main")
        self.place = self.main
        self.body = body

    def section(self, title: str) -> None:
        """Begin a section; what follows stands in it."""
        self.place = SubElement(self.main, "section")
        SubElement(self.place, "h2").text = title

    def text(self, text: str, kind: str = "") -> None:
        """Add a paragraph; ``kind`` is a class of the sheet."""
        SubElement(self.place, "p", {"class": kind} if kind else {}).text = text

    def tiles(self, figures: Mapping[str, str]) -> None:
        """Add the figures to be seen first: what they are -> what they say."""
        tiles = SubElement(self.place, "dl", {"class": "tiles"})
        for name, value in figures.items():
            tile = SubElement(tiles, "div")
            SubElement(tile, "dt").text = name
            SubElement(tile, "dd").text = value

    def table(self, caption: str, head: Sequence[str], rows: Sequence[Sequence[Cell]]) -> None:
        """Add a table; the first cell of a row is its head."""
        _table(self.place, caption, head, rows)

    def tables(self, head: Sequence[str], tables: Mapping[str, Sequence[Sequence[Cell]]]) -> None:
        """Add tables of one head beside each other: caption -> rows."""
        place = SubElement(self.place, "div", {"class": "beside"})
        for caption, rows in tables.items():
            _table(place, caption, head, rows)

    def figure(self, caption: str, picture: bytes, alt: str) -> None:
        """Add an SVG or PNG with a text for who can't see it."""
        _figure(self.place, caption, picture, alt)

    def gallery(self, figures: Sequence[tuple[str, bytes, str]]) -> None:
        """Add figures beside each other: caption, picture and text of each."""
        place = SubElement(self.place, "div", {"class": "gallery"})
        for caption, picture, alt in figures:
            _figure(place, caption, picture, alt)

    def footer(self, text: str) -> None:
        """End the page."""
        SubElement(SubElement(self.body, "footer"), "p").text = text

    def __bytes__(self) -> bytes:
        """Give the page as it is written to a file."""
        return b"<!DOCTYPE html>\n" + tostring(self.root, encoding="utf-8", method="html") + b"\n"


def _table(place: Element, caption: str, head: Sequence[str], rows: Sequence[Sequence[Cell]]) -> None:
    table = SubElement(place, "table")
    SubElement(table, "caption").text = caption
    line = SubElement(SubElement(table, "thead"), "tr")
    for column, title in enumerate(head):
        numbers = bool(rows) and all(row[column].number for row in rows)
        SubElement(line, "th", {"scope": "col", **({"class": "number"} if numbers else {})}).text = title
    body = SubElement(table, "tbody")
    for row in rows:
        line = SubElement(body, "tr")
        for column, cell in enumerate(row):
            _fill(SubElement(line, "td") if column else SubElement(line, "th", scope="row"), cell)


def _figure(place: Element, caption: str, picture: bytes, alt: str) -> None:
    figure = SubElement(place, "figure")
    SubElement(figure, "figcaption").text = caption
    kind = "png" if picture.startswith(b"\x89PNG") else "svg+xml"
    data = base64.b64encode(picture).decode("ascii")
    SubElement(figure, "img", src=f"data:image/{kind};base64,{data}", alt=alt)


def _fill(place: Element, cell: Cell) -> None:
    place.set("class", "number" if cell.number else "value")
    if cell.color and cell.bar is None:
        SubElement(place, "span", {"class": "swatch", "style": f"background: {cell.color}"}).tail = cell.text
    else:
        place.text = cell.text
    if cell.bar is not None:
        track = SubElement(place, "span", {"class": "track"})
        width = 100 * min(max(cell.bar, 0.0), 1.0)
        SubElement(track, "span", {"class": "bar", "style": f"width: {width:.1f}%; background: {cell.color}"})
