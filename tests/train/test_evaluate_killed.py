"""An evaluation that is killed goes on: a real process, SIGKILL, and the scores of what was done stay."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lorkd_monailabel.store import ExpertStore
from tests.train.processes import started
from train.evaluate import main
from train.scoring.scores import read_scores

CASES = 30


@pytest.fixture
def arguments(
    tmp_path: Path,
    root: Path,
    make_store: Callable[..., ExpertStore],
    write_case: Callable[..., dict[str, Any]],
    write_list: Callable[[list[Any]], Path],
) -> list[str]:
    labels = np.zeros((16, 16, 16), dtype=np.int16)
    labels[2:9, 2:8, 3:12] = 1
    case = write_case(labels, {"liver": ("abdomen", [1])})
    cases = write_list([{**case, "subject": str(number)} for number in range(CASES)])

    settings = (
        f"cases={cases}",
        f"model={make_store('abdomen').folder}",
        f"output={tmp_path / 'killed'}",
        "resamples=10",
        'grids=["native"]',
        "overlap=0",
    )
    config = str(root / "train" / "configs" / "evaluate.toml")
    return [config, *(part for setting in settings for part in ("--set", setting))]


def test_sigkill_loses_at_most_the_case_under_way(root: Path, tmp_path: Path, arguments: list[str]) -> None:
    draft = tmp_path / "killed.draft.jsonl"
    with started(root, "train.evaluate", *arguments) as process:
        until = time.monotonic() + 90
        while not draft.exists() or draft.read_bytes().count(b"\n") < 3:
            assert process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.005)
    whole_lines = draft.read_text(encoding="utf-8").split("\n")[:-1]
    assert 3 <= len(whole_lines) <= CASES
    assert not (tmp_path / "killed.csv").exists()
    first = json.loads(whole_lines[1])
    first[0]["dsc"] = 0.125  # so that it shows that the case is not done again
    whole_lines[1] = json.dumps(first)
    draft.write_text("\n".join(whole_lines) + '\n[{"source"', encoding="utf-8")

    assert main(arguments) == 0
    scores = read_scores(tmp_path / "killed.csv")
    assert [score.subject for score in scores] == [str(number) for number in range(CASES)]
    assert scores[0].dsc == 0.125
    assert len({(score.dsc, score.nsd) for score in scores[1:]}) == 1  # all of one image
    assert not draft.exists()
