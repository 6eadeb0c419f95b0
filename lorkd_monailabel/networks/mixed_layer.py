"""A mixed batch under way: which department each sample belongs to, and what happens at a layer with factors."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lorkd_monailabel.networks.low_rank import Factors, factor_shapes

OPERATORS = (torch.conv1d, torch.conv2d, torch.conv3d, nn.functional.linear)
"""Operators whose weights may have factors."""

Pair = tuple[Tensor, Tensor, float]
"""``lora_a``, ``lora_b``, scale."""


@dataclass(frozen=True)
class Layer:
    """A convolution that a mixed batch has come to; a linear layer comes as one of kernel 1.

    Attributes:
        name: of its weight in the network.
        weight: the base's.
        bias: the base's.
        operator: ``torch.conv1d``, ``conv2d`` or ``conv3d``.
        arguments: stride, padding and dilation, voxels along each axis, in this order.
        batch: that is running.
    """

    name: str
    weight: Tensor
    bias: Tensor | None
    operator: Callable[..., Tensor]
    arguments: dict[str, Any]
    batch: "MixedBatch"

    def pair(self, department: str) -> Pair:
        """Give a department's factors of this layer and their scale; zeros where it leaves the weight as it is."""
        return self.batch.pair(self.name, department)


Convolve = Callable[[Tensor, Layer], Tensor]
"""Computes a layer: inputs ``(B, C_in, ...)`` of the ordered batch -> outputs ``(B, C_out, ...)``."""


class MixedBatch(TorchFunctionMode):
    """While it is entered, layers with factors are computed department by department.

    Args:
        network: whose parameters the factors name.
        departments: of each sample, those of one department side by side.
        factors: department -> its factors.
        convolve: computes a layer.

    Raises:
        ValueError: a department without factors, or factors of a weight that the network lacks.
    """

    def __init__(
        self, network: nn.Module, departments: Sequence[str], factors: Mapping[str, Factors], convolve: Convolve
    ) -> None:
        super().__init__()
        self.departments = tuple(departments)
        self.factors = factors
        self.convolve = convolve
        counts: dict[str, int] = {}
        for department in departments:
            counts[department] = counts.get(department, 0) + 1
        start, present = 0, []
        for department, count in counts.items():
            if department not in factors:
                have = ", ".join(factors) or "none"
                raise ValueError(f"department {department!r} has no factors; there are those of: {have}")
            present.append((department, slice(start, start + count)))
            start += count
        self.present = tuple(present)
        self._pairs = {department: factors[department].pairs() for department in counts}
        weights = dict(network.named_parameters())
        for department, pairs in self._pairs.items():
            for name in pairs:
                if name not in weights:
                    raise ValueError(f"{department} has factors of {name!r}, which the network lacks; give its own")
        self._weights = weights
        self._names = {id(weights[name]): name for pairs in self._pairs.values() for name in pairs}

    def pair(self, name: str, department: str) -> Pair:
        """Give a department's factors of a weight and their scale; zeros where it leaves the weight as it is."""
        pair = self._pairs[department].get(name)
        if pair is None:
            weight = self._weights[name]
            a_shape, b_shape = factor_shapes(weight.shape, 1)
            return weight.new_zeros(a_shape), weight.new_zeros(b_shape), 1.0
        return (*pair, self.factors[department].scales[name])

    def index(self, device: torch.device) -> Tensor:
        """Give each sample's place in ``present``: ``(B,)``."""
        lengths = torch.tensor([rows.stop - rows.start for _, rows in self.present], device=device)
        return torch.repeat_interleave(lengths, output_size=len(self.departments))

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func not in OPERATORS:
            return func(*args, **kwargs)
        name = self._names.get(id(kwargs["weight"] if "weight" in kwargs else args[1]))
        if name is None:
            return func(*args, **kwargs)
        if func is nn.functional.linear:
            return self._linear(name, *args, **kwargs)
        return self._convolution(name, func, *args, **kwargs)

    def _linear(self, name: str, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """Compute a linear layer as a convolution of kernel 1 over all axes between the first and the last."""
        rows = input.movedim(-1, 1)
        outputs = self._convolution(name, torch.conv1d, rows.reshape(*rows.shape[:2], -1), weight[..., None], bias)
        return outputs.reshape(*outputs.shape[:2], *rows.shape[2:]).movedim(1, -1)

    def _convolution(
        self,
        name: str,
        operator: Callable[..., Tensor],
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> Tensor:
        if groups != 1:
            raise ValueError(f"{name} is a convolution of {groups} groups; only those of one group can have factors")
        if len(input) != len(self.departments):
            raise ValueError(
                f"{name} is given {len(input)} rows for a batch of {len(self.departments)} images; "
                "a mixed batch needs a network that keeps one row for each image"
            )
        axes = weight.dim() - 2
        dilation = _each_axis(dilation, axes)
        input, padding = _padded(input, padding, [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)])
        arguments = {"stride": _each_axis(stride, axes), "padding": padding, "dilation": dilation}
        return self.convolve(input, Layer(name, weight, bias, operator, arguments, self))


def _each_axis(value: int | Sequence[int], axes: int) -> list[int]:
    return [value] * axes if isinstance(value, int) else list(value)


def _padded(inputs: Tensor, padding: Any, missing: list[int]) -> tuple[Tensor, list[int]]:
    """Turn padding by name into voxels on either side; where the sides differ, the inputs are padded at once."""
    if padding == "valid":
        return inputs, [0] * len(missing)
    if padding != "same":
        return inputs, _each_axis(padding, len(missing))
    if all(voxels % 2 == 0 for voxels in missing):
        return inputs, [voxels // 2 for voxels in missing]
    sides = [side for voxels in reversed(missing) for side in (voxels // 2, voxels - voxels // 2)]
    return nn.functional.pad(inputs, sides), [0] * len(missing)
