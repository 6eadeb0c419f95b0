"""Format ``safetensors``: the fused weights and the query vectors in one file, all else as JSON in its header."""

import json
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from lorkd_monailabel.experts import plain_network
from lorkd_monailabel.exports.compact import unpacked
from lorkd_monailabel.exports.subject import FORMAT, Subject

QUERIES = "queries."
RUN = """\
```python
# reading, without this package: pip install safetensors torch
import json
from safetensors import safe_open
from safetensors.torch import load_file

path = "{name}"
with safe_open(path, "pt") as file:
    settings = json.loads(file.metadata()["settings"])
tensors = load_file(path)
queries = {{name[8:]: tensors.pop(name) for name in list(tensors) if name.startswith("queries.")}}  # modality -> (N, D)
scales = {{name[:-6]: tensors.pop(name) for name in list(tensors) if name.endswith(".scale")}}  # int8 alone has any
weights = {{name: tensor.float() * scales.get(name, 1.0) for name, tensor in tensors.items()}}

# running, with this package; settings["network"] are all numbers that the architecture needs
import torch
from lorkd_monailabel.experts import plain_network
network = plain_network(settings["network"], weights)
patch = torch.zeros(1, 1, *settings["window"])  # canonical, resampled, normalised: see the table
probabilities = network(patch, queries["{modality}"]).sigmoid()  # (1, N, X, Y, Z)
```
"""


def write(subject: Subject, folder: Path) -> float:
    """Write ``<department>.safetensors``; the largest difference of probabilities to float32."""
    tensors: dict[str, Tensor] = {name: tensor.contiguous() for name, tensor in subject.tensors.items()}
    for modality in subject.modalities():
        tensors[QUERIES + modality] = subject.queries(modality)
    path = folder / name(subject)
    save_file(tensors, path, {"format": FORMAT, "settings": json.dumps(subject.settings(), sort_keys=True)})
    return _difference(subject, path)


def name(subject: Subject) -> str:
    """Name the file."""
    return f"{subject.expert.department}.safetensors"


def run(subject: Subject) -> str:
    """Say how it is read and run."""
    return RUN.format(name=name(subject), modality=subject.modalities()[0])


def _difference(subject: Subject, path: Path) -> float:
    with safe_open(path, "pt") as file:
        network = json.loads(file.metadata()["settings"])["network"]
    weights = {name: tensor for name, tensor in load_file(path).items() if not name.startswith(QUERIES)}
    again = plain_network(network, unpacked(weights))
    return subject.difference(lambda image, queries: again(image, queries).sigmoid())
