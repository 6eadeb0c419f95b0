import numpy as np
import pytest

from lorkd_monailabel.pins import write_pin
from train.finetune import main


@pytest.fixture
def store(make_store):
    return make_store("abdomen", "thorax")


@pytest.fixture
def finetune(tmp_path, root, store, write_case, write_list):
    labels = np.zeros((12, 10, 9), dtype=np.int16)
    labels[2:5, 2:8, 3:6] = 1
    cases = write_list([write_case(labels, {"pancreas": ("abdomen", [1])})])

    def run(*settings: str) -> int:
        given = [
            *(f"data.cases={cases}", f"data.cache={tmp_path / 'cache'}", "data.patch=8", "data.workers=0"),
            *(f"store={store.folder}", f"output={tmp_path / 'run'}", "steps=2", "batch_size=1", *settings),
        ]
        config = str(root / "train" / "configs" / "finetune.toml")
        return main([config, *(part for setting in given for part in ("--set", setting))])

    return run


def test_a_new_revision_is_published_and_no_other_byte_changes(finetune, store):
    before = {path: path.read_bytes() for path in store.folder.rglob("*.safetensors")}
    assert len(before) == 3
    assert finetune() == 0
    after = {path: path.read_bytes() for path in store.folder.rglob("*.safetensors")}
    assert set(after) - set(before) == {store.folder / "abdomen" / "0002.safetensors"}
    assert {path: after[path] for path in before} == before


def test_the_revision_tells_its_parent_and_learns_new_structures(finetune, store):
    assert finetune() == 0
    old, new = store.load("abdomen", 1), store.load("abdomen", 2)
    assert new.parent == 1
    assert new.structures == ("liver", "spleen", "pancreas")
    assert new.spacing_mm == old.spacing_mm
    assert any(not np.array_equal(new.factors[name][1], old.factors[name][1]) for name in old.factors)


def test_the_served_revision_is_retrained(finetune, store):
    assert finetune() == 0
    write_pin(store.folder, "abdomen", 1)
    assert finetune() == 0
    assert store.load("abdomen", 3).parent == 1


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("department=elbow", "department 'elbow' is unknown"),
        ("department=brain", "has no expert"),
        ("department=thorax", "has no case"),
        ("data.cases=nowhere.jsonl", "can't be read"),
        ("steps=many", "config key steps"),
    ],
)
def test_bad_input_is_one_sentence_and_publishes_nothing(finetune, store, setting, sentence, capsys):
    try:
        status = finetune(setting)
    except SystemExit as stop:  # of argparse, for what is no config
        status = stop.code
    assert status == 2
    assert sentence in capsys.readouterr().err.strip().splitlines()[-1]
    assert store.revisions("abdomen") == (1,)
    assert store.revisions("thorax") == (1,)
