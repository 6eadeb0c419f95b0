"""Format ``bundle``: a MONAI Bundle of one modality, which stock MONAI and MONAI Label run without this package.

The network is a TorchScript with the queries inside. It gives probabilities with a background of constant 0.5 before
them, so that the largest channel is the label. What it takes to reproduce ``Predictor`` stands in the config as
expressions on stock transforms: the same canonical grid, intensities, windows and way back.
"""

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from lorkd_monailabel.departments import department
from lorkd_monailabel.exports.bundle_config import inference_config
from lorkd_monailabel.exports.card import licence, sources
from lorkd_monailabel.exports.subject import Answers, Subject, known_warnings

SCHEMA = "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json"
BACKGROUND = "background"
NETWORK = "models/model.ts"
RUN = """\
```
pip install "monai>=1.4" nibabel pytorch-ignite fire
cd THIS_FOLDER
python -m monai.bundle run --config_file configs/inference.json --dataset_dir IMAGES --output_dir RESULTS
```

`IMAGES` holds `.nii` or `.nii.gz` files; each gives a label map on its own grid. On a GPU where there is one. All \
structures are brought back to the grid of the file at once, which takes {channels} x 4 bytes a voxel.

In MONAI Label's own app for bundles: put this folder into `monaibundle/model/`, under a name without "deepedit", \
"deepgrow", "detection" or "classification", then
`monailabel start_server --app monaibundle --studies IMAGES --conf models NAME --conf zoo_source ngc`.

A bundle runs what its config says; take one only from those whom you trust.
"""


def write(subject: Subject, folder: Path) -> float:
    """Write the folders of a bundle; the largest difference of probabilities to float32."""
    (modality,) = subject.modalities()
    queries = subject.queries(modality)
    for each in ("configs", "models", "docs"):
        (folder / each).mkdir()
    network = Answers(subject.compact(), queries, background=True).eval()
    with known_warnings(), torch.no_grad():
        script = torch.jit.trace(network, subject.example(), check_trace=False)
        torch.jit.save(script, folder / NETWORK)
        again = torch.jit.load(folder / NETWORK)
    for name, content in (("metadata", metadata(subject)), ("inference", inference_config(subject))):
        (folder / "configs" / f"{name}.json").write_text(json.dumps(content, indent=4) + "\n", encoding="utf-8")
    text = f"{licence(subject)}\n\nSources: {sources(subject)}.\n"
    (folder / "LICENSE").write_text(text, encoding="utf-8")
    return subject.difference(lambda image, queries: again(image)[:, 1:])


def metadata(subject: Subject) -> dict[str, Any]:
    """Describe the bundle as MONAI's schema wants it."""
    (modality,) = subject.modalities()
    expert, where = subject.expert, department(subject.expert.department).name
    names = {str(number): name for number, name in enumerate((BACKGROUND, *expert.structures))}
    revision = f"{expert.revision}.0.0"
    return {
        "schema": SCHEMA,
        "version": revision,
        "changelog": {revision: f"revision {expert.revision} of the expert"},
        "monai_version": version("monai"),
        "pytorch_version": version("torch"),
        "numpy_version": version("numpy"),
        "required_packages_version": {name: version(name) for name in ("nibabel", "pytorch-ignite") if _there(name)},
        "name": f"LoRKD {where} {modality.upper()}",
        "task": f"Segmentation of {len(expert.structures)} structures of the {where}",
        "description": f"Expert {subject.name} over base {subject.base.sha256[:12]}, fused. Not for clinical use.",
        "authors": "not stated; exported by LoRKD for MONAI Label",
        "copyright": licence(subject),
        "data_source": sources(subject),
        "data_type": "nibabel",
        "image_classes": f"single channel, {modality.upper()}",
        "pred_classes": ", ".join(expert.structures),
        "eval_metrics": dict(expert.metrics),
        "intended_use": "Research. Not for clinical use.",
        "network_data_format": {
            "inputs": {
                "image": {
                    "type": "image",
                    "format": "hounsfield" if modality == "ct" else "magnitude",
                    "modality": {"ct": "CT", "mri": "MR"}[modality],
                    "num_channels": 1,
                    "spatial_shape": list(subject.window),
                    "dtype": "float32",
                    "value_range": [-2.75, 4.75] if (subject.base.intensities, modality) == ("fixed", "ct") else [],
                    "is_patch_data": True,
                    "channel_def": {"0": "image"},
                }
            },
            "outputs": {
                "pred": {
                    "type": "probabilities",
                    "format": "segmentation",
                    "num_channels": len(names),
                    "spatial_shape": list(subject.window),
                    "dtype": "float32",
                    "value_range": [0, 1],
                    "is_patch_data": True,
                    "channel_def": names,
                }
            },
        },
    }


def run(subject: Subject) -> str:
    """Say how it is run."""
    return RUN.format(channels=len(subject.expert.structures) + 1)


def _there(name: str) -> bool:
    from importlib.metadata import PackageNotFoundError

    try:
        return bool(version(name))
    except PackageNotFoundError:
        return False
