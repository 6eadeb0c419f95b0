"""Format ``sat``: a checkpoint that SAT's own loader takes, of networks of SAT's architecture only."""

from pathlib import Path

from lorkd_monailabel.checkpoints.sat import read_sat, write_sat
from lorkd_monailabel.experts import as_float, plain_network
from lorkd_monailabel.exports.subject import Subject

NAME = "model.pth"
RUN = """\
```python
# SAT's own code (github.com/zhaoziheng/SAT) takes it as its --checkpoint; names, prefix and aliases are SAT's
import torch
state = torch.load("{name}", map_location="cpu", weights_only=True)["model_state_dict"]
```

SAT normalises by its own intensities (`sat`), on a grid of 1 x 1 x 3 mm; this network was trained on `{intensities}` \
intensities and a grid of {spacing} mm. Its queries must come from the text encoder that it was trained with.
"""


def write(subject: Subject, folder: Path) -> float:
    """Write ``model.pth``; the largest difference of probabilities to float32.

    Raises:
        ValueError: the network is not of SAT's architecture.
    """
    path = folder / NAME
    write_sat(path, subject.base.network, subject.tensors)
    numbers, weights = read_sat(path)
    again = plain_network(numbers, as_float(weights))
    return subject.difference(lambda image, queries: again(image, queries).sigmoid())


def run(subject: Subject) -> str:
    """Say how it is loaded."""
    spacing = " x ".join(f"{length:g}" for length in subject.expert.spacing_mm)
    return RUN.format(name=NAME, intensities=subject.base.intensities, spacing=spacing)
