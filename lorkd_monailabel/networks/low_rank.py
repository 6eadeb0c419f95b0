"""Low-rank factors of a network's weights, for one or many departments (LoRKD, section 3.2)."""

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn


def delta_weight(lora_a: Tensor, lora_b: Tensor, shape: tuple[int, ...] | torch.Size, scale: float) -> Tensor:
    """Compute what a department adds to a weight: ``scale * reshape(B A)``, row-major.

    Args:
        lora_a: ``(rank * k0, C_in * k_rest)``.
        lora_b: ``(C_out * k0, rank * k0)``.
        shape: of the weight, ``(C_out, C_in, k0, ...)``.
        scale: alpha over rank.
    """
    return (lora_b @ lora_a).reshape(shape) * scale


def factor_shapes(shape: tuple[int, ...] | torch.Size, rank: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Give the shapes of ``lora_a`` and ``lora_b`` for a weight.

    A kernel ``k0 x k1 x ...`` is parted into ``k0`` and the rest, which for cubic kernels is the paper's form; a linear
    layer has ``k0 = 1``.

    Args:
        shape: of the weight, ``(C_out, C_in)`` or ``(C_out, C_in, k0, ...)``.
        rank: at least 1.

    Raises:
        ValueError: the shape has fewer than two lengths.
    """
    if len(shape) < 2:
        raise ValueError(f"a weight of shape {tuple(shape)} has no factors; it needs (C_out, C_in, ...)")
    outputs, inputs, *kernel = shape
    first = kernel[0] if kernel else 1
    return (rank * first, inputs * math.prod(kernel[1:])), (outputs * first, rank * first)


def rank_limit(shape: tuple[int, ...] | torch.Size) -> int:
    """Give the largest rank of a weight: that of its matrix ``(C_out, C_in * kernel)``, which no delta can exceed."""
    outputs, *rest = shape
    return min(outputs, math.prod(rest))


def decomposable(network: nn.Module, names: Iterable[str]) -> dict[str, Tensor]:
    """Give named weights of a network, after a look at their layers.

    Args:
        network: plain.
        names: of weights, such as ``encoder.0.weight``.

    Raises:
        ValueError: the network has no such weight, or its layer is neither a linear layer nor a convolution of one
            group (a transposed convolution, a normalisation, an embedding).
    """
    weights = {}
    for name in names:
        path, _, last = name.rpartition(".")
        try:
            layer = network.get_submodule(path)
        except AttributeError:
            layer = None
        if last != "weight" or not isinstance(getattr(layer, "weight", None), Tensor):
            raise ValueError(f"{name!r} is no weight of the network; name weights of its convolutions or linear layers")
        if not isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)):
            raise ValueError(
                f"{name} belongs to a {type(layer).__name__}; only convolutions and linear layers can have factors"
            )
        if getattr(layer, "groups", 1) != 1:
            raise ValueError(
                f"{name} is a convolution of {layer.groups} groups; only those of one group can have factors, "
                "leave it to the base"
            )
        weights[name] = layer.weight
    return weights


class Factors(nn.Module):
    """Trainable factors of one department over named weights of a plain network.

    ``lora_a`` starts as Kaiming-uniform noise and ``lora_b`` as zeros, so a new department starts as the base.

    Args:
        weights: name -> weight of the network (shapes alone are read).
        ranks: name -> rank; weights without a rank stay the base's.
        scales: name -> scale of the delta.

    Raises:
        ValueError: a rank out of its range, or of an unknown weight.
    """

    def __init__(self, weights: Mapping[str, Tensor], *, ranks: Mapping[str, int], scales: Mapping[str, float]) -> None:
        super().__init__()
        self.names = tuple(ranks)
        self.ranks = dict(ranks)
        self.scales = {name: scales[name] for name in ranks}
        self.lora_a = nn.ParameterList()
        self.lora_b = nn.ParameterList()
        for name, rank in ranks.items():
            if name not in weights:
                raise ValueError(f"{name!r} is no weight of the network; give ranks to weights that it names")
            limit = rank_limit(weights[name].shape)
            if not 1 <= rank <= limit:
                raise ValueError(f"rank {rank} of {name} must be in 1..{limit}; set a smaller rank in the config")
            a_shape, b_shape = factor_shapes(weights[name].shape, rank)
            self.lora_a.append(nn.init.kaiming_uniform_(torch.empty(a_shape), a=math.sqrt(5)))
            self.lora_b.append(torch.zeros(b_shape))

    def pairs(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Map each weight's name to its ``(lora_a, lora_b)``."""
        return {name: (a, b) for name, a, b in zip(self.names, self.lora_a, self.lora_b, strict=True)}

    def load_pairs(self, pairs: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        """Copy factors in.

        Raises:
            ValueError: names or shapes that differ.
        """
        if set(pairs) != set(self.names):
            raise ValueError(f"factors are of weights {sorted(pairs)[:3]}…, expected {sorted(self.names)[:3]}…")
        with torch.no_grad():
            for name, (a, b) in self.pairs().items():
                for own, new in ((a, pairs[name][0]), (b, pairs[name][1])):
                    if own.shape != new.shape:
                        raise ValueError(
                            f"a factor of {name} has shape {tuple(new.shape)}, expected {tuple(own.shape)}"
                        )
                    own.copy_(new)


def layer_ranks(weights: Mapping[str, bool], rank: int, *, decoder_multiplier: int = 2) -> dict[str, int]:
    """Spread a department's rank over the layers.

    Args:
        weights: name -> whether it belongs to the decoder (``Segmenter.low_rank_weights``).
        rank: of the encoder's layers.
        decoder_multiplier: of the decoder's; with 2 the paper's parameter counts reproduce.

    Raises:
        ValueError: one of them is below 1.
    """
    if min(rank, decoder_multiplier) < 1:
        raise ValueError(f"rank {rank} and decoder multiplier {decoder_multiplier} must be at least 1; set them higher")
    return {name: rank * (decoder_multiplier if decoder else 1) for name, decoder in weights.items()}


def layer_scales(ranks: Mapping[str, int], *, alpha: float = 16.0) -> dict[str, float]:
    """Scale each layer's delta by alpha over its rank (alpha is 16 in the paper)."""
    return {name: alpha / rank for name, rank in ranks.items()}
