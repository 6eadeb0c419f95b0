"""What tests of teachers share: a network that finds what is bright, and files that hold it."""

import json
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

BESIDE = {"channels": ["background", "liver", "spleen"], "activation": "softmax", "modality": "ct"}
BESIDE |= {"intensities": {"from": [-50, 150], "to": [0, 1]}, "multiple_of": 4}


class Bright(nn.Module):
    """Logits 0, x and 2 x of an image (1, 1, X, Y, Z); refuses lengths that are no multiples of 4."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(1, 3, 1, bias=False)
        self.conv.weight.data[:] = torch.tensor([0.0, 1.0, 2.0]).reshape(3, 1, 1, 1, 1)

    def forward(self, image: Tensor) -> Tensor:
        """Map the image."""
        down = torch.nn.functional.avg_pool3d(image, 4)
        up = torch.nn.functional.interpolate(down, scale_factor=4.0)
        return self.conv(image + 0 * up)


def save_script(path: Path, network: nn.Module | None = None) -> Path:
    """Write a TorchScript."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`torch.jit", category=DeprecationWarning)
        torch.jit.save(torch.jit.script((network or Bright()).eval()), str(path))
    return path


@pytest.fixture
def script() -> Callable[..., Path]:
    """Write a TorchScript of ``Bright``."""
    return save_script


@pytest.fixture
def beside() -> Callable[..., Path]:
    """Write the JSON file beside a teacher; None takes a key away."""

    def write(path: Path, **changed: Any) -> Path:
        file = path.with_name(f"{path.name}.json")
        record = {key: value for key, value in {**BESIDE, **changed}.items() if value is not None}
        file.write_text(json.dumps(record), encoding="utf-8")
        return file

    return write


DEFINITION = {
    "_target_": "UNet",
    "spatial_dims": 3,
    "in_channels": 1,
    "out_channels": 3,
    "channels": [4, 8],
    "strides": [2],
    "num_res_units": 1,
    "norm": "instance",
}


@pytest.fixture
def make_bundle(tmp_path: Path) -> Callable[..., Path]:
    """Write a MONAI Bundle as its model zoo has them: expressions all over its config, but none in the network."""

    def make(
        name: str = "bundle",
        *,
        definition: dict[str, Any] | None = None,
        config: dict[str, Any] | None = None,
        metadata: dict[str, Any] | None = None,
        kind: str = "folder",
        weights: bool = True,
    ) -> Path:
        from monai.networks.nets import UNet

        folder = tmp_path / name
        (folder / "configs").mkdir(parents=True)
        (folder / "models").mkdir()
        marker = f"$__import__('os').system('touch {tmp_path / 'ran'}')"
        preprocessing = {
            "_target_": "Compose",
            "transforms": [
                {"_target_": "LoadImaged", "keys": "image"},
                {"_target_": "Orientationd", "keys": "image", "axcodes": "RAS"},
                {"_target_": "Spacingd", "keys": "image", "pixdim": [3.0, 3.0, 3.0], "mode": "bilinear"},
                {
                    "_target_": "ScaleIntensityRanged",
                    "keys": "image",
                    "a_min": -50,
                    "a_max": 150,
                    "b_min": 0.0,
                    "b_max": 1.0,
                    "clip": True,
                },
            ],
        }
        inference = {
            "imports": ["$import glob", marker],
            "device": marker,
            "network_def": definition or DEFINITION,
            "network": "$@network_def.to(@device)",
            "preprocessing": preprocessing,
            "postprocessing": {"_target_": "Compose", "transforms": [{"_target_": "Activationsd", "softmax": True}]},
            "run": [marker],
            **(config or {}),
        }
        about = {
            "network_data_format": {
                "inputs": {
                    "image": {
                        "type": "image",
                        "format": "hounsfield",
                        "modality": "CT",
                        "num_channels": 1,
                        "spatial_shape": [96, 96, 96],
                        "value_range": [0, 1],
                    }
                },
                "outputs": {
                    "pred": {
                        "num_channels": 3,
                        "channel_def": {"0": "background", "1": "liver", "2": "kidney_left"},
                    }
                },
            },
            **(metadata or {}),
        }
        (folder / "configs/metadata.json").write_text(json.dumps(about))
        (folder / "configs/inference.json").write_text(json.dumps(inference))
        if weights:
            torch.manual_seed(0)
            arguments = {key: value for key, value in DEFINITION.items() if not key.startswith("_")}
            torch.save(UNet(**arguments).state_dict(), folder / "models/model.pt")
        if kind == "folder":
            return folder
        path = tmp_path / f"{name}.zip"
        with zipfile.ZipFile(path, "w") as archive:
            for file in sorted(folder.rglob("*.*")):
                archive.write(file, f"{name}/{file.relative_to(folder).as_posix()}")
        return path

    return make
