"""Tests of lorkd_monailabel.commands.tables."""

from lorkd_monailabel.commands.tables import printable, table


def test_text_to_the_left_numbers_to_the_right() -> None:
    rows = [("liver", 2, 1234, 3.14159), ("a long name", None, 5, 0.0)]
    assert table(("name", "value", "voxels", "ml"), rows).splitlines() == [
        "name         value  voxels   ml",
        "liver            2    1234  3.1",
        "a long name      -       5  0.0",
    ]


def test_no_rows_and_a_column_of_nothing() -> None:
    assert table(("a", "b"), []) == "a  b"
    assert table(("a", "b"), [(None, "x")]) == "a  b\n-  x"


def test_what_a_terminal_would_obey_is_not_printed() -> None:
    assert table(("a",), [("x\x1b[2J\ny",)]).splitlines() == ["a", "x?[2J?y"]
    assert printable("Ümlaut \u202e\t") == "Ümlaut ??"
