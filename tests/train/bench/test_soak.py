"""The soak tool: its short form against a real server, with limits that a loaded machine keeps too."""

import re
from types import SimpleNamespace

import pytest

from train.bench import soak


def test_an_answer_of_another_revision_is_noticed():
    newest = iter([2, 3, 2, 2])
    store = SimpleNamespace(departments=lambda: ("thorax", "abdomen"), newest=lambda department: next(newest))
    server = SimpleNamespace(store=store, ask=lambda *arguments: {"lorkd": {"answers": [{"revision": 3}]}})
    assert soak.infer(server, 0) is None
    assert soak.infer(server, 0) == "revision [3] of thorax, where 2 to 2 were the newest"


def test_options_that_load_nothing(capsys):
    assert soak.main(["--requests", "0"]) == 2
    assert "load nothing" in capsys.readouterr().err


@pytest.mark.timeout(900)
def test_short_form(capsys):
    status = soak.main(["--quick", "--median-ms", "500", "--slowest-ms", "3000"])
    out, error = capsys.readouterr()
    assert status == 0, out + error
    assert out.splitlines()[-1] == "the server bears it"
    assert " running" in out.splitlines()[0]
    assert re.search(r"^training meanwhile: [1-9]\d* steps, then stopped$", out, re.MULTILINE)


@pytest.mark.parametrize("state", ["failed", "done"])
def test_a_training_that_ended_by_itself_is_told(state):
    server = SimpleNamespace(ask=lambda *arguments: {"state": state, "message": "no labels"})
    assert soak.end_training(server, "1") == [f"the training is {state}: no labels"]
