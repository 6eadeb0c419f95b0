"""Tests of lorkd_monailabel.exports.bundle: stock MONAI and MONAI Label run it and give what Predictor gives."""

import json
import math
import subprocess
import sys
import types
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser

from lorkd_monailabel import masks
from lorkd_monailabel import predictor as predictor_module
from lorkd_monailabel.departments import structure
from lorkd_monailabel.experts import Base, Expert
from lorkd_monailabel.exports.bundle_config import inference_config
from lorkd_monailabel.exports.formats import export
from lorkd_monailabel.exports.subject import Subject
from lorkd_monailabel.predictor import Predictor
from lorkd_monailabel.prompts import Target
from lorkd_monailabel.store import ExpertStore
from lorkd_monailabel.text_encoder import QueryTable
from lorkd_monailabel.volumes import canonical_image, read_volume

# Python that can't import this package, wherever it is installed, and has neither folder of it on its path.
ALONE = """
import runpy, sys
class Without:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "lorkd_monailabel":
            raise ImportError("lorkd_monailabel is not to be had")
sys.meta_path.insert(0, Without())
sys.argv = ["monai.bundle", *sys.argv[1:]]
runpy.run_module("monai.bundle", run_name="__main__")
"""
TENSOR_KEYS = {"type", "format", "num_channels", "spatial_shape", "dtype", "value_range"}
TOLERANCE = 1e-4
pytestmark = pytest.mark.filterwarnings(
    # of MONAI's readers of DICOM, which every LoadImage makes
    "ignore:nvImageCodec is not available",
    "ignore:NvImgCodecPydicomReader",
)


def images(folder: Path, modality: str) -> list[Path]:
    """Two oblique volumes, axes permuted and flipped: one of several windows, one thinner than a window."""
    turn = math.radians(20)
    rotation = np.array([[math.cos(turn), -math.sin(turn), 0], [math.sin(turn), math.cos(turn), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = rotation @ np.array([[0, -1, 0], [0, 0, 1], [1, 0, 0]]) @ np.diag([3.0, 2.5, 3.3])
    affine[:3, 3] = [10, -20, 30]
    generator = np.random.default_rng(0)
    folder.mkdir()
    paths = []
    for name, shape in (("several", (11, 13, 12)), ("thin", (5, 12, 7))):
        array = generator.normal(0, 400, shape)
        if modality == "mri":
            array = np.maximum(array, 0)
            array[:3] = 0
        paths.append(folder / f"{name}.nii.gz")
        nibabel.save(nibabel.Nifti1Image(array.astype(np.float32), affine), paths[-1])
    return paths


@pytest.fixture
def store(tmp_path: Path, tiny_base: Base, expert: Expert) -> ExpertStore:
    """The tiny base and its expert of the abdomen, published."""
    store = ExpertStore(tmp_path / "store")
    store.publish_base(tiny_base)
    store.publish(expert)
    return store


@pytest.fixture
def predicted(store: ExpertStore, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], np.ndarray]:
    """Label map of a CT by Predictor, in float32."""
    monkeypatch.setattr(masks, "has_fast_bf16", lambda device: False)
    asked = [Target(name, structure(name)) for name in ("liver", "spleen")]
    return lambda path: Predictor(store).segment(read_volume(path, "ct"), asked).label_map.array


def parser(bundle: Path) -> ConfigParser:
    config = ConfigParser()
    config.read_config(bundle / "configs" / "inference.json")
    config["bundle_root"] = str(bundle)
    return config


def test_stock_monai_gives_what_predictor_gives(write, predicted, tmp_path: Path) -> None:
    bundle, found = write("bundle")
    assert found.difference == 0
    paths = images(tmp_path / "images", "ct")
    words = ["run", "--config_file", "configs/inference.json", "--dataset_dir", paths[0].parent, "--output_dir"]
    command = [sys.executable, "-P", "-c", ALONE, *map(str, words), str(tmp_path / "out")]
    done = subprocess.run(command, cwd=bundle, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    for path in paths:
        image = nibabel.load(tmp_path / "out" / path.name.replace(".nii.gz", "_seg.nii.gz"))
        assert image.get_data_dtype() == np.uint8
        np.testing.assert_allclose(image.affine, nibabel.load(path).affine, atol=1e-5)
        labels, expected = np.asarray(image.dataobj), predicted(path)
        assert np.array_equal(labels, expected)
        assert set(np.unique(expected)) == {0, 1, 2}


@pytest.mark.parametrize(
    ("intensities", "modality"), [("fixed", "ct"), ("fixed", "mri"), ("sat", "ct"), ("sat", "mri")]
)
def test_the_network_sees_what_predictors_sees(
    intensities: str, modality: str, tiny_base: Base, expert: Expert, table: QueryTable, tmp_path: Path
) -> None:
    base = replace(tiny_base, intensities=intensities)
    config = ConfigParser(inference_config(Subject(base, expert, table, modality)))
    before = config.get_parsed_content("preprocessing")
    for path in images(tmp_path / "images", modality):
        given = before({"image": str(path)})["image"]
        expected, grid = canonical_image(read_volume(path, modality), expert.spacing_mm, intensities)
        torch.testing.assert_close(given.as_tensor(), expected, atol=TOLERANCE, rtol=0)
        np.testing.assert_allclose(given.affine, grid.affine, atol=TOLERANCE)


def test_probabilities_on_the_source_grid(write, store: ExpertStore, tmp_path: Path, monkeypatch) -> None:
    seen: dict[str, tuple[np.ndarray, Any]] = {}

    class Merging(predictor_module.Merging):
        def add(self, segment: Any, probability: np.ndarray, part: Any = None) -> None:
            seen[segment.structure.name] = probability, part
            super().add(segment, probability, part)

    monkeypatch.setattr(predictor_module, "Merging", Merging)
    monkeypatch.setattr(masks, "has_fast_bf16", lambda device: False)
    (path, _), (bundle, _) = images(tmp_path / "images", "ct"), write("bundle")
    Predictor(store).segment(read_volume(path, "ct"), [Target("", structure(name)) for name in ("liver", "spleen")])
    config = parser(bundle)
    with pytest.warns(DeprecationWarning, match=r"torch.jit.load"):
        network = config.get_parsed_content("network")
    data = config.get_parsed_content("preprocessing")({"image": str(path)})
    data["pred"] = config.get_parsed_content("inferer")(data["image"][None], network)[0]
    back = config.get_parsed_content("postprocessing").transforms[0](data)["pred"]
    assert back.shape == (3, 11, 13, 12)
    for channel, (expected, part) in zip(back[1:], (seen["liver"], seen["spleen"]), strict=True):
        np.testing.assert_allclose(np.asarray(channel)[part], expected, atol=TOLERANCE)
        beyond = np.array(channel)
        beyond[part] = 0
        assert 0 < expected.size
        assert beyond.max() <= 0.5 + TOLERANCE


@pytest.mark.filterwarnings("ignore:`torch.jit.load`:DeprecationWarning")
def test_monai_label_runs_it(write, predicted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # MONAI Label draws grids of pictures with torchvision, which is not always one that fits the torch that is here
    pictures = types.ModuleType("torchvision.utils")
    monkeypatch.setattr(pictures, "make_grid", None, raising=False)
    monkeypatch.setattr(pictures, "save_image", None, raising=False)
    monkeypatch.setitem(sys.modules, "torchvision", types.ModuleType("torchvision"))
    monkeypatch.setitem(sys.modules, "torchvision.utils", pictures)
    from monailabel.tasks.infer.bundle import BundleInferTask

    bundle, _ = write("bundle")
    task = BundleInferTask(str(bundle), {})
    assert task.is_valid()
    assert task.info()["labels"] == {"liver": 1, "spleen": 2}
    assert task.info()["version"] == "7.0.0"
    for path in images(tmp_path / "images", "ct"):
        # all but MONAI Label's writer, which needs an itk that does not crash beside others
        _, data = task({"image": str(path), "device": "cpu", "skip_writer": True})
        assert np.array_equal(np.asarray(data["pred"]), predicted(path))


def test_metadata_is_what_monais_schema_wants(write, tiny_base: Base) -> None:
    """Required keys and types of meta_schema_20240725.json, which can't be fetched here."""
    bundle, _ = write("bundle")
    metadata = json.loads((bundle / "configs" / "metadata.json").read_text(encoding="utf-8"))
    texts = {"schema", "version", "monai_version", "pytorch_version", "numpy_version", "task", "description", "authors"}
    texts |= {"copyright", "data_source", "data_type", "image_classes", "pred_classes", "intended_use"}
    assert {key for key in texts if not isinstance(metadata.get(key), str)} == set()
    tables = ("changelog", "required_packages_version", "eval_metrics", "network_data_format")
    assert [key for key in tables if not isinstance(metadata.get(key), dict)] == []
    assert metadata["changelog"][metadata["version"]]
    (image,) = metadata["network_data_format"]["inputs"].values()
    (pred,) = metadata["network_data_format"]["outputs"].values()
    for tensor in (image, pred):
        assert set(tensor) >= TENSOR_KEYS
        assert all(type(length) is int for length in tensor["spatial_shape"])
        assert all(isinstance(end, int | float) for end in tensor["value_range"])
    assert pred["channel_def"] == {"0": "background", "1": "liver", "2": "spleen"}
    assert pred["num_channels"] == 3
    assert metadata["copyright"] == "Licence of the weights: CC BY 4.0."
    assert (bundle / "LICENSE").read_text(encoding="utf-8").startswith("Licence of the weights: CC BY 4.0.")


@pytest.mark.filterwarnings("ignore:`torch.jit.load`:DeprecationWarning")
def test_monais_own_check_of_input_and_output(write, monkeypatch: pytest.MonkeyPatch) -> None:
    from monai.bundle import verify_net_in_out

    bundle, _ = write("bundle")
    monkeypatch.chdir(bundle)
    verify_net_in_out("network_def", meta_file="configs/metadata.json", config_file="configs/inference.json")


def test_files_of_a_bundle_in_half_precision(write) -> None:
    bundle, found = write("bundle", "float16")
    files = ["LICENSE", "configs/inference.json", "configs/metadata.json", "docs/README.md", "models/model.ts"]
    assert [path.relative_to(bundle).as_posix() for path in found.files] == files
    assert 1e-6 < found.difference < 2e-3
    card = (bundle / "docs" / "README.md").read_text(encoding="utf-8")
    assert "python -m monai.bundle run --config_file configs/inference.json" in card
    assert "3 x 4 bytes a voxel" in card


@pytest.mark.filterwarnings("ignore:`torch.jit.load`:DeprecationWarning")
@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_network_is_tied_to_no_device(dtype: str, write) -> None:
    network = torch.jit.load(write("bundle", dtype)[0] / "models" / "model.ts")
    lines = [line for module in network.modules() if hasattr(module, "code") for line in module.code.splitlines()]
    assert any("torch.type_as(" in line for line in lines)
    assert [line for line in lines if "device(" in line and "torch.arange(" not in line] == []


def test_more_than_255_structures_need_two_bytes(tiny_base: Base, expert: Expert, table: QueryTable) -> None:
    names = table.names * 2
    config = inference_config(Subject(tiny_base, replace(expert, structures=names), table, "ct"))
    assert config["postprocessing"]["transforms"][-1]["output_dtype"] == "$np.uint16"


def test_an_mri_bundle_has_the_queries_of_mri(
    tiny_base: Base, expert: Expert, table: QueryTable, tmp_path: Path
) -> None:
    export(tiny_base, expert, table, tmp_path / "mri", form="bundle", modality="mri")
    with pytest.warns(DeprecationWarning, match=r"torch.jit.load"):
        network = torch.jit.load(tmp_path / "mri" / "models" / "model.ts")
    assert torch.equal(dict(network.named_buffers())["queries"], table.queries(("liver", "spleen"), "mri"))
    metadata = json.loads((tmp_path / "mri" / "configs" / "metadata.json").read_text(encoding="utf-8"))
    assert metadata["network_data_format"]["inputs"]["image"]["modality"] == "MR"
