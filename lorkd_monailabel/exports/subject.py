"""What is exported: a department's fused network, the queries of its structures, and what its use needs."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from lorkd_monailabel.departments import department
from lorkd_monailabel.experts import Base, Expert, fused_network
from lorkd_monailabel.exports.compact import CompactSegmenter, packed
from lorkd_monailabel.label_maps import THRESHOLD
from lorkd_monailabel.networks.segmenter import Segmenter
from lorkd_monailabel.predictor import OVERLAP
from lorkd_monailabel.text_encoder import QueryTable

FORMAT = "lorkd-export/1"
MODALITIES = ("ct", "mri")
EXACT = 1e-4
"""Largest difference of probabilities that an export in float32 may have."""

_TEST_PATCH = 32


@dataclass(frozen=True)
class Subject:
    """A department, ready to be written in any format.

    Attributes:
        base: shared weights.
        expert: of the department, trained on that base.
        table: of the queries that the base was trained with.
        modality: that a format of one modality is for; None for formats of all.
        dtype: in which the weights are kept; a key of ``DTYPES``.
    """

    base: Base
    expert: Expert
    table: QueryTable
    modality: str | None = None
    dtype: str = "float32"

    def __post_init__(self) -> None:
        """Refuses what does not fit together."""
        if self.base.query_space != self.table.space:
            raise ValueError(
                f"base {self.base.sha256[:12]} was trained with other query vectors than the table's; "
                "give the query table it was trained with"
            )
        if not self.expert.structures:
            raise ValueError(f"{self.name} was trained on no structure, so there is nothing to export; train it first")

    @property
    def name(self) -> str:
        """Department and revision, as in ``abdomen/0002``."""
        return f"{self.expert.department}/{self.expert.revision:04d}"

    @cached_property
    def network(self) -> Segmenter:
        """The fused network in float32; it knows no dtype."""
        return fused_network(self.base, self.expert)

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """The fused weights in the dtype."""
        return packed(self.network.state_dict(), self.dtype)

    def queries(self, modality: str) -> Tensor:
        """Queries ``(N, D)`` of the department's structures."""
        return self.table.queries(self.expert.structures, modality)

    def modalities(self) -> tuple[str, ...]:
        """The modality that was named; without one all that are known here and to the table."""
        if self.modality is not None:
            return (self.modality,)
        return tuple(each for each in MODALITIES if each in self.table.modality_vectors)

    def settings(self) -> dict[str, Any]:
        """All that is needed to use the network, for JSON."""
        return {
            "format": FORMAT,
            "department": self.expert.department,
            "department_name": department(self.expert.department).name,
            "revision": self.expert.revision,
            "structures": list(self.expert.structures),
            "modalities": list(self.modalities()),
            "orientation": "RAS",
            "spacing_mm": list(self.expert.spacing_mm),
            "window": list(self.window),
            "stride": self.network.stride,
            "overlap": OVERLAP,
            "intensities": self.base.intensities,
            "threshold": THRESHOLD,
            "dtype": self.dtype,
            "network": self.base.network,
            "base_sha256": self.base.sha256,
            "query_space": self.base.query_space,
            "metrics": self.expert.metrics,
        }

    @property
    def window(self) -> tuple[int, int, int]:
        """Voxels of a window, multiples of the network's stride."""
        stride = self.network.stride
        x, y, z = (-(-length // stride) * stride for length in self.base.window)
        return x, y, z

    def example(self, *, seed: int = 0) -> Tensor:
        """Noise that looks like normalised intensities, ``(1, 1, X, Y, Z)``, smaller than a large window."""
        stride = self.network.stride
        sizes = [-(-max(2 * stride, min(length, _TEST_PATCH)) // stride) * stride for length in self.window]
        return torch.randn(1, 1, *sizes, generator=torch.Generator().manual_seed(seed))

    def compact(self) -> nn.Module:
        """The network ``(image, queries) -> logits`` that keeps its weights in the dtype."""
        return self.network if self.dtype == "float32" else CompactSegmenter(self.base.network, self.tensors)

    def difference(self, run: Callable[[Tensor, Tensor], Tensor], modality: str | None = None) -> float:
        """Largest difference of probabilities to the fused network in float32, on the example.

        Args:
            run: image and queries to probabilities ``(1, N, X, Y, Z)``, out of what was written.
            modality: of the queries; the first, if not given.

        Raises:
            ValueError: the export is in float32 and differs all the same.
        """
        image, queries = self.example(seed=1), self.queries(modality or self.modalities()[0])
        with torch.no_grad():
            found = float((run(image, queries).float() - self.network(image, queries).sigmoid()).abs().max())
        if not found <= (EXACT if self.dtype == "float32" else 1):
            raise ValueError(
                f"the export of {self.name} gives probabilities that differ by {found:g} from the network's, above "
                f"{EXACT:g}; use another format and report it"
            )
        return found


class Answers(nn.Module):
    """The network of a department with the queries of its structures inside: image in, probabilities out.

    Args:
        network: ``(image, queries)`` to logits.
        queries: ``(N, D)``.
        background: put a channel of constant 0.5 first, so that the largest channel is the label.
    """

    def __init__(self, network: nn.Module, queries: Tensor, *, background: bool) -> None:
        super().__init__()
        self.network = network
        self.background = background
        self.queries: Tensor
        self.register_buffer("queries", queries)

    def forward(self, image: Tensor) -> Tensor:
        """Map ``(B, 1, X, Y, Z)`` to ``(B, N, X, Y, Z)``, or ``N + 1`` with a background."""
        probabilities = self.network(image, self.queries).sigmoid()
        if not self.background:
            return probabilities
        return torch.cat((torch.full_like(probabilities[:, :1], THRESHOLD), probabilities), dim=1)


class Prompted(nn.Module):
    """The network with queries as an input: image and queries in, probabilities out.

    Args:
        network: ``(image, queries)`` to logits.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor, queries: Tensor) -> Tensor:
        """Map ``(B, 1, X, Y, Z)`` and ``(N, D)`` to ``(B, N, X, Y, Z)``."""
        return self.network(image, queries).sigmoid()


@contextmanager
def known_warnings() -> Iterator[None]:
    """Keep quiet about what the exporters of torch say of themselves, and of sizes that are constant."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", message=r".*isinstance\(treespec, LeafSpec\)", category=FutureWarning)
        # the width of the query decoder, which no image changes
        warnings.filterwarnings(
            "ignore",
            message="Converting a tensor to a Python",
            category=torch.jit.TracerWarning,  # type: ignore[attr-defined]
        )
        yield
