"""The layers that BERT (Devlin et al. 2019) and MPNet (Song et al. 2020) share, computed from a state dict."""

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor
from torch.nn.functional import gelu, layer_norm, linear, scaled_dot_product_attention


class LayerNames(NamedTuple):
    """What a model calls the parts of a layer's attention."""

    query: str
    key: str
    value: str
    out: str
    norm: str


def run_layers(
    hidden: Tensor,
    weights: Mapping[str, Tensor],
    names: LayerNames,
    *,
    layers: int,
    heads: int,
    mask: Tensor,
    eps: float,
) -> Tensor:
    """Run transformer layers with the norm after each sum, attention first, then two dense layers with GELU.

    Args:
        hidden: ``(N, L, D)``.
        weights: with keys ``encoder.layer.{number}.…``.
        names: of the parts of the attention.
        layers: how many.
        heads: of the attention.
        mask: to ``(N, heads, L, L)``: true where a token may look at another, or numbers to add to the logits.
        eps: of the norms.

    Returns:
        ``(N, L, D)``.
    """
    for layer in range(layers):
        prefix = f"encoder.layer.{layer}"
        query, key, value = (
            dense(hidden, weights, f"{prefix}.{name}").unflatten(-1, (heads, -1)).transpose(1, 2) for name in names[:3]
        )
        read = scaled_dot_product_attention(query, key, value, attn_mask=mask)
        read = dense(read.transpose(1, 2).flatten(2), weights, f"{prefix}.{names.out}")
        hidden = norm(hidden + read, weights, f"{prefix}.{names.norm}", eps=eps)
        expanded = gelu(dense(hidden, weights, f"{prefix}.intermediate.dense"))
        expanded = dense(expanded, weights, f"{prefix}.output.dense")
        hidden = norm(hidden + expanded, weights, f"{prefix}.output.LayerNorm", eps=eps)
    return hidden


def dense(x: Tensor, weights: Mapping[str, Tensor], name: str) -> Tensor:
    """Apply a linear layer to ``(…, D)``."""
    return linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])


def norm(x: Tensor, weights: Mapping[str, Tensor], name: str, *, eps: float) -> Tensor:
    """Apply a layer norm over the last axis."""
    return layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], eps=eps)
