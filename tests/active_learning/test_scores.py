"""Tests of lorkd_monailabel.active_learning.scores: what is kept, and what makes it void."""

from pathlib import Path

import pytest

from lorkd_monailabel.active_learning.scores import Scored, ScoreFiles

ENTROPY = {"entropy": Scored("revision 1", 0.25)}


def test_a_restart_keeps_scores(tmp_path: Path) -> None:
    files = ScoreFiles(tmp_path)
    files.put("abdomen", "0f", ENTROPY)
    files.put("abdomen", "0f", {"feature": Scored("base 1", (1.0, 2.0))})
    for each in (files, ScoreFiles(tmp_path)):
        assert each.get("abdomen", "0f").get("entropy", "revision 1") == 0.25
        assert each.get("abdomen", "0f").get("feature", "base 1") == (1.0, 2.0)


def test_what_was_made_of_something_else_is_none(tmp_path: Path) -> None:
    files = ScoreFiles(tmp_path)
    files.put("abdomen", "0f", ENTROPY)
    assert files.get("abdomen", "0f").get("entropy", "revision 2") is None
    assert files.get("abdomen", "0f").get("feature", "revision 1") is None
    assert files.get("thorax", "0f").get("entropy", "revision 1") is None


@pytest.mark.parametrize("text", ["{", '{"entropy": 3}', '{"entropy": {"made_of": "x"}}', '{"a": {"value": [[]]}}'])
def test_a_damaged_file_is_made_anew(tmp_path: Path, text: str) -> None:
    (tmp_path / "abdomen").mkdir()
    (tmp_path / "abdomen" / "0f.json").write_text(text, encoding="utf-8")
    files = ScoreFiles(tmp_path)
    assert files.get("abdomen", "0f").values == {}
    files.put("abdomen", "0f", ENTROPY)
    assert ScoreFiles(tmp_path).get("abdomen", "0f").values == ENTROPY
