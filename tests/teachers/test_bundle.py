"""Tests of lorkd_monailabel.teachers.bundle and bundle_settings."""

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lorkd_monailabel.teachers import archives
from lorkd_monailabel.teachers.bundle import BundleTeacher
from lorkd_monailabel.teachers.bundle_settings import settings_of
from tests.teachers.conftest import DEFINITION

Make = Callable[..., Path]
IMAGE = torch.linspace(-3, 3, 6 * 5 * 8).reshape(1, 6, 5, 8)


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_a_bundle_is_its_network_and_nothing_else_of_it_runs(make_bundle: Make, tmp_path: Path, kind: str) -> None:
    from monai.networks.nets import UNet

    path = make_bundle(kind=kind)
    teacher = BundleTeacher(path)
    assert teacher.channels.structures == {"liver": (1,), "left kidney": (2,)}
    assert (teacher.channels.activation, teacher.channels.modalities) == ("softmax", ("ct",))
    assert teacher.channels.intensities == (-50, 150, 0, 1)
    assert (teacher.channels.spacing_mm, teacher.channels.multiple_of) == ((3.0, 3.0, 3.0), 32)
    network = UNet(**{key: value for key, value in DEFINITION.items() if key != "_target_"})
    state = torch.load(tmp_path / "bundle/models/model.pt", weights_only=True)
    network.load_state_dict(state)
    x = ((IMAGE * 200 + 50).clamp(-50, 150) + 50) / 200
    padded = torch.nn.functional.pad(x[None], (0, 24, 0, 27, 0, 26), mode="replicate")
    with torch.no_grad():
        expected = network.eval()(padded)[0, :, :6, :5, :8].softmax(dim=0)
        found = teacher(IMAGE, ["left kidney", "spleen", "liver"], "ct")
    torch.testing.assert_close(found[[0, 2]], expected[[2, 1]])
    assert found[1].isnan().all()
    assert not (tmp_path / "ran").exists()


def test_a_torchscript_in_a_bundle_comes_first(make_bundle: Make, script: Callable[..., Path], tmp_path: Path) -> None:
    bundle = make_bundle(weights=False)
    with pytest.raises(ValueError, match=r"has neither models/model\.ts nor models/model\.pt"):
        BundleTeacher(bundle)
    script(bundle / "models/model.ts")
    found = BundleTeacher(bundle)(torch.zeros(1, 4, 4, 4), ["liver"], "ct")
    e = torch.tensor(0.5).exp()  # 50 Hounsfield units lie in the middle of -50..150
    torch.testing.assert_close(found, torch.full((1, 4, 4, 4), float(e / (1 + e + e * e))))
    assert not (tmp_path / "ran").exists()


def test_yaml_is_read_as_data(make_bundle: Make, tmp_path: Path) -> None:
    bundle = make_bundle()
    config = bundle / "configs/inference.json"
    (bundle / "configs/inference.yaml").write_text(config.read_text(encoding="utf-8"))  # JSON is YAML
    config.unlink()
    assert BundleTeacher(bundle).channels.intensities == (-50, 150, 0, 1)
    (bundle / "configs/inference.yaml").write_text(f"a: !!python/object/apply:os.system ['touch {tmp_path}/ran']")
    with pytest.raises(ValueError, match=r"inference\.yaml of .* can't be read"):
        BundleTeacher(bundle)
    (bundle / "configs/inference.yaml").write_text("a: &x [1]\nb: [*x, *x]")
    with pytest.raises(ValueError, match="it has aliases"):
        BundleTeacher(bundle)
    assert not (tmp_path / "ran").exists()


EVIL = "$__import__('os').system('touch {}')"


@pytest.mark.parametrize(
    ("definition", "sentence"),
    [
        ({**DEFINITION, "norm": EVIL}, "network_def::norm of .* which would have to be run; export"),
        ({**DEFINITION, "strides": [EVIL]}, "network_def::strides::0 of .* would have to be run"),
        ({**DEFINITION, "_target_": EVIL}, "network_def::_target_ of .* would have to be run"),
        ({**DEFINITION, "channels": "@channels"}, "network_def::channels of .* '@channels'"),
        ({**DEFINITION, "norm": "%other.json::norm"}, "network_def::norm of .* would have to be run"),
        ({**DEFINITION, "act": {"_target_": "os.system"}}, "network_def::act::_target_ of .* more than the network"),
        ({**DEFINITION, "_mode_": "debug"}, "network_def::_mode_ of .* more than the network"),
        ({"_target_": "os.system", "command": "touch {}"}, "'os.system', no class of monai.networks.nets"),
        ({"_target_": "monai.networks.nets.torch.os.system"}, "no class of monai.networks.nets"),
        ({"_target_": "monai.bundle.run"}, "no class of monai.networks.nets"),
        ({"_target_": {"a": "UNet"}}, "no class of monai.networks.nets"),
        ({"_target_": "resnet50", "pretrained": True}, "network_def::pretrained of .* fetch weights"),
        ({**DEFINITION, "channels": [4, 10**9]}, "above 65536"),
        ({**DEFINITION, "channels": [4, 60_000]}, "it has [0-9,]+ numbers, models/model.pt has"),
        ({**DEFINITION, "chanels": 3}, "makes no UNet"),
        ({**DEFINITION, "act": "tanh", "norm": "batch"}, "does not fit its network_def|has [0-9,]+ numbers"),
    ],
)
def test_a_hostile_definition_is_refused_and_nothing_runs(
    make_bundle: Make, tmp_path: Path, definition: dict[str, Any], sentence: str
) -> None:
    text = json.dumps(definition).replace("{}", str(tmp_path / "ran"))
    with pytest.raises(ValueError, match=sentence) as caught:
        BundleTeacher(make_bundle(definition=json.loads(text)))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "ran").exists()


def test_hostile_weights_and_archives_are_refused(
    make_bundle: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            import os

            return os.system, (f"touch {tmp_path / 'ran'}",)

    bundle = make_bundle()
    torch.save({"model": Evil()}, bundle / "models/model.pt")
    with pytest.raises(ValueError, match="asks to run"):
        BundleTeacher(bundle)
    (bundle / "models/model.pt").write_bytes(b"")
    with pytest.raises(ValueError, match=r"model\.pt"):
        BundleTeacher(bundle)
    path = make_bundle("zipped", kind="zip")
    whole = path.read_bytes()
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("../out.txt", "x")
    with pytest.raises(ValueError, match=r"'\.\./out\.txt', a path out of the archive"):
        BundleTeacher(path)
    path.write_bytes(whole)
    monkeypatch.setattr(archives, "SMALL_BYTES", 1000)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zipped/docs/README.md", bytes(10**6))
    with pytest.raises(ValueError, match="would unpack to"):
        BundleTeacher(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("notes.txt", "x")
    with pytest.raises(ValueError, match=r"is no MONAI Bundle, for it has no configs/metadata\.json"):
        BundleTeacher(path)
    assert not (tmp_path / "ran").exists()
    assert {file.name for file in tmp_path.iterdir()} == {"bundle", "zipped", "zipped.zip"}


def test_what_a_bundle_leaves_open_is_asked_for_and_said_beside_it(make_bundle: Make) -> None:
    bundle = make_bundle(config={"preprocessing": {"_target_": "Compose", "transforms": "$@other"}})
    with pytest.raises(ValueError, match=r"\(or bundle\.json beside it\) does not say its intensities"):
        BundleTeacher(bundle)
    beside = bundle.with_name("bundle.json")
    beside.write_text(json.dumps({"intensities": "hounsfield", "channels": {"2": "heart"}, "spacing_mm": None}))
    channels = BundleTeacher(bundle).channels
    assert (channels.intensities, channels.structures, channels.spacing_mm) == ("hounsfield", {"heart": (2,)}, None)


def test_settings_of_bundles_as_they_are_published() -> None:
    def formats(image: dict[str, Any], channels: dict[str, str]) -> dict[str, Any]:
        return {
            "network_data_format": {"inputs": {"image": image}, "outputs": {"pred": {"channel_def": channels}}},
        }

    prostate = formats({"modality": "MR", "spatial_shape": ["8*n"] * 3}, {"0": "prostate"})
    assert settings_of(prostate, {}) == {
        "channels": {"0": "prostate"},
        "activation": "sigmoid",
        "modality": "mri",
        "multiple_of": 8,
        "intensities": "z_score",
    }
    air = formats({"modality": "CT", "value_range": [-1000, 1000]}, {"0": "background", "1": "liver"})
    assert settings_of(air, {}) == {
        "channels": {"0": "background", "1": "liver"},
        "activation": "softmax",
        "modality": "ct",
        "intensities": "hounsfield",
    }
    expressions = {"preprocessing": {"transforms": [{"_target_": "ScaleIntensityRanged", "a_min": "$1", "clip": True}]}}
    assert "intensities" not in settings_of(air, expressions)
    with pytest.raises(ValueError, match="images of 4 channels"):
        settings_of(formats({"num_channels": 4}, {}), {})
    turned = {"preprocessing": {"transforms": [{"_target_": "Orientationd", "axcodes": "LPS"}]}}
    with pytest.raises(ValueError, match="orientation 'LPS'"):
        settings_of(air, turned)
    assert settings_of({"network_data_format": [1]}, {"preprocessing": 3}) == {}


def test_probabilities_need_no_activation() -> None:
    """As the bundles of ``lorkd export`` say of their output."""
    pred = {"type": "probabilities", "channel_def": {"0": "background", "1": "liver"}}
    metadata = {"network_data_format": {"inputs": {"image": {"modality": "CT"}}, "outputs": {"pred": pred}}}
    assert settings_of(metadata, {})["activation"] == "none"
    del pred["type"]
    assert settings_of(metadata, {})["activation"] == "softmax"
