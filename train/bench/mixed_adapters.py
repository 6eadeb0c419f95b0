"""HuggingFace peft's way to run a batch of several departments (``adapter_names``), where peft is installed."""

import copy
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from train.bench.problem import Problem

INSTALL = "peft is not installed; pip install peft"
LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


def refusal(problem: Problem) -> str:
    """Say why peft can't run this network, or nothing."""
    if find_spec("peft") is None:
        return INSTALL
    modules = dict(problem.network.named_modules())
    for name in _modules(problem):
        if not isinstance(modules[name], LAYERS) or name == "":
            return f"peft has no layer for {name or 'a network of a single layer'}"
    return ""


def adapted(problem: Problem) -> tuple[Callable[[], Tensor], list[Tensor]]:
    """Wrap a copy of the network in peft's own factors, of the same ranks and scales, for all departments.

    Its layout of the factors is another one than LoRKD's: this is for the cost. peft takes names of adapters in
    evaluation mode only; batch norms are put back into training mode, in which the others run.

    Returns:
        The forward pass of the whole batch, and what gets gradients.
    """
    peft = import_module("peft")
    first = next(iter(problem.factors.values()))
    ranks = {name.removesuffix(".weight"): rank for name, rank in first.ranks.items()}
    alphas = {name.removesuffix(".weight"): first.scales[name] * rank for name, rank in first.ranks.items()}
    config = peft.LoraConfig(
        r=max(ranks.values()), target_modules=list(ranks), rank_pattern=ranks, alpha_pattern=alphas
    )
    names = list(problem.factors)
    model = peft.get_peft_model(copy.deepcopy(problem.network), config, adapter_name=names[0])
    for name in names[1:]:
        model.add_adapter(name, config)
    model.eval()
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.train()
    model.requires_grad_(True)
    own = list(problem.departments)

    def forward() -> Tensor:
        with problem.autocast():
            return model(problem.inputs, adapter_names=own)

    inputs = [problem.inputs] if problem.inputs.requires_grad else []
    return forward, [*inputs, *model.parameters()]


def _modules(problem: Problem) -> list[str]:
    names = dict.fromkeys(name for each in problem.factors.values() for name in each.names)
    return [name.removesuffix(".weight").removesuffix("weight") for name in names]
