"""References for a layer of a mixed batch: LoRKD's EKS convolution as it was published, and FLoRA's operation."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lorkd_monailabel.networks.low_rank import Factors, delta_weight
from lorkd_monailabel.networks.mixed_layer import Layer


def paper(inputs: Tensor, layer: Layer) -> Tensor:
    """Compute a layer as LoRKD does: ``W'_b = W0 + sum_t M[b, t] * delta_t``, then one grouped convolution.

    The deltas of all departments are built, whether they are present or not, and every sample gets a weight of its own.
    The reference of tests and benchmarks; the product has faster ways (``lorkd_monailabel.networks.mixed_batch``).

    Args:
        inputs: ``(B, C_in, ...)``.
        layer: to compute.
    """
    batch = layer.batch
    known = list(batch.factors)
    deltas = torch.stack([_delta(layer, batch.factors[department]) for department in known])
    one_hot = torch.zeros(len(inputs), len(known), dtype=deltas.dtype, device=deltas.device)
    for row, department in enumerate(batch.departments):
        one_hot[row, known.index(department)] = 1.0
    weights = layer.weight + (one_hot.view(*one_hot.shape, *[1] * layer.weight.dim()) * deltas).sum(dim=1)
    return per_sample(inputs, weights, layer)


def per_sample(inputs: Tensor, weights: Tensor, layer: Layer) -> Tensor:
    """Compute a layer with a weight for each sample, in a single operation.

    Args:
        inputs: ``(B, C_in, ...)``.
        weights: ``(B, C_out, C_in, ...)``.
        layer: whose bias and arguments are used.
    """
    samples, outputs = weights.shape[:2]
    bias = None if layer.bias is None else layer.bias.repeat(samples)
    joined = layer.operator(
        inputs.reshape(1, -1, *inputs.shape[2:]), weights.flatten(0, 1), bias, groups=samples, **layer.arguments
    )
    return joined.view(samples, outputs, *joined.shape[2:])


def _delta(layer: Layer, factors: Factors) -> Tensor:
    pair = factors.pairs().get(layer.name)
    if pair is None:
        return torch.zeros_like(layer.weight)
    return delta_weight(*pair, layer.weight.shape, factors.scales[layer.name])


class Flora(nn.Module):
    """FLoRA's operation: ``W_b = W0 ∘ sum_r a_br b_br^T``, so ``y_b = sum_r a_br ∘ (W0 (b_br ∘ x_b))``.

    Each rank is a pass of the base's own layer over scaled inputs. Another parametrisation than LoRKD's, here for its
    cost at an equal rank.

    Args:
        weights: name -> weight of the network.
        factors: department -> LoRKD's factors, whose ranks are taken over.
    """

    def __init__(self, weights: Mapping[str, Tensor], factors: Mapping[str, Factors]) -> None:
        super().__init__()
        self.index = {department: number for number, department in enumerate(factors)}
        self.incoming = nn.ParameterDict()
        self.outgoing = nn.ParameterDict()
        for name in dict.fromkeys(name for each in factors.values() for name in each.names):
            weight = weights[name]
            rank = max(each.ranks.get(name, 0) for each in factors.values())
            outputs, inputs = weight.shape[:2]
            for table, channels in ((self.incoming, inputs), (self.outgoing, outputs)):
                table[_key(name)] = torch.randn(len(factors), rank, channels).to(weight)

    def forward(self, inputs: Tensor, layer: Layer) -> Tensor:
        """Compute a layer: ``(B, C_in, ...)`` to ``(B, C_out, ...)``."""
        rows = torch.tensor([self.index[name] for name in layer.batch.departments], device=inputs.device)
        voxels = [1] * (inputs.dim() - 2)
        incoming, outgoing = (table[_key(layer.name)][rows] for table in (self.incoming, self.outgoing))
        outputs: Tensor | None = None
        for before, after in zip(incoming.unbind(1), outgoing.unbind(1), strict=True):
            scaled = inputs * before.view(*before.shape, *voxels).to(inputs.dtype)
            passed = layer.operator(scaled, layer.weight, None, **layer.arguments)
            own = passed * after.view(*after.shape, *voxels).to(passed.dtype)
            outputs = own if outputs is None else outputs + own
        assert outputs is not None
        return outputs if layer.bias is None else outputs + layer.bias.view(-1, *voxels).to(outputs.dtype)


def _key(name: str) -> str:
    return name.replace(".", "/")  # a dot would make a submodule
