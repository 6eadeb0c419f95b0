"""Format ``onnx``: one graph of image and queries, so that it answers in every modality, for any of the structures."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lorkd_monailabel.exports.program import exported
from lorkd_monailabel.exports.subject import Prompted, Subject, known_warnings

OPSET = 20
QUERIES = "queries.npz"
INSIDE_BYTES = 1 << 30
"""Up to here the weights are in the file itself; beyond, in ``<name>.data`` beside it (ONNX files end at 2 GiB)."""
RUN = """\
```python
import json, pathlib, numpy, onnxruntime  # pip install onnxruntime
settings = json.loads(pathlib.Path("settings.json").read_text())
session = onnxruntime.InferenceSession("{name}")
patch = numpy.zeros((1, 1, *settings["window"]), numpy.float32)  # canonical, resampled, normalised: see the table
queries = numpy.load("queries.npz")["{modality}"]  # (N, D), rows in the order of settings["structures"]
(probabilities,) = session.run(None, {{"image": patch, "queries": queries}})  # (1, N, X, Y, Z)
```

Opset {opset}. X, Y and Z may be any multiples of {stride}, but not all of them {stride}; batch and number of queries \
any. Take rows of `queries.npz` to ask for some of the structures only.
"""


def write(subject: Subject, folder: Path) -> float:
    """Write ``<department>.onnx`` and ``queries.npz``; the largest difference of probabilities to float32.

    Raises:
        ValueError: onnx, onnxscript or onnxruntime is missing.
    """
    try:
        import onnx  # noqa: F401  (torch's exporter needs it)
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ValueError(
            f"format onnx needs {error.name}, which is not installed; run: pip install 'lorkd-monailabel[onnx]'"
        ) from error
    path = folder / name(subject)
    with known_warnings(), _quiet("onnxscript", "onnx_ir", "torch.onnx"):
        graph = exported(Prompted(subject.compact()).eval(), subject, prompted=True)
        found = torch.onnx.export(
            graph,
            dynamo=True,
            opset_version=OPSET,
            input_names=["image", "queries"],
            output_names=["probabilities"],
            verbose=False,
        )
        assert found is not None
        kept = sum(tensor.nbytes for tensor in subject.tensors.values())
        found.save(path, external_data=kept > INSIDE_BYTES)
    np.savez(folder / QUERIES, **{each: subject.queries(each).numpy() for each in subject.modalities()})
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def again(image: Tensor, queries: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {"image": image.numpy(), "queries": queries.numpy()})[0])

    return subject.difference(again)


def name(subject: Subject) -> str:
    """Name the file."""
    return f"{subject.expert.department}.onnx"


def run(subject: Subject) -> str:
    """Say how it is run."""
    stride = subject.network.stride
    return RUN.format(name=name(subject), modality=subject.modalities()[0], opset=OPSET, stride=stride)


@contextmanager
def _quiet(*names: str) -> Iterator[None]:
    """Keep the exporters' notes on their own optimisations out of the output."""
    loggers = [logging.getLogger(each) for each in names]
    levels = [each.level for each in loggers]
    try:
        for each in loggers:
            each.setLevel(logging.ERROR)
        yield
    finally:
        for each, level in zip(loggers, levels, strict=True):
            each.setLevel(level)
