"""Counters of parameters, operations and bytes for networks on torch's meta device, which keeps shapes only."""

import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from math import prod
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from lorkd_monailabel.networks.low_rank import factor_shapes, layer_ranks
from lorkd_monailabel.networks.segmenter import Segmenter, build_segmenter

PATCH = (288, 288, 96)
"""SAT's, in voxels."""

QUERIES = 16
"""As many as the paper trained with at a time; its count does not say."""

Shape: TypeAlias = tuple[int, int, int]


def meta_segmenter(size: str | None = None, **numbers: Any) -> Segmenter:
    """Build a network of shapes without memory; see ``build_segmenter``."""
    with torch.device("meta"):
        return build_segmenter(size, **numbers).eval()


def decomposed_parameters(segmenter: Segmenter, ranks: Sequence[int]) -> int:
    """Count the parameters of a base and of one expert for each rank; the decoder's layers have twice the rank."""
    weights = dict(segmenter.named_parameters())
    total = sum(tensor.numel() for tensor in weights.values())
    for rank in ranks:
        for name, own in layer_ranks(segmenter.low_rank_weights(), rank).items():
            total += sum(prod(shape) for shape in factor_shapes(weights[name].shape, own))
    return total


def forward(segmenter: Segmenter, shape: Shape, queries: int) -> Tensor:
    """Run a network on the meta device on one patch, without gradients.

    Args:
        segmenter: on the meta device.
        shape: of the patch, in voxels.
        queries: structures asked at once.
    """
    image, vectors = patch(segmenter, shape, queries)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        return segmenter(image, vectors)


def patch(segmenter: Segmenter, shape: Shape, queries: int) -> tuple[Tensor, Tensor]:
    """Make an image ``(1, 1, X, Y, Z)`` and vectors ``(N, query_dim)`` on the meta device."""
    projection = segmenter.query_projection
    dim = projection.in_features if isinstance(projection, nn.Linear) else segmenter.query_decoder.norm.weight.numel()
    return torch.empty(1, 1, *shape, device="meta"), torch.empty(queries, dim, device="meta")


def operations(segmenter: Segmenter, shape: Shape = PATCH, queries: int = QUERIES) -> int:
    """Count the operations of a forward pass by torch's own counter: two for each multiply-add of a product."""
    with FlopCounterMode(display=False) as counter:
        forward(segmenter, shape, queries)
    return counter.get_total_flops()


def thop_operations(segmenter: Segmenter, shape: Shape = PATCH, queries: int = QUERIES, *, names: int = 2) -> int:
    """Count as thop 0.1.1 counts the released networks, which have it among their requirements.

    It adds up, over the modules that it knows:

    - convolution: ``outputs * C_in * kernel``, a multiply-add each. A transposed one too, which is
      ``stride^3 = 8`` times what that computes;
    - norm with weights: ``4 * inputs``;
    - linear layer: ``outputs * C_in``.

    Nothing for activations, pooling, attention with its projections, and the product of masks and pixels. SAT's U-Nets
    hold each convolution and norm of a stage under two names. thop hooks a module once for every name, and then adds
    up what it counted once for every name: ``names^2`` times.

    Args:
        segmenter: on the meta device.
        shape: of the patch, in voxels.
        queries: structures asked at once.
        names: of a stage's convolutions and norms; 1 counts every module once.
    """
    total = 0

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        if isinstance(module, nn.Conv3d):
            total += names**2 * output.numel() * prod(module.weight.shape[1:])
        elif isinstance(module, nn.InstanceNorm3d):
            total += names**2 * 4 * inputs[0].numel()
        elif isinstance(module, nn.ConvTranspose3d):
            total += output.numel() * module.in_channels * prod(module.kernel_size)
        elif isinstance(module, nn.LayerNorm):
            total += 4 * inputs[0].numel()
        elif isinstance(module, nn.Linear):
            total += output.numel() * module.in_features

    with ExitStack() as hooks:
        for module in segmenter.modules():
            hooks.callback(module.register_forward_hook(count).remove)
        forward(segmenter, shape, queries)
    return total


def saved_bytes(run: Callable[[], Tensor], *, leave_out: Iterable[Tensor] = ()) -> int:
    """Add up the storages that a forward pass keeps for its backward pass, each once.

    Args:
        run: the pass; returns what gradients start from.
        leave_out: tensors that are kept anyway, such as parameters.
    """
    own = {tensor.untyped_storage()._cdata for tensor in leave_out}
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        output = run()
    assert output.requires_grad
    return sum(storage.nbytes() for storage in kept.values())


class LiveBytes(TorchDispatchMode):
    """Follow the storages that operations make until they are freed.

    Attributes:
        live: bytes now.
        peak: most at once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = 0
        self.peak = 0
        self._known: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        for tensor in tree_leaves((args, kwargs)):
            if isinstance(tensor, Tensor):
                self._see(tensor.untyped_storage(), 0)
        results = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(results):
            if isinstance(tensor, Tensor):
                self._see(tensor.untyped_storage(), tensor.untyped_storage().nbytes())
        return results

    def _see(self, storage: torch.UntypedStorage, size: int) -> None:
        key = storage._cdata
        if key in self._known:
            return

        def gone(reference: object) -> None:
            del self._known[key]
            self.live -= size

        self._known[key] = weakref.ref(storage, gone)
        self.live += size
        self.peak = max(self.peak, self.live)
