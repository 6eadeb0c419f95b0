"""Tests of lorkd_monailabel.commands.cases."""

import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

AFFINE = np.diag([3.0, 3.0, 3.0, 1.0])


@pytest.fixture
def spleen(here: Path, noise: np.ndarray) -> Path:
    """A task of the Decathlon with three cases, in the current folder."""
    labels = np.zeros(noise.shape, dtype=np.uint8)
    labels[2:5, 2:5, 2:5] = 1
    training = []
    for number in range(3):
        pair = {kind: f"./{kind}sTr/spleen_{number}.nii.gz" for kind in ("image", "label")}
        for kind, array in (("image", noise + np.float32(number)), ("label", labels)):
            (here / f"Task09/{kind}sTr").mkdir(parents=True, exist_ok=True)
            nibabel.save(nibabel.Nifti1Image(array, AFFINE), here / "Task09" / pair[kind])
        training.append(pair)
    content = {"name": "Spleen", "modality": {"0": "CT"}, "labels": {"0": "background", "1": "spleen"}}
    path = here / "Task09/dataset.json"
    path.write_text(json.dumps({**content, "training": training, "test": []}), encoding="utf-8")
    return path


def test_convert_show_check(lorkd: Any, spleen: Path) -> None:
    done = lorkd("cases", "convert", "decathlon", "Task09", "--output", "cases.jsonl", "--validation", "0")
    assert (done.status, done.err) == (0, "")
    assert done.out == "cases.jsonl: 3 cases (train: 3), structures: 1\n"
    shown = lorkd("cases", "show", "cases.jsonl")
    assert shown.out.splitlines() == [
        "department  structure  train  cases  sources",
        "abdomen     spleen         3      3        1",
        "",
        "source  modality  train",
        "Spleen  ct            3",
    ]
    checked = lorkd("cases", "check", "cases.jsonl")
    assert (checked.status, checked.out, checked.err) == (0, "cases.jsonl: 3 cases, faults: 0, warnings: 0\n", "")


def test_a_fault_is_a_line_and_status_1(lorkd: Any, spleen: Path) -> None:
    lorkd("cases", "convert", "decathlon", "Task09", "--output", "cases.jsonl")
    (spleen.parent / "imagesTr/spleen_1.nii.gz").unlink()
    checked = lorkd("cases", "check", "cases.jsonl")
    fault, summary = checked.out.splitlines()
    assert checked.status == 1
    assert fault.startswith("fault: line 2 (subject 'spleen_1' of Spleen): image: ")
    assert summary == "cases.jsonl: 3 cases, faults: 1, warnings: 0"


def test_what_is_left_out_is_said(lorkd: Any, spleen: Path) -> None:
    content = json.loads(spleen.read_text(encoding="utf-8"))
    spleen.write_text(json.dumps({**content, "labels": {"1": "spleen", "2": "lesion"}}), encoding="utf-8")
    words = ("cases", "convert", "decathlon", "Task09", "--output", "cases.jsonl")
    refused = lorkd(*words)
    assert (refused.status, refused.out) == (2, "")
    assert refused.err.startswith("lorkd: 1 of 2 names stand for no structure of the vocabulary: 'lesion'")
    assert not Path("cases.jsonl").exists()
    assert lorkd(*words, "--skip-unknown").err == "lorkd: left out: lesion\n"


def test_bad_input_is_one_sentence_and_nothing_is_written(lorkd: Any, spleen: Path, here: Path) -> None:
    before = sorted(here.rglob("*"))
    for layout in ("decathlon", "nnunet", "sat-ds", "monailabel", "bids"):
        refused = lorkd("cases", "convert", layout, "nothing", "--output", "cases.jsonl")
        assert (refused.status, refused.out, len(refused.err.splitlines())) == (2, "", 1)
        assert "nothing" in refused.err
    assert sorted(here.rglob("*")) == before


def test_an_output_that_exists_is_refused(lorkd: Any, spleen: Path) -> None:
    words = ("cases", "convert", "decathlon", "Task09", "--output", "cases.jsonl")
    assert lorkd(*words).status == 0
    assert "cases.jsonl exists already" in lorkd(*words).err
    assert lorkd(*words, "--overwrite").status == 0


@pytest.mark.parametrize("text", ["liver", "=1", "liver=x"])
def test_a_label_must_be_a_name_and_a_value(lorkd: Any, here: Path, text: str) -> None:
    refused = lorkd("cases", "convert", "monailabel", here, "--output", "cases.jsonl", "--label", text)
    assert (refused.status, 'must be "NAME=VALUE"' in refused.err) == (2, True)


def test_help_of_every_layout_says_its_options(lorkd: Any, capfd: pytest.CaptureFixture[str]) -> None:
    for layout, option in (
        ("nnunet", "--channel"),
        ("sat-ds", "--volumes"),
        ("monailabel", "--tag"),
        ("bids", "--only"),
    ):
        with pytest.raises(SystemExit):
            lorkd("cases", "convert", layout, "--help")
        assert option in capfd.readouterr().out
