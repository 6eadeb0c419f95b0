"""Tests of the decomposition by teachers of others, from a config to a store."""

import json
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lorkd_monailabel.experts import fused_network
from lorkd_monailabel.intensities import normalise
from lorkd_monailabel.learning.losses import transfer_loss
from lorkd_monailabel.networks.segmenter import SIZES, build_segmenter
from lorkd_monailabel.store import ExpertStore
from lorkd_monailabel.text_encoder import QueryTable
from lorkd_monailabel.volumes import read_volume
from train import decompose, finetune, pretrain

WriteCase = Callable[..., dict[str, Any]]
WriteList = Callable[[list[Any]], Path]
STRUCTURES = {"spleen": ("abdomen", [2])}


def labels() -> np.ndarray:
    array = np.zeros((12, 12, 12), dtype=np.int16)
    array[2:5, 2:8, 3:6], array[7:10, 4:8, 3:8] = 1, 2
    return array


@pytest.fixture
def cases(tmp_path: Path) -> Path:
    """The list that each test writes."""
    return tmp_path / "cases.jsonl"


@pytest.fixture
def arguments(arguments: Callable[..., list[str]]) -> Callable[..., list[str]]:
    """Make the arguments of a recipe, with the toy config if none is named."""

    def make(config: str = "toy.toml", **changed: object) -> list[str]:
        own: dict[str, object] = {"data__patch": "[8, 8, 12]"}
        if config == "toy.toml":
            own |= {"foundation": "", "warmup_steps": 0, "learning_rate": 1e-2, "expert_learning_rate": 1e-2}
        return arguments(config, **{**own, **changed})

    return make


Arguments = Callable[..., list[str]]


class Bright(nn.Module):
    """A logit of 8 (x - 1/2): of the liver, where the image is bright."""

    def forward(self, image: Tensor) -> Tensor:
        """Map the image."""
        return 8 * (image - 0.5)


def write_bundle(path: Path, *, pixdim: float = 3.0) -> Path:
    scale = {"_target_": "ScaleIntensityRanged", "a_min": 0, "a_max": 100, "b_min": 0, "b_max": 1, "clip": True}
    spacing = {"_target_": "Spacingd", "pixdim": [pixdim] * 3}
    config = {
        "run": [f"$__import__('os').system('touch {path.parent / 'ran'}')"],
        "preprocessing": {"_target_": "Compose", "transforms": [scale, spacing]},
    }
    image = {"modality": "CT", "num_channels": 1, "spatial_shape": ["4*n", "4*n", "4*n"], "value_range": [0, 1]}
    outputs = {"pred": {"channel_def": {"0": "liver"}}}
    metadata = {"network_data_format": {"inputs": {"image": image}, "outputs": outputs}}
    script = path.parent / "model.ts"
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`torch.jit", category=DeprecationWarning)
        torch.jit.save(torch.jit.script(Bright().eval()), str(script))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("configs/metadata.json", json.dumps(metadata))
        archive.writestr("configs/inference.json", json.dumps(config))
        archive.write(script, "models/model.ts")
    return path


def distances(store: ExpertStore, image: Path, probabilities: Tensor) -> tuple[float, float]:
    """The transfer loss of the liver in the first patch of an image, of a new network and of the published expert."""
    table = store.queries(store.base().query_space)
    x = torch.from_numpy(normalise(read_volume(image, "ct").array, "ct"))[None, None]
    torch.manual_seed(0)
    found = []
    for network in (build_segmenter("tiny").eval(), fused_network(store.base(), store.load("abdomen"))):
        with torch.no_grad():
            logits = network(x, table.queries(["liver"], "ct"))
        found.append(transfer_loss(logits, probabilities[None, None]).item())
    return found[0], found[1]


def test_a_bundle_teaches_against_the_labels(
    tmp_path: Path, write_case: WriteCase, write_list: WriteList, arguments: Arguments
) -> None:
    # The liver is annotated, as absent; the bundle sees it where the image has 100 Hounsfield units and more.
    write_list([write_case(labels(), {**STRUCTURES, "liver": ("abdomen", [9])})])
    bundle = write_bundle(tmp_path / "bright.zip")
    assert decompose.main(arguments(teacher=bundle, steps=60, beta=30)) == 0
    store = ExpertStore(tmp_path / "store")
    about = store.header("base")["about"]
    assert (about["teacher"]["kind"], about["teacher"]["name"]) == ("bundle", "bright.zip")
    assert str(tmp_path) not in json.dumps(store.header("base"))
    assert store.base().window == (8, 8, 12)
    image = tmp_path / "case_image.nii.gz"
    told = torch.from_numpy(read_volume(image, "ct").array).clamp(0, 100) / 100
    before, after = distances(store, image, (8 * (told - 0.5)).sigmoid())
    assert after < before / 5
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("form", ["label volume", "folder"])
def test_masks_made_before_teach_what_nobody_labelled(
    tmp_path: Path, write_case: WriteCase, write_list: WriteList, arguments: Arguments, form: str
) -> None:
    import nibabel

    line = write_case(labels(), STRUCTURES)
    told: dict[str, Any] = {"path": line["label"], "values": {"liver": [1]}}
    if form == "folder":
        (tmp_path / "preds").mkdir()
        mask = (labels() == 1).astype(np.uint8)
        nibabel.save(nibabel.Nifti1Image(mask, np.diag([3.0, 3, 3, 1])), tmp_path / "preds/liver.nii.gz")
        told = {"folder": "preds"}
    write_list([{**line, "teacher": told}])
    assert decompose.main(arguments(teacher="precomputed", steps=60, beta=30)) == 0
    store = ExpertStore(tmp_path / "store")
    assert store.header("base")["about"]["teacher"] == {"kind": "precomputed"}
    assert store.header("abdomen")["structures"] == ["spleen", "liver"]
    before, after = distances(store, tmp_path / "case_image.nii.gz", torch.from_numpy(labels() == 1).float())
    assert after < before / 5
    # Others than a run that asks for the teacher's masks don't look at them.
    (tmp_path / "case_label.nii.gz").touch()
    assert finetune.main(arguments("finetune.toml", steps=1, department="abdomen")) == 0
    assert store.header("abdomen")["structures"] == ["spleen", "liver"]


def test_a_teacher_that_does_not_go_with_the_run_is_one_sentence(
    tmp_path: Path,
    write_case: WriteCase,
    write_list: WriteList,
    arguments: Arguments,
    capsys: pytest.CaptureFixture[str],
) -> None:
    line = write_case(labels(), STRUCTURES)
    write_list([line])
    bundle = write_bundle(tmp_path / "bright.zip", pixdim=1.5)
    wrong: list[tuple[dict[str, object], str]] = [
        ({}, "config keys teacher and foundation are one setting and none is given; set teacher alone"),
        ({"teacher": bundle, "foundation": "f.safetensors"}, "both is given; set teacher alone"),
        ({"teacher": "precomputed"}, "has a teacher; add one to its lines or name another teacher"),
        ({"teacher": tmp_path / "none.zip"}, "none.zip is no archive that can be read"),
        ({"teacher": tmp_path / "model.pth"}, "model.pth is no teacher that can be loaded"),
        ({"teacher": bundle}, "was trained on (1.5, 1.5, 1.5) mm, abdomen has (3.0, 3.0, 3.0); set data.spacing_mm"),
        ({"teacher": bundle, "data.intensities": "sat"}, "needs Hounsfield units, which 'sat' intensities of ct"),
        ({"teacher": bundle, "data.intensities": "none"}, "none"),
        ({"teacher": bundle, "data.spacing_mm.default": "[3, 3]"}, "[3.0, 3.0] must be one number or three"),
        ({"teacher": bundle, "data.spacing_mm.default": 2, "data.patch": "[8, 8]"}, "must be one number or three"),
        ({"teacher": bundle, "queries": tmp_path / "none.safetensors"}, "query table"),
    ]
    for changed, sentence in wrong:
        assert decompose.main(arguments(steps=1, **changed)) == 2
        error = capsys.readouterr().err
        assert sentence in error.splitlines()[-1]
        assert "Traceback" not in error
    write_list([{**line, "teacher": {"folder": "none"}}])
    assert decompose.main(arguments(teacher="precomputed")) == 2
    assert "case 'case' of synthetic: the teacher's folder" in capsys.readouterr().err
    assert not (tmp_path / "store").exists()


def test_another_query_table_and_sats_intensities_go_all_the_way(
    tmp_path: Path, write_case: WriteCase, write_list: WriteList, arguments: Arguments, capsys: Any
) -> None:
    write_list([write_case(labels(), STRUCTURES)])
    generator = torch.Generator().manual_seed(0)

    def encode(texts: Any) -> Tensor:
        return torch.randn(len(texts), 8, generator=generator)

    table = QueryTable.build([f"name {number}" for number in range(9)] + ["spleen"], encode, encoder="random")
    table.save(tmp_path / "table.safetensors")
    other = {"queries": tmp_path / "table.safetensors", "data__intensities": "sat", "data__patch": "[8, 8, 12]"}
    assert pretrain.main(arguments("default_foundation.toml", steps=1, **other)) == 0
    path = tmp_path / "run/foundation.safetensors"
    spacing = {"data__spacing_mm": "{ default = [3, 3, 4] }"}
    assert decompose.main(arguments(teacher=path, steps=2, **other, **spacing)) == 0
    store = ExpertStore(tmp_path / "store")
    base = store.base()
    assert (base.query_space, base.intensities, base.window) == (table.space, "sat", (8, 8, 12))
    assert base.network["query_dim"] == 8
    assert SIZES["tiny"]["query_dim"] == 384
    assert store.load("abdomen").spacing_mm == (3.0, 3.0, 4.0)
    assert store.queries(table.space).names == table.names
    assert finetune.main(arguments("finetune.toml", steps=1, department="abdomen")) == 0
    assert store.load("abdomen").spacing_mm == (3.0, 3.0, 4.0)
    capsys.readouterr()
    assert decompose.main(arguments(teacher=path, steps=2, start=store.folder, data__intensities="sat")) == 2
    assert "was trained with another query table" in capsys.readouterr().err
