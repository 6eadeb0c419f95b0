"""Batch-norm statistics of a department's own.

While departments train together, batch norm keeps one running mean and variance over all of them, which fit none. A
department's network is served with statistics of its own images.
"""

import copy
from collections.abc import Iterable, Mapping
from itertools import chain

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import update_bn


def department_norms(network: nn.Module, weights: Mapping[str, Tensor], batches: Iterable[Tensor]) -> dict[str, Tensor]:
    """Estimate the running mean and variance of every batch norm on one department's images alone.

    They are the mean over batches, each counting the same, of what batch norm computes in training mode. Neither the
    network nor the weights change.

    Args:
        network: plain network, of any weights.
        weights: of the department, as ``fuse`` gives them: every parameter of the network; buffers may be among them.
        batches: inputs of the network, at least one; a short last batch counts as much as a full one.

    Returns:
        Buffer name -> tensor, to be an expert's ``norms``: ``fuse`` puts them in the place of the base's. Empty for a
        network without batch norm; its batches are not read then.

    Raises:
        ValueError: the weights are not the network's, or there is no batch.
    """
    layers = {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, _BatchNorm) and module.track_running_stats
    }
    if not layers:
        return {}
    state = network.state_dict()
    wrong = {name for name, tensor in weights.items() if name not in state or tensor.shape != state[name].shape}
    wrong |= dict(network.named_parameters()).keys() - weights.keys()
    if wrong:
        raise ValueError(f"the weights and the network differ in {min(wrong)}; give the weights of this network")
    own = copy.deepcopy(network)
    own.load_state_dict(dict(weights), strict=False)
    batches = iter(batches)
    first = next(batches, None)
    if first is None:
        raise ValueError("no batch to take statistics of; give at least one batch of the department's images")
    update_bn(chain([first], batches), own, device=next(own.buffers()).device)
    buffers = dict(own.named_buffers())
    names = [f"{name}.{part}".lstrip(".") for name in layers for part in ("running_mean", "running_var")]
    return {name: buffers[name].detach().clone() for name in names}
