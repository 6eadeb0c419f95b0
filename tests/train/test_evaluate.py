import csv

import numpy as np
import pytest

from lorkd_monailabel.store import ExpertStore
from train.evaluate import main, table

STRUCTURES = {"liver": ("abdomen", [1]), "spleen": ("abdomen", [2]), "heart": ("thorax", [3])}


@pytest.fixture
def evaluate(tmp_path, root, tiny_base, make_expert, write_case, write_list):
    store = ExpertStore(tmp_path / "store")
    store.publish_base(tiny_base)
    store.publish(make_expert("abdomen"))
    labels = np.zeros((12, 10, 9), dtype=np.int16)
    labels[2:5, 2:8, 3:6] = 1
    labels[6:9, 4:8, 3:8] = 2
    cases = write_list([write_case(labels, STRUCTURES)])

    def run(*settings: str) -> int:
        given = [f"cases={cases}", f"store={store.folder}", f"output={tmp_path / 'rows.csv'}", *settings]
        config = str(root / "train" / "configs" / "evaluate.toml")
        return main([config, *(part for setting in given for part in ("--set", setting))])

    return run


def test_every_annotated_structure_that_an_expert_knows_is_compared(evaluate, tmp_path, capsys):
    assert evaluate() == 0
    with (tmp_path / "rows.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["department"], row["structure"]) for row in rows] == [("abdomen", "liver"), ("abdomen", "spleen")]
    assert all(0 <= float(row["dice"]) <= 1 for row in rows)
    assert "mean of structures" in capsys.readouterr().out


def test_named_structures_alone_are_compared(evaluate, tmp_path):
    assert evaluate('structures=["spleen"]') == 0
    with (tmp_path / "rows.csv").open() as file:
        assert [row["structure"] for row in csv.DictReader(file)] == ["spleen"]


def test_nothing_to_compare_is_one_sentence(evaluate, tmp_path, capsys):
    assert evaluate('structures=["heart"]') == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "no structure of" in error
    assert not (tmp_path / "rows.csv").exists()


def test_means_by_hand():
    rows = [
        {"department": "abdomen", "structure": "liver", "dice": 0.5},
        {"department": "abdomen", "structure": "liver", "dice": 0.7},
        {"department": "abdomen", "structure": "spleen", "dice": 0.2},
        {"department": "thorax", "structure": "heart", "dice": 0.9},
    ]
    lines = [line.split() for line in table(rows).splitlines()]
    assert ["abdomen", "liver", "2", "0.600"] in lines
    assert ["abdomen", "mean", "0.400"] in lines
    assert ["thorax", "mean", "0.900"] in lines
    assert lines[-1] == ["all", "mean", "of", "structures", "0.567"]
