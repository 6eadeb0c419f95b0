"""Tables of figures, as Markdown and as LaTeX (booktabs)."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_MARKDOWN = {sign: f"\\{sign}" for sign in "\\|*_`<"}
_LATEX = {
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
}


@dataclass(frozen=True)
class Cell:
    """Plain text, and whether it is the best of its kind."""

    text: str
    bold: bool = False


@dataclass(frozen=True)
class Table:
    """A table; its first column is text, the others are figures.

    Attributes:
        title: above it.
        heads: of the columns.
        rows: cells, as many as heads.
        note: below it; empty for none.
    """

    title: str
    heads: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""

    def __post_init__(self) -> None:
        """Checks that it is rectangular."""
        assert all(len(row) == len(self.heads) for row in self.rows)


def markdown(table: Table) -> str:
    """Write a table as Markdown."""

    def line(cells: Sequence[str]) -> str:
        return f"| {' | '.join(cells)} |"

    def cell(each: Cell) -> str:
        text = _escaped(each.text, _MARKDOWN)
        return f"**{text}**" if each.bold and text else text

    lines = [f"**{_escaped(table.title, _MARKDOWN)}**", ""] if table.title else []
    lines += [line([cell(Cell(head)) for head in table.heads]), f"|---|{'---:|' * (len(table.heads) - 1)}"]
    lines += [line([cell(each) for each in row]) for row in table.rows]
    if table.note:
        lines += ["", _escaped(table.note, _MARKDOWN)]
    return "\n".join(lines)


def latex(table: Table) -> str:
    r"""Write a table as LaTeX; the document needs ``\usepackage{booktabs}``."""

    def line(cells: Sequence[str]) -> str:
        return " & ".join(cells) + r" \\"

    def cell(each: Cell) -> str:
        text = escaped(each.text)
        return f"\\textbf{{{text}}}" if each.bold and text else text

    caption = escaped(f"{table.title}. {table.note}".strip().removeprefix(". "))
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            f"\\caption{{{caption}}}",
            f"\\begin{{tabular}}{{l{'r' * (len(table.heads) - 1)}}}",
            r"\toprule",
            line([escaped(head) for head in table.heads]),
            r"\midrule",
            *(line([cell(each) for each in row]) for row in table.rows),
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
        ]
    )


def escaped(text: str) -> str:
    """Write plain text as LaTeX has it; the minus of a number becomes a real one."""
    return re.sub(r"(?<![\w.$-])-(?=\d)", "$-$", _escaped(text, _LATEX))


def _escaped(text: str, signs: Mapping[str, str]) -> str:
    return "".join(signs.get(sign, sign) for sign in text)
