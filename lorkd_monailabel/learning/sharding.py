"""A network whose weights are spread over the processes (FSDP2), for foundations that are too large for one device.

Each layer is gathered while it computes and forgotten after it. A state that is written down holds whole tensors, so a
run goes on with another number of processes, or with one.
"""

import warnings
from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from lorkd_monailabel.learning.distributed import World, mapped
from lorkd_monailabel.networks.query_decoder import QueryLayer

GATHERED = (nn.Conv3d, nn.ConvTranspose3d, QueryLayer)
"""Layers that hold nearly all weights; what else there is stays together."""


def shard(network: nn.Module, world: World) -> nn.Module:
    """Spread the weights of a network over all processes, in place; a world of one leaves it as it is.

    Every process must call the network equally often from then on, for each call gathers weights from all.
    """
    if world.size == 1:
        return network.to(world.device)
    # About operators that change a layer's output in place; none of a segmenter changes that of a gathered one.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module")
    mesh = init_device_mesh(world.device.type, (world.size,))
    for module in [each for each in network.modules() if isinstance(each, GATHERED)]:
        fully_shard(module, mesh=mesh)
    fully_shard(network, mesh=mesh)
    return network


def is_sharded(tensor: Tensor) -> bool:
    """Say whether this process holds a part of a tensor only."""
    return isinstance(tensor, DTensor)


def gathered(state: Any, world: World) -> Any:
    """Make a state of whole tensors: on the first process; the others, who must call it too, get empty ones."""

    def kept(tensor: Tensor) -> Tensor:
        if not is_sharded(tensor):
            return tensor
        full = whole(tensor.detach())
        return full.cpu() if world.first else full.new_empty(0)

    return mapped(state, kept)


def whole(tensor: Tensor) -> Tensor:
    """Put a tensor together from its parts on all processes; a whole one is left as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def placed(tensor: Tensor, like: Tensor) -> Tensor:
    """Bring a whole tensor, which every process has, to where another one lies: its device, its part of the whole."""
    own = tensor.to(like.device)
    if isinstance(like, DTensor):
        return distribute_tensor(own, like.device_mesh, like.placements, src_data_rank=None)
    return own


def placed_optimizer(state: Mapping[str, Any], tensors: list[Tensor]) -> dict[str, Any]:
    """Bring the state of an optimiser of ``tensors``, in their order, to where they lie."""

    def place(tensor: Tensor, index: int) -> Tensor:
        return placed(tensor, tensors[index]) if tensor.dim() else tensor  # counts of steps are no tensor's parts

    own = {index: mapped(values, partial(place, index=index)) for index, values in state["state"].items()}
    return {**state, "state": own}
