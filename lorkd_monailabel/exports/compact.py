"""Weights in fewer bits: kept in half precision or as whole numbers of eight bits, computed with in float32.

The type is that of the file and of the memory it takes; arithmetic stays float32, so that norms and softmax stay
exact and every runtime takes it. Where a device is fast in half precision, its autocast does that.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lorkd_monailabel.experts import plain_network
from lorkd_monailabel.networks.segmenter import Segmenter

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "int8": torch.int8}
SCALE = ".scale"
"""After a weight's name: the float32 factors of its whole numbers."""


def packed(weights: Mapping[str, Tensor], dtype: str) -> dict[str, Tensor]:
    """Bring weights to a type.

    ``int8`` is weight-only and symmetric: each slice along the first axis of a weight (two axes or more) becomes whole
    numbers from -127 to 127 times a factor, which is kept beside it as ``<name>.scale``; what has one axis stays
    float32.

    Args:
        weights: floating point.
        dtype: a key of ``DTYPES``.

    Raises:
        ValueError: the type is unknown, or a weight is not finite in it.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r} is unknown; use one of {', '.join(DTYPES)}")
    result: dict[str, Tensor] = {}
    for name, weight in weights.items():
        tensor = weight.detach().float()
        if not tensor.isfinite().all():
            raise ValueError(f"weight {name} holds NaN or infinity, but all must be finite; restore the expert")
        if dtype != "int8":
            result[name] = tensor.to(DTYPES[dtype], copy=True)
            if not result[name].isfinite().all():
                most = float(tensor.abs().max())
                raise ValueError(f"weight {name} reaches {most:g}, beyond {dtype}; export it as float32 or bfloat16")
        elif tensor.dim() < 2:
            result[name] = tensor.clone()
        else:
            largest = tensor.abs().amax(dim=tuple(range(1, tensor.dim())), keepdim=True)
            scale = torch.where(largest > 0, largest / 127, 1.0)
            result[name] = (tensor / scale).round().clamp(-127, 127).to(torch.int8)
            result[name + SCALE] = scale
    return result


def unpacked(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give float32 weights of packed ones."""
    return {
        name: tensor.float() * tensors[name + SCALE] if tensor.dtype == torch.int8 else tensor.float()
        for name, tensor in tensors.items()
        if not name.endswith(SCALE)
    }


class CompactSegmenter(nn.Module):
    """A segmenter that keeps its weights packed and unpacks them whenever it runs.

    Args:
        network: numbers of ``build_segmenter``.
        tensors: of ``packed``.
    """

    def __init__(self, network: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._names = tuple(tensors)
        for number, tensor in enumerate(tensors.values()):
            self.register_buffer(f"weight_{number}", tensor)
        skeleton = plain_network(network, {name: tensor.to("meta") for name, tensor in unpacked(tensors).items()})
        # in a tuple, so that the skeleton is no part of this module; without weights of its own, for each run lends it
        # unpacked ones (what torch.func.functional_call does, but TorchScript can't be traced through)
        self._skeleton: tuple[Segmenter] = (skeleton,)
        self._places = {
            name: (skeleton.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2])
            for name in skeleton.state_dict()
        }
        for module, last in self._places.values():
            delattr(module, last)

    def forward(self, image: Tensor, queries: Tensor) -> Tensor:
        """See ``Segmenter``."""
        weights = unpacked({name: getattr(self, f"weight_{number}") for number, name in enumerate(self._names)})
        try:
            for name, (module, last) in self._places.items():
                setattr(module, last, weights[name])
            logits = self._skeleton[0](image, queries)
        finally:
            for module, last in self._places.values():
                module.__dict__.pop(last, None)
        assert isinstance(logits, Tensor)
        return logits
