"""Format ``program``: a graph of ``torch.export`` with the queries inside, image in, probabilities out."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import Dim, ExportedProgram

from lorkd_monailabel.exports.subject import Answers, Subject, known_warnings

MOST_BATCH = 64
MOST_VOXELS = 2048
RUN = """\
```python
import json, pathlib, torch  # pip install torch
settings = json.loads(pathlib.Path("settings.json").read_text())
network = torch.export.load("{name}").module()
patch = torch.zeros(1, 1, *settings["window"])  # canonical, resampled, normalised: see the table
probabilities = network(patch)  # (1, N, X, Y, Z), in the order of settings["structures"]
```

On a GPU: `torch.export.passes.move_to_device_pass(torch.export.load("{name}"), "cuda").module()`.

X, Y and Z may be any multiples of {stride} up to {most}, but not all of them {stride}; the batch any up to {batch}.
`{name}.json` says what it expects in the form that `lorkd_monailabel.teachers` reads, so it can teach another network.
"""


def write(subject: Subject, folder: Path) -> float:
    """Write ``<department>.pt2`` and its JSON; the largest difference of probabilities to float32."""
    (modality,) = subject.modalities()
    network = Answers(subject.compact(), subject.queries(modality), background=False).eval()
    path = folder / name(subject)
    with known_warnings():
        graph = exported(network, subject)
        graph.example_inputs = None  # zeros, which would be saved too
        torch.export.save(graph, path)
        again = torch.export.load(path).module()
    channels = {
        "channels": list(subject.expert.structures),
        "activation": "none",
        "modality": modality,
        "intensities": "normalised",
        "spacing_mm": list(subject.expert.spacing_mm),
        "multiple_of": subject.network.stride,
    }
    (folder / f"{path.name}.json").write_text(json.dumps(channels, indent=1) + "\n", encoding="utf-8")
    return subject.difference(lambda image, queries: again(image))


def exported(network: nn.Module, subject: Subject, *, prompted: bool = False) -> ExportedProgram:
    """Capture a network of an image (and queries) with sizes that are multiples of the stride.

    Args:
        network: ``Answers`` or ``Prompted``.
        subject: whose stride and queries.
        prompted: whether queries are an input, of any number.
    """
    stride = subject.network.stride
    sizes: dict[int, Any] = {0: Dim("batch", min=1, max=MOST_BATCH)}
    for axis, letter in enumerate("xyz", start=2):
        sizes[axis] = stride * Dim(letter, min=1, max=MOST_VOXELS // stride)
    # different lengths, none of them at a limit, so that nothing is taken for a constant
    image = torch.zeros(2, 1, 2 * stride, 3 * stride, 4 * stride)
    inputs: tuple[torch.Tensor, ...] = (image,)
    shapes: dict[str, Any] = {"image": sizes}
    if prompted:
        queries = subject.queries(subject.modalities()[0])
        inputs = (image, queries.new_zeros(3, queries.shape[1]))
        shapes["queries"] = {0: Dim("structures", min=1, max=4096)}
    with torch.no_grad():
        return torch.export.export(network, inputs, dynamic_shapes=shapes)


def name(subject: Subject) -> str:
    """Name the file."""
    return f"{subject.expert.department}.pt2"


def run(subject: Subject) -> str:
    """Say how it is run."""
    stride = subject.network.stride
    return RUN.format(name=name(subject), stride=stride, batch=MOST_BATCH, most=MOST_VOXELS // stride * stride)
