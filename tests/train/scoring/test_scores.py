"""Tests of train.scoring.scores."""

from dataclasses import replace
from pathlib import Path

import pytest

from train.scoring.scores import Draft, Score, read_about, read_scores, write_scores

SCORE = Score("ours", "17", "a,b.nii.gz", "abdomen", "ct", "liver", "1x1x3", 0.1 + 0.2, 1 / 3, 12, 10)


def test_scores_come_back_from_the_file_to_the_last_digit(tmp_path: Path) -> None:
    scores = [SCORE, replace(SCORE, subject="ß", nsd=None, dsc=1e-17)]
    write_scores(scores, tmp_path / "rows.csv")
    assert read_scores(tmp_path / "rows.csv") == scores
    assert [path.name for path in tmp_path.iterdir()] == ["rows.csv"]


@pytest.mark.parametrize("text", [None, "source,subject\nours,17\n", "\0", b"\xff\xfe"])
def test_what_holds_no_scores_is_one_sentence(tmp_path: Path, text: str | bytes | None) -> None:
    path = tmp_path / "rows.csv"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=r"rows.csv holds no scores .*; make it with python -m train.evaluate"):
        read_scores(path)


def test_a_draft_goes_on_after_its_last_whole_line(tmp_path: Path) -> None:
    path = tmp_path / "new" / "draft.jsonl"
    draft = Draft(path, "one")
    assert draft.done == []
    draft.append([SCORE, replace(SCORE, nsd=None)])
    draft.append([])  # a case of which the model knows nothing is done too
    with path.open("a", encoding="utf-8") as file:
        file.write('[{"source": "ou')
    again = Draft(path, "one")
    assert again.done == [[SCORE, replace(SCORE, nsd=None)], []]
    again.append([SCORE])
    assert Draft(path, "one").done == [*draft.done, [SCORE]]


@pytest.mark.parametrize("text", ["", "nonsense\n", '{"evaluation": "other"}\n[]\n', '{"evaluation": "one"}'])
def test_a_draft_of_something_else_is_begun_anew(tmp_path: Path, text: str) -> None:
    path = tmp_path / "draft.jsonl"
    path.write_text(text, encoding="utf-8")
    assert Draft(path, "one").done == []
    assert path.read_text(encoding="utf-8") == '{"evaluation": "one"}\n'


@pytest.mark.parametrize(("text", "found"), [(None, {}), ("{", {}), ("[]", {}), ('{"gflops": 2}', {"gflops": 2})])
def test_about_is_empty_where_there_is_none(tmp_path: Path, text: str | None, found: dict[str, int]) -> None:
    if text is not None:
        (tmp_path / "about.json").write_text(text, encoding="utf-8")
    assert read_about(tmp_path / "about.json") == found
