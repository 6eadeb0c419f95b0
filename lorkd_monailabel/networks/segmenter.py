"""The text-prompted segmenter: image and query vectors in, one mask a query out (SAT's shape, any size)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lorkd_monailabel.networks.query_decoder import QueryDecoder
from lorkd_monailabel.networks.unet import UNet

SIZES: dict[str, dict[str, Any]] = {
    # For tests, demonstrations and machines without a GPU.
    "tiny": {
        "widths": (4, 8),
        "convs": 1,
        "query_dim": 384,
        "dim": 24,
        "layers": 1,
        "feedforward": 32,
        "heads": 2,
        "signed_masks": True,
    },
    "toy": {
        "widths": (16, 32, 64, 128),
        "query_dim": 384,
        "dim": 128,
        "layers": 3,
        "feedforward": 256,
        "heads": 4,
        "signed_masks": True,
    },
    "toy_foundation": {
        "widths": (24, 48, 96, 160),
        "query_dim": 384,
        "dim": 192,
        "layers": 3,
        "feedforward": 384,
        "heads": 4,
        "signed_masks": True,
    },
    # The experiment of train/experiments/decomposition_small: hours on two CPU cores.
    "small": {
        "widths": (12, 32, 64, 128),
        "query_dim": 384,
        "dim": 128,
        "layers": 3,
        "feedforward": 256,
        "heads": 4,
        "signed_masks": True,
    },
    "small_foundation": {
        "widths": (16, 64, 128, 256),
        "query_dim": 384,
        "dim": 192,
        "layers": 3,
        "feedforward": 384,
        "heads": 4,
        "signed_masks": True,
    },
    # LoRKD-Nano and LoRKD-Pro of the paper; the latter is SAT-Nano's architecture.
    "nano": {"widths": (32, 64, 128, 256, 512), "in_channels": 3, "mask_hidden": 256, "token_stride": 32},
    "pro": {"widths": (64, 64, 128, 256, 512, 768), "in_channels": 3, "mask_hidden": 256},
    "sat_pro": {
        "widths": (128, 128, 256, 512, 1024, 1536),
        "in_channels": 3,
        "convs": 3,
        "projection_hidden": 1536,
        "mask_hidden": 384,
    },
    "sat_huge": {
        "widths": (256, 256, 512, 1024, 1536, 2048),
        "in_channels": 3,
        "convs": 3,
        "dim": 1536,
        "query_hidden": 1536,
        "projection_hidden": 3072,
        "mask_hidden": 768,
    },
}

RARE = -3.0
"""First bias of signed masks: most voxels belong to no structure."""


class Segmenter(nn.Module):
    """U-Net and query decoder joined: ``sigmoid(mask embedding · pixel features)`` is a query's mask.

    Args:
        unet: image encoder and pixel decoder.
        query_decoder: reads the image for each query.
        query_dim: length of the query vectors that come in.
        dim: width of the query decoder.
        projection_hidden: hidden width between the pooled image features and the tokens.
        mask_hidden: hidden width between a decoded query and its mask embedding.
        signed_masks: mask embeddings of any sign and with a bias. SAT's end in a GELU: over pixel features that are
            hardly negative they make logits that are hardly negative either, which takes long to train from scratch.
        token_stride: voxels of the image for one token, along each axis; a multiple of the U-Net's coarsest scale.
        query_hidden: hidden width of a projection of the queries in two layers, which SAT's largest network has;
            without it they pass through one layer, or none where they have the decoder's width.

    Attributes:
        stride: sides of an image must be multiples of it.

    Raises:
        ValueError: a token stride that the scales can't be pooled to.
    """

    def __init__(
        self,
        unet: UNet,
        query_decoder: QueryDecoder,
        *,
        query_dim: int,
        dim: int,
        projection_hidden: int,
        mask_hidden: int,
        signed_masks: bool,
        token_stride: int,
        query_hidden: int | None,
    ) -> None:
        super().__init__()
        if token_stride < 1 or token_stride % unet.stride:
            raise ValueError(f"token_stride {token_stride} must be a multiple of {unet.stride}, the coarsest scale's")
        self.stride = token_stride
        self.unet = unet
        self.query_decoder = query_decoder
        self.query_projection: nn.Module = nn.Identity() if query_dim == dim else nn.Linear(query_dim, dim)
        if query_hidden is not None:
            self.query_projection = nn.Sequential(
                nn.Linear(query_dim, query_hidden), nn.GELU(), nn.Linear(query_hidden, dim), nn.GELU()
            )
        self.projection = nn.Sequential(
            nn.Linear(sum(unet.widths), projection_hidden), nn.GELU(), nn.Linear(projection_hidden, dim), nn.GELU()
        )
        last = nn.Linear(mask_hidden, unet.widths[0] + signed_masks)
        self.mask_embedding = nn.Sequential(
            nn.Linear(dim, mask_hidden), nn.GELU(), last, nn.Identity() if signed_masks else nn.GELU()
        )
        self.signed_masks = signed_masks
        if signed_masks:
            nn.init.constant_(last.bias[-1:], RARE)

    def low_rank_weights(self) -> dict[str, bool]:
        """Name every weight that a department's expert changes, and say whether it belongs to the pixel decoder."""
        return {f"unet.{name}": decoder for name, decoder in self.unet.low_rank_weights().items()}

    def forward(self, image: Tensor, queries: Tensor) -> Tensor:
        """Segment.

        Args:
            image: ``(B, C, X, Y, Z)``; X, Y and Z multiples of ``stride``. One grey channel is repeated.
            queries: ``(N, query_dim)`` for all images, or ``(B, N, query_dim)``.

        Returns:
            Logits ``(B, N, X, Y, Z)``; masks are independent, there is no background.
        """
        scales, pixels = self.unet(image.expand(-1, self.unet.in_channels, -1, -1, -1))
        # of constant size, which exporters to other formats need
        coarse = [nn.functional.avg_pool3d(scale, self.stride >> level) for level, scale in enumerate(scales)]
        pooled = torch.cat(coarse, dim=1)
        tokens = self.projection(pooled.movedim(1, -1)).movedim(-1, 1)
        queries = self.query_projection(queries.expand(image.shape[0], -1, -1))
        masks = self.mask_embedding(self.query_decoder(queries, tokens))
        if self.signed_masks:
            bias, masks = masks[..., -1, None, None, None], masks[..., :-1]
            return torch.einsum("bnc,bcxyz->bnxyz", masks, pixels) + bias
        return torch.einsum("bnc,bcxyz->bnxyz", masks, pixels)


def build_segmenter(
    size: str | None = None,
    *,
    widths: Sequence[int] = (),
    in_channels: int = 1,
    convs: int = 2,
    kernel_size: int = 3,
    query_dim: int = 768,
    dim: int = 768,
    layers: int = 6,
    heads: int = 8,
    feedforward: int = 2048,
    dropout: float = 0.1,
    projection_hidden: int | None = None,
    mask_hidden: int | None = None,
    signed_masks: bool = False,
    token_stride: int | None = None,
    query_hidden: int | None = None,
) -> Segmenter:
    """Build a segmenter of a named size, or of the numbers given.

    Args:
        size: a key of ``SIZES``; its numbers take the place of all others.
        widths: channels of each scale, finest first.
        in_channels: channels the first convolution takes; grey images are repeated.
        convs: convolutions in each stage.
        kernel_size: of each convolution.
        query_dim: length of the query vectors.
        dim: width of the query decoder.
        layers: of the query decoder.
        heads: of its attention.
        feedforward: of its layers.
        dropout: of its layers.
        projection_hidden: see ``Segmenter``; ``dim`` if not given.
        mask_hidden: see ``Segmenter``; ``dim`` if not given.
        signed_masks: see ``Segmenter``.
        token_stride: see ``Segmenter``; the stride of the coarsest scale if not given.
        query_hidden: see ``Segmenter``.

    Raises:
        ValueError: an unknown size, or fewer than two widths.
    """
    if size is not None:
        if size not in SIZES:
            raise ValueError(f"network size {size!r} is unknown; use one of {', '.join(SIZES)}")
        return build_segmenter(**SIZES[size])
    if len(widths) < 2:
        raise ValueError(f"a segmenter needs at least two widths, got {list(widths)}; set network.widths")
    unet = UNet(in_channels=in_channels, widths=widths, convs=convs, kernel_size=kernel_size)
    return Segmenter(
        unet,
        QueryDecoder(dim, layers=layers, heads=heads, feedforward=feedforward, dropout=dropout),
        query_dim=query_dim,
        dim=dim,
        projection_hidden=projection_hidden or dim,
        mask_hidden=mask_hidden or dim,
        signed_masks=signed_masks,
        token_stride=unet.stride if token_stride is None else token_stride,
        query_hidden=query_hidden,
    )
