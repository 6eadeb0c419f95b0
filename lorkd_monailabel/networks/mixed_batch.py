"""The single mixed pass: a batch of several departments through one plain network (LoRKD's EKS convolution, exact).

Networks whose normalisation is per sample need none of this: there a training step runs each department present through
the plain network with its fused weights (``learning.training``). Batch normalisation takes its statistics over the
mixed batch, so all departments must go through together. The network stays plain: while it runs, each convolution and
linear layer whose weight has factors is computed department by department. Only departments that are present cost
anything, and only they get gradients.

A layer is computed in one of these ways, all exact; ``chosen`` takes the one whose shapes make it cheapest:

- ``split``: one convolution for each department present, over its own samples; fused weights are computed anew in the
  backward pass instead of kept. For layers with many voxels.
- ``stacked``: the same where every department has one sample: one grouped convolution, a group for each sample.
- ``factored``: the shared convolution of the whole batch plus the delta in factored form. Because the product ``B A``
  is reshaped row-major, its row ``o * k0 + i`` meets the i-th of ``k0`` equal parts of the weight's columns, that is of
  the input channels: the delta is a convolution of each part with the rows of A as its filters, then a mixing of these
  few channels by B. For layers with few voxels and many channels, whose fused weight is larger than what it convolves.
- ``pointwise``, ``pointwise_factored``: kernels of size 1 as products of matrices for each sample.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.utils.rnn import pad_sequence
from torch.utils._pytree import tree_map_only

from lorkd_monailabel.networks.low_rank import Factors, delta_weight
from lorkd_monailabel.networks.mixed_layer import Convolve, Layer, MixedBatch, Pair

FUSING_COST = 220
"""Cost of a fused weight for each department, in voxels of a department that the plain layer convolves meanwhile."""

FACTORING_COST = 1.5
"""Cost of a narrow output channel of the factored form, in output channels of the plain layer."""

POINTWISE_FROM_VOXELS = 128
"""Output voxels of a sample from which on ``pointwise`` is cheaper than ``pointwise_factored``."""


def mixed_forward(
    network: nn.Module,
    images: Tensor,
    departments: Sequence[str],
    *,
    factors: Mapping[str, Factors],
    convolve: Convolve | None = None,
) -> Any:
    """Run a batch of several departments through a plain network in a single pass.

    The batch is ordered by department once, here, so that each layer finds a department's samples side by side.

    Args:
        network: plain; called with the images alone.
        images: ``(B, ...)``.
        departments: of each image, in any order.
        factors: department -> its factors over the network's parameters; may hold departments that are absent.
        convolve: computes a layer; ``chosen`` if not given.

    Returns:
        What the network returns; every tensor of it that has B rows is in the order of ``images``.

    Raises:
        ValueError: a department without factors, another number of departments than images, factors of a weight that
            the network lacks, or a layer that can't be computed department by department.
    """
    if len(departments) != len(images):
        raise ValueError(f"{len(departments)} departments for {len(images)} images; name one for each image")
    order = sorted(range(len(images)), key=lambda index: departments[index])
    batch = MixedBatch(network, [departments[index] for index in order], factors, convolve or chosen)
    if order == list(range(len(images))):
        with batch:
            return network(images)
    index = torch.tensor(order, device=images.device)
    back = torch.argsort(index)
    with batch:
        outputs = network(images.index_select(0, index))
    return tree_map_only(
        Tensor,
        lambda tensor: tensor.index_select(0, back) if tensor.dim() and len(tensor) == len(back) else tensor,
        outputs,
    )


def chosen(inputs: Tensor, layer: Layer) -> Tensor:
    """Compute a layer in the way that its shapes make the cheapest (``train/bench/eks.py`` measures it)."""
    voxels = math.prod(inputs.shape[2:]) / math.prod(layer.arguments["stride"])
    if is_pointwise(layer):
        return pointwise(inputs, layer) if voxels >= POINTWISE_FROM_VOXELS else pointwise_factored(inputs, layer)
    present = layer.batch.present
    samples = len(inputs) / len(present)
    outputs, _, first, *_ = layer.weight.shape
    narrow = first * max(len(layer.pair(department)[0]) for department, _ in present)
    if FACTORING_COST * narrow / outputs < FUSING_COST / (voxels * samples):
        return factored(inputs, layer)
    return stacked(inputs, layer) if samples == 1 else split(inputs, layer)


def split(inputs: Tensor, layer: Layer) -> Tensor:
    """Compute a layer by one convolution for each department present, with its fused weight.

    Args:
        inputs: ``(B, C_in, ...)``.
        layer: to compute.
    """
    kind = inputs.device.type
    if torch.is_autocast_enabled(kind):
        inputs = inputs.to(torch.get_autocast_dtype(kind))
    pairs = [layer.pair(department) for department, _ in layer.batch.present]
    return _Split.apply(inputs, layer.weight, layer.bias, layer, *(factor for pair in pairs for factor in pair[:2]))


def pointwise(inputs: Tensor, layer: Layer) -> Tensor:
    """Compute a layer whose kernel has size 1 as a product of each sample's fused weight and its channels.

    Args:
        inputs: ``(B, C_in, ...)``.
        layer: to compute.
    """
    fused = [_fused(layer.weight, layer.pair(name), inputs.dtype).flatten(1) for name, _ in layer.batch.present]
    inputs = _strided(inputs, layer)
    outputs = torch.stack(fused).index_select(0, layer.batch.index(inputs.device)) @ inputs.flatten(2)
    if layer.bias is not None:
        outputs = outputs + layer.bias[:, None]
    return outputs.unflatten(2, inputs.shape[2:])


def pointwise_factored(inputs: Tensor, layer: Layer) -> Tensor:
    """Compute a layer whose kernel has size 1 by the shared convolution and products of each sample with its factors.

    Args:
        inputs: ``(B, C_in, ...)``.
        layer: to compute.
    """
    shared = layer.operator(inputs, layer.weight, layer.bias, **layer.arguments)
    pairs = [layer.pair(department) for department, _ in layer.batch.present]
    index = layer.batch.index(inputs.device)
    downs = pad_sequence([lora_a for lora_a, _, _ in pairs], batch_first=True).index_select(0, index)
    ups = pad_sequence([(lora_b * scale).T for _, lora_b, scale in pairs], batch_first=True).index_select(0, index)
    narrow = downs.to(inputs.dtype) @ _strided(inputs, layer).flatten(2)
    return torch.baddbmm(shared.flatten(2), ups.mT.to(shared.dtype), narrow).view_as(shared)


def stacked(inputs: Tensor, layer: Layer) -> Tensor:
    """Compute a layer by one grouped convolution, with a group and a fused weight for each sample.

    Args:
        inputs: ``(B, C_in, ...)``.
        layer: to compute.
    """
    count = len(inputs)
    weights = torch.stack([_fused(layer.weight, layer.pair(name), inputs.dtype) for name, _ in layer.batch.present])
    if count > len(weights):
        weights = weights.index_select(0, layer.batch.index(inputs.device))
    bias = None if layer.bias is None else layer.bias.repeat(count)
    joined = inputs.reshape(1, -1, *inputs.shape[2:])
    outputs = layer.operator(joined, weights.flatten(0, 1), bias, **layer.arguments, groups=count)
    return outputs.view(count, -1, *outputs.shape[2:])


def factored(inputs: Tensor, layer: Layer) -> Tensor:
    """Compute a layer by the shared convolution and each department's delta in factored form.

    Args:
        inputs: ``(B, C_in, ...)``.
        layer: to compute.
    """
    shared = layer.operator(inputs, layer.weight, layer.bias, **layer.arguments)
    outputs, channels, first, *rest = layer.weight.shape
    # Part i of the weight's columns begins at column i * channels * rest, in the middle of a channel where `first` does
    # not divide the channels. So each part takes `width` whole channels from `low` on, and A is padded to fit them.
    width = min(channels, _vectors(-(-channels // first) + (channels % first > 0)))
    lows = [min(part * channels // first, channels - width) for part in range(first)]
    offsets = [(part * channels - low * first) * math.prod(rest) for part, low in enumerate(lows)]
    columns = width * first * math.prod(rest)
    blocks = torch.cat([inputs.narrow(1, low, width) for low in lows], dim=1)
    counts = [rows.stop - rows.start for _, rows in layer.batch.present]
    parts = []
    for (name, _), own, block in zip(
        layer.batch.present, shared.flatten(2).split(counts), blocks.split(counts), strict=True
    ):
        lora_a, lora_b, scale = layer.pair(name)
        padded = [nn.functional.pad(lora_a, (offset, columns - offset - lora_a.shape[1])) for offset in offsets]
        filters = torch.cat(padded).view(-1, width, first, *rest).to(inputs.dtype)
        narrow = layer.operator(block, filters, None, **layer.arguments, groups=first).flatten(2)
        mixing = (lora_b * scale).view(outputs, -1).to(own.dtype).expand(len(own), -1, -1)
        parts.append(torch.baddbmm(own, mixing, narrow))
    return torch.cat(parts).view_as(shared)


def _vectors(channels: int) -> int:
    """Round channels up to whole vectors of 16, which convolutions on a CPU are fastest with."""
    return -(-channels // 16) * 16


def is_pointwise(layer: Layer) -> bool:
    """Say whether every output voxel sees one input voxel."""
    return math.prod(layer.weight.shape[2:]) == 1 and not any(layer.arguments["padding"])


class _Split(torch.autograd.Function):
    """One convolution for each department; keeps base weight and factors only, and fuses again in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None, layer: Layer, *factors: Tensor
    ) -> Tensor:
        ctx.layer = layer
        ctx.save_for_backward(inputs, weight, bias, *factors)
        own_bias = None if bias is None else bias.to(inputs.dtype)
        outputs = inputs.new_empty(0)
        for rows, pair in _departments(layer, factors):
            part = layer.operator(inputs[rows], _fused(weight, pair, inputs.dtype), own_bias, **layer.arguments)
            if rows.start == 0:  # in the layout that the convolution prefers
                outputs = part.new_empty_strided((len(inputs), *part.shape[1:]), part.stride())
            outputs[rows] = part
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        inputs, weight, bias, *factors = ctx.saved_tensors
        wants_inputs, wants_weight, wants_bias, _, *wants = ctx.needs_input_grad
        grad_inputs = torch.empty_like(inputs) if wants_inputs else None
        grad_weight = torch.zeros_like(weight) if wants_weight else None
        grad_bias = torch.zeros_like(bias) if wants_bias else None
        grads: list[Tensor | None] = []
        for rows, (lora_a, lora_b, scale) in _departments(ctx.layer, factors):
            wants_a, wants_b = wants[len(grads) : len(grads) + 2]
            own, delta, shift = torch.ops.aten.convolution_backward(
                grad[rows],
                inputs[rows],
                _fused(weight, (lora_a, lora_b, scale), inputs.dtype),
                None if bias is None else list(bias.shape),
                *(ctx.layer.arguments[key] for key in ("stride", "padding", "dilation")),
                False,
                [0],
                1,
                [wants_inputs, wants_weight or wants_a or wants_b, wants_bias],
            )
            if grad_inputs is not None:
                grad_inputs[rows] = own
            if grad_weight is not None:
                grad_weight += delta
            if grad_bias is not None:
                grad_bias += shift
            with torch.autocast(grad.device.type, enabled=False):
                matrix = delta.to(lora_a.dtype).reshape(len(lora_b), -1) * scale if wants_a or wants_b else delta
                grads.append(lora_b.T @ matrix if wants_a else None)
                grads.append(matrix @ lora_a.T if wants_b else None)
        return grad_inputs, grad_weight, grad_bias, None, *grads


def _departments(layer: Layer, factors: Sequence[Tensor]) -> Iterator[tuple[slice, Pair]]:
    """Give each department's rows, and its factors as autograd handed them over."""
    for number, (department, rows) in enumerate(layer.batch.present):
        yield rows, (factors[2 * number], factors[2 * number + 1], layer.pair(department)[2])


def _fused(weight: Tensor, pair: Pair, dtype: torch.dtype) -> Tensor:
    lora_a, lora_b, scale = pair
    with torch.autocast(weight.device.type, enabled=False):
        return (weight + delta_weight(lora_a, lora_b, weight.shape, scale).to(weight.dtype)).to(dtype)


def _strided(inputs: Tensor, layer: Layer) -> Tensor:
    steps: tuple[Any, ...] = (..., *(slice(None, None, step) for step in layer.arguments["stride"]))
    return inputs[steps]
