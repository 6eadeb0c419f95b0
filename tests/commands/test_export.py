"""Tests of `lorkd export`: options, what is printed, refusals."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from lorkd_monailabel.commands import export as command
from lorkd_monailabel.exports.compact import DTYPES
from lorkd_monailabel.exports.formats import FORMATS
from lorkd_monailabel.exports.subject import MODALITIES
from lorkd_monailabel.store import ExpertStore


def test_newest_expert_is_written(lorkd: Callable, store: ExpertStore, here: Path) -> None:
    words = ("--format", "safetensors", "--output", "new", "--store", store.folder, "--dtype", "int8")
    outcome = lorkd("export", "abdomen", *words)
    assert (outcome.status, outcome.err) == (0, "")
    *files, last = outcome.out.splitlines()
    assert [line.split()[0] for line in files] == ["new/README.md", "new/abdomen.safetensors", "new/settings.json"]
    assert last.startswith("abdomen revision 2 as safetensors in int8: probabilities differ by ")
    assert 0 < float(last.split("differ by ")[1].split()[0]) < 0.1
    assert json.loads((here / "new" / "settings.json").read_text(encoding="utf-8"))["structures"] == [
        "liver",
        "spleen",
        "pancreas",
    ]


def test_named_revision_and_modality(lorkd: Callable, store: ExpertStore, here: Path) -> None:
    words = ("--format", "bundle", "--output", "new", "--revision", 1, "--modality", "mri")
    outcome = lorkd("export", "abdomen", *words, "--store", store.folder)
    assert (outcome.status, outcome.err) == (0, "")
    assert "abdomen revision 1 as bundle in float32: probabilities differ by 0.0e+00 at most" in outcome.out
    metadata = json.loads((here / "new" / "configs" / "metadata.json").read_text(encoding="utf-8"))
    assert metadata["name"] == "LoRKD abdomen MRI"
    assert metadata["eval_metrics"] == {"liver": 0.9}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("abdomen", "--format", "bundle"), "format bundle holds queries and intensities of one modality; name it"),
        (("abdomen", "--format", "sat"), "SAT's networks have 6 scales, 8 heads"),
        (("abdomen", "--format", "sat", "--dtype", "int8"), "SAT's loader knows no int8 weights"),
        (("brain", "--format", "onnx"), "department 'brain' has no expert in"),
        (("pets", "--format", "onnx"), "department 'pets' is unknown"),
        (("abdomen", "--format", "onnx", "--revision", "9"), "abdomen has no revision 9; it has 1 to 2"),
        (("abdomen", "--format", "zip"), "argument --format: invalid choice: 'zip'"),
        (("abdomen", "--format", "onnx", "--dtype", "int4"), "argument --dtype: invalid choice: 'int4'"),
        (("abdomen",), "the following arguments are required: --format; see lorkd export --help"),
    ],
)
def test_what_can_not_be(words: tuple, message: str, lorkd: Callable, store: ExpertStore, here: Path) -> None:
    outcome = lorkd("export", *words, "--output", "new", "--store", store.folder)
    assert (outcome.status, outcome.out) == (2, "")
    (line,) = outcome.err.splitlines()
    assert message in line
    assert list(here.iterdir()) == []


def test_a_folder_that_is_there_is_left_alone(lorkd: Callable, store: ExpertStore, here: Path) -> None:
    (here / "new").mkdir()
    outcome = lorkd("export", "abdomen", "--format", "safetensors", "--output", "new", "--store", store.folder)
    assert outcome.status == 2
    assert outcome.err == "lorkd: new exists already; an export goes into a new folder, name another one\n"
    assert list((here / "new").iterdir()) == []


def test_choices_are_those_of_the_exports() -> None:
    assert (tuple(FORMATS), tuple(DTYPES), MODALITIES) == (command.FORMATS, command.DTYPES, command.MODALITIES)
