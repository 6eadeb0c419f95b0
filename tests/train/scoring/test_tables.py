"""Tests of train.scoring.tables."""

import re

import pytest

from train.scoring.tables import Cell, Table, escaped, latex, markdown

TABLE = Table(
    title="DSC & NSD of 100 %",
    heads=("run", "LoRKD*", "a|b"),
    rows=(
        (Cell("left_ventricle"), Cell("80.05 (79.00, 81.00)", bold=True), Cell("")),
        (Cell("x"), Cell("-1.5"), Cell("y")),
    ),
    note="Best_in bold #1.",
)


def test_markdown_by_hand() -> None:
    assert markdown(TABLE).splitlines() == [
        "**DSC & NSD of 100 %**",
        "",
        r"| run | LoRKD\* | a\|b |",
        "|---|---:|---:|",
        r"| left\_ventricle | **80.05 (79.00, 81.00)** |  |",
        "| x | -1.5 | y |",
        "",
        r"Best\_in bold #1.",
    ]


def test_latex_by_hand() -> None:
    assert latex(TABLE).splitlines() == [
        r"\begin{table}",
        r"\centering",
        r"\caption{DSC \& NSD of 100 \%. Best\_in bold \#1.}",
        r"\begin{tabular}{lrr}",
        r"\toprule",
        r"run & LoRKD* & a|b \\",
        r"\midrule",
        r"left\_ventricle & \textbf{80.05 (79.00, 81.00)} &  \\",
        r"x & $-$1.5 & y \\",
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("100 % & more_or #1 {x} $5", r"100 \% \& more\_or \#1 \{x\} \$5"),
        (r"a\b~c^d", r"a\textbackslash{}b\textasciitilde{}c\textasciicircum{}d"),
        ("-1.50 (-2.00, +0.10)", "$-$1.50 ($-$2.00, +0.10)"),
        ("LoRKD-8, 1x1x3", "LoRKD-8, 1x1x3"),
    ],
)
def test_every_special_sign_of_latex_is_escaped(text: str, expected: str) -> None:
    assert escaped(text) == expected
    bare = re.sub(r"\\text\w+\{\}|\$-\$|\\[&%$#_{}]", "", escaped(text))
    assert not re.search(r"[&%$#_{}\\~^]", bare)


def test_a_table_is_rectangular() -> None:
    with pytest.raises(AssertionError):
        Table("", ("a", "b"), ((Cell("1"),),))
