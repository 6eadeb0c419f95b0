"""Text queries read the image: from image tokens and query vectors to one mask embedding a query."""

import math

import torch
from torch import Tensor, nn


class QueryLayer(nn.Module):
    """One pre-norm layer of cross-attention and feed-forward; queries do not see each other (as in SAT)."""

    def __init__(self, dim: int, *, heads: int, feedforward: int, dropout: float) -> None:
        super().__init__()
        self.multihead_attn = nn.MultiheadAttention(dim, heads, dropout=dropout, batch_first=True)
        self.linear1 = nn.Linear(dim, feedforward)
        self.linear2 = nn.Linear(feedforward, dim)
        # SAT's checkpoints hold a norm1 for the self-attention that its layers leave out; kept for equal keys.
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.norm3 = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, queries: Tensor, tokens: Tensor, positions: Tensor) -> Tensor:
        """Map ``queries`` ``(B, N, D)`` to their shape, given ``tokens`` ``(B, L, D)`` and ``positions`` ``(L, D)``."""
        read = self.multihead_attn(self.norm2(queries), tokens + positions, tokens, need_weights=False)[0]
        queries = queries + self.dropout(read)
        hidden = self.dropout(nn.functional.relu(self.linear1(self.norm3(queries))))
        return queries + self.dropout(self.linear2(hidden))


class QueryDecoder(nn.Module):
    """Stack of query layers with a final norm."""

    def __init__(self, dim: int, *, layers: int, heads: int = 8, feedforward: int = 2048, dropout: float = 0.1) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            QueryLayer(dim, heads=heads, feedforward=feedforward, dropout=dropout) for _ in range(layers)
        )
        self.norm = nn.LayerNorm(dim)

    def forward(self, queries: Tensor, tokens: Tensor) -> Tensor:
        """Let each query read the image.

        Args:
            queries: ``(B, N, D)``.
            tokens: image features of the coarsest scale, ``(B, D, x, y, z)``.

        Returns:
            ``(B, N, D)``.
        """
        # `to` would tie a traced network to the device that it was traced on
        positions = sine_positions(tokens.shape[2:], tokens.shape[1]).type_as(tokens)
        flat = tokens.flatten(2).transpose(1, 2)
        for layer in self.layers:
            queries = layer(queries, flat, positions)
        return self.norm(queries)


def sine_positions(shape: torch.Size | tuple[int, ...], dim: int) -> Tensor:
    """Fixed sine and cosine position vectors of a 3D grid, ``(x * y * z, dim)`` (SAT's PositionalEncoding3D).

    Each axis fills a third of the channels with interleaved ``sin`` and ``cos`` of the index over
    ``10000^(2i / channels)``; what the last axis has too much is cut.
    """
    channels = 2 * math.ceil(dim / 6)
    frequencies = 10000.0 ** (-torch.arange(0, channels, 2, dtype=torch.float32) / channels)
    axes = []
    for axis, size in enumerate(shape):
        angles = torch.arange(size, dtype=torch.float32)[:, None] * frequencies
        waves = torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1)
        view = [1, 1, 1, channels]
        view[axis] = size
        axes.append(waves.view(view).expand(*shape, channels))
    return torch.cat(axes, dim=-1)[..., :dim].reshape(-1, dim)
