"""Tests of `lorkd segment`: every bad input ends with status 2, one sentence, no traceback and no file."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lorkd_monailabel.experts import Base, Expert
from lorkd_monailabel.store import ExpertStore

Refused = Callable[..., str]


@pytest.fixture
def refused(lorkd: Callable, here: Path, store: ExpertStore, ct: Path) -> Refused:
    """Run the command with something changed, check how it ends, and give the sentence."""

    def run(*words: object, image: Path = ct, text: str = "liver", folder: Path = store.folder) -> str:
        before = {path: path.stat().st_mtime_ns for path in here.parent.rglob("*")}
        outcome = lorkd("segment", image, "--text", text, "--store", folder, *words)
        assert (outcome.status, outcome.out) == (2, "")
        assert "Traceback" not in outcome.err
        (line,) = outcome.err.splitlines()
        assert line.startswith("lorkd: ")
        assert {path: path.stat().st_mtime_ns for path in here.parent.rglob("*")} == before
        return line.removeprefix("lorkd: ")

    return run


def test_a_missing_file(refused: Refused, tmp_path: Path) -> None:
    assert refused(image=tmp_path / "no.nii.gz") == f"{tmp_path / 'no.nii.gz'} does not exist; check the path"


def test_a_text(refused: Refused, tmp_path: Path) -> None:
    path = tmp_path / "text.nii.gz"
    path.write_text("this is no image")
    assert f"{path} cannot be read as an image" in refused(image=path)


def test_a_file_cut_short(refused: Refused, tmp_path: Path, ct: Path) -> None:
    path = tmp_path / "cut.nii.gz"
    path.write_bytes(ct.read_bytes()[:700])
    assert f"{path} cannot be read as an image" in refused(image=path)


def test_a_folder_without_dicom(refused: Refused, tmp_path: Path) -> None:
    folder = tmp_path / "nothing"
    folder.mkdir()
    assert refused(image=folder) == f"folder {folder} holds 0 DICOM series, but must hold one; give that folder"


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.ones((8, 8)), "is 2D (shape (8, 8)), but a 3D volume is needed"),
        (np.ones((8, 8, 1)), "is 2D"),
        (np.ones((4, 4, 4, 2)), "has 4 axes (shape (4, 4, 4, 2)), but 3 are needed"),
        (np.zeros((0, 4, 4)), "is empty"),
        (np.full((4, 4, 4), 7.0), "holds one value only (7), so there is nothing to segment"),
        (np.where(np.arange(64).reshape(4, 4, 4) == 9, np.nan, 1.0), "holds NaN or infinite values"),
    ],
)
def test_an_image_that_is_no_volume(
    refused: Refused, write_volume: Callable[[str, np.ndarray], Path], array: np.ndarray, message: str
) -> None:
    path = write_volume("odd.nii.gz", array)
    sentence = refused(image=path)
    assert sentence.startswith(str(path))
    assert message in sentence


def test_a_prompt_that_nobody_understands(refused: Refused) -> None:
    assert refused(text="splen").startswith("'splen' is not a known structure; did you mean 'spleen'")
    assert refused(text="flux; qzx").startswith("none of the 2 phrases is understood: 'flux' is not a known structure")
    assert "\x1b" not in refused(text="\x1b[2Jqq")
    assert refused(text=" ;").startswith("the prompt is empty; name at least one structure")
    assert refused(text="liver;" * 1000).startswith("the prompt has 6000 characters")


def test_an_unknown_department(refused: Refused) -> None:
    assert refused("--department", "belly").startswith("department 'belly' is unknown; choose one of brain, ")
    sentence = refused("--department", "thorax")
    assert sentence == "'liver' belongs to abdomen, not to thorax; choose abdomen or auto"


def test_a_structure_that_no_expert_was_trained_on(refused: Refused) -> None:
    assert refused(text="colon") == (
        "no expert was trained on colon (experts exist for: thorax, abdomen); train one, or ask for another structure"
    )


def test_a_department_without_expert(refused: Refused) -> None:
    assert refused(text="L3 vertebra").startswith("no expert was trained on L3 vertebra (experts exist for: thorax,")


def test_a_store_that_is_empty_or_not_there(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "experts exist for: no department" in refused(folder=tmp_path / "empty")
    assert refused(folder=tmp_path / "no") == f"store {tmp_path / 'no'} is not a folder that exists; check --store"


def test_an_expert_of_another_base(
    refused: Refused, store: ExpertStore, tmp_path: Path, tiny_base: Base, make_expert: Callable[..., Expert]
) -> None:
    other = ExpertStore(tmp_path / "other")
    foreign = replace(tiny_base, weights={name: tensor + 1 for name, tensor in tiny_base.weights.items()})
    other.publish_base(foreign)
    other.publish(make_expert(base_sha256=foreign.sha256))
    store.path("abdomen").write_bytes(other.path("abdomen").read_bytes())
    sentence = refused()
    assert foreign.sha256[:12] in sentence
    assert tiny_base.sha256[:12] in sentence
    assert sentence.endswith("add that base")


@pytest.mark.parametrize("name", ["abdomen", "base"])
def test_a_truncated_file_in_the_store(refused: Refused, store: ExpertStore, name: str) -> None:
    path = store.path(name)
    data = path.read_bytes()
    for length in (0, 100, len(data) - 1):
        path.write_bytes(data[:length])
        assert refused().startswith(f"{path} is damaged (")


def test_damage_in_another_department_does_no_harm(lorkd: Callable, here: Path, store: ExpertStore, ct: Path) -> None:
    store.path("thorax").write_bytes(b"")
    assert lorkd("segment", ct, "--text", "liver", "--store", store.folder).status == 0
    assert (here / "ct_lorkd.nii.gz").exists()


def test_an_output_that_can_not_be(refused: Refused, here: Path, ct: Path) -> None:
    assert refused("--output", "no/labels.nii.gz") == "folder no of labels.nii.gz does not exist; make it first"
    (here / "labels.nii.gz").write_text("precious")
    assert refused("--output", "labels.nii.gz").startswith("labels.nii.gz exists already; name another file")
    (here / "ct_lorkd.nii.gz").write_text("precious")
    assert refused().startswith("ct_lorkd.nii.gz exists already; name another file with --output, or overwrite it with")
    assert refused("--output", "labels.png") == (
        "output labels.png must end in one of .nii.gz, .nii, .nrrd, .mha; choose one of these"
    )
    assert refused("--output", ct, "--force") == f"output {ct} is the image itself; name another file"
    (here / "folder.nii").mkdir()
    assert refused("--output", "folder.nii", "--force") == "folder.nii is a folder; name a file in it"


def test_an_unknown_device(refused: Refused) -> None:
    assert refused("--device", "abacus").startswith("device 'abacus' is unknown to torch; use --device cpu")
    assert refused("--device", "cuda:77").startswith("device 'cuda:77' is not there (")


def test_wrong_options(refused: Refused) -> None:
    assert refused("--modality", "pet").startswith("argument --modality: invalid choice: 'pet'")
    assert refused("--colour", "red") == "unrecognized arguments: --colour red; see lorkd --help"


def test_a_gpu_with_too_little_memory(refused: Refused, ct: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2 GiB")

    monkeypatch.setattr("monai.inferers.utils.sliding_window_inference", full)
    assert refused().endswith(
        "needs more memory than there is, even in windows of 4 x 4 x 4; crop it, or name fewer structures"
    )
