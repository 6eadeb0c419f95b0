"""MPNet (Song et al. 2020): a BERT whose attention knows how far two tokens are apart, from its state dict."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from lorkd_monailabel.encoders.transformer import LayerNames, norm, run_layers

_NAMES = LayerNames(
    "attention.attn.q", "attention.attn.k", "attention.attn.v", "attention.attn.o", "attention.LayerNorm"
)
_EPS = 1e-5
_PADDING = 1
_BUCKETS = 32
# Half of the buckets for each direction: one each for the distances 0 to 7, then eight that grow by the square root of
# two each, the last from 8 * 2 ** (7 / 2) on without end (which T5's scheme says as: up to 128).
_FIRST_DISTANCES = (1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 23, 32, 46, 64, 91)


class MPNetSize(NamedTuple):
    """Sizes of an MPNet; as they are: MPNet-base, which BioLORD-2023-C and all-mpnet-base-v2 are."""

    pieces: int = 30527
    positions: int = 514
    width: int = 768
    expanded: int = 3072
    layers: int = 12
    heads: int = 12


def mpnet(weights: Mapping[str, Tensor], ids: Tensor, mask: Tensor, *, size: MPNetSize) -> Tensor:
    """Run the encoder: ids and mask ``(N, L)`` to hidden states ``(N, L, D)``."""
    real = ids != _PADDING
    positions = real.cumsum(dim=1) * real + _PADDING  # the first token stands at position 2
    hidden = (
        weights["embeddings.word_embeddings.weight"][ids] + weights["embeddings.position_embeddings.weight"][positions]
    )
    hidden = norm(hidden, weights, "embeddings.LayerNorm", eps=_EPS)
    bias = weights["encoder.relative_attention_bias.weight"][distance_buckets(ids.shape[1])].permute(2, 0, 1)
    added = bias.masked_fill(~mask[:, None, None, :], -torch.inf)
    return run_layers(hidden, weights, _NAMES, layers=size.layers, heads=size.heads, mask=added, eps=_EPS)


def distance_buckets(length: int) -> Tensor:
    """Number the buckets of distances ``(length, length)``: rows look at columns, 16 and more look ahead."""
    place = torch.arange(length)
    distance = place[None, :] - place[:, None]
    bucket = torch.bucketize(distance.abs(), torch.tensor(_FIRST_DISTANCES), right=True)
    return bucket + (distance > 0) * (_BUCKETS // 2)


def mpnet_shapes(size: MPNetSize) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield key and shape of every tensor, the pooler included, which no mean of tokens uses."""

    def dense(name: str, out: int, into: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield f"{name}.weight", (out, into)
        yield f"{name}.bias", (out,)

    def norms(name: str) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield f"{name}.weight", (size.width,)
        yield f"{name}.bias", (size.width,)

    yield "embeddings.word_embeddings.weight", (size.pieces, size.width)
    yield "embeddings.position_embeddings.weight", (size.positions, size.width)
    yield from norms("embeddings.LayerNorm")
    for layer in range(size.layers):
        prefix = f"encoder.layer.{layer}"
        for name in _NAMES[:4]:
            yield from dense(f"{prefix}.{name}", size.width, size.width)
        yield from norms(f"{prefix}.{_NAMES.norm}")
        yield from dense(f"{prefix}.intermediate.dense", size.expanded, size.width)
        yield from dense(f"{prefix}.output.dense", size.width, size.expanded)
        yield from norms(f"{prefix}.output.LayerNorm")
    yield "encoder.relative_attention_bias.weight", (_BUCKETS, size.heads)
    yield from dense("pooler.dense", size.width, size.width)
