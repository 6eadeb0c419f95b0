"""What tests of networks share: factors of several departments, and what mixed batches are compared with."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from lorkd_monailabel.experts import fuse
from lorkd_monailabel.networks.low_rank import Factors


class Passes:
    """Factors of departments in double precision, and the separate passes that a mixed one must equal."""

    @staticmethod
    def make_factors(network: nn.Module, ranks: dict[str, int], names: Sequence[str]) -> dict[str, Factors]:
        weights = dict(network.named_parameters())
        made = {}
        for department, rank in ranks.items():
            # A rank over the layer's own limit is no rank: a convolution of one channel has none above its kernel.
            own = {name: min(rank, weights[name].shape[0], weights[name][0].numel()) for name in names}
            made[department] = Factors(weights, ranks=own, scales=dict.fromkeys(names, 16 / rank)).to(torch.float64)
            for tensor in made[department].parameters():
                nn.init.normal_(tensor)
        return made

    @staticmethod
    def gradients(
        outputs: Tensor, inputs: Tensor, network: nn.Module, factors: dict[str, Factors]
    ) -> dict[str, Tensor]:
        """Gradients of a scalar that weighs every output differently; a missing one is left out."""
        named = {"inputs": inputs, **dict(network.named_parameters())}
        for department, own in factors.items():
            named |= {f"{department}.{name}": tensor for name, tensor in own.named_parameters()}
        weights = torch.linspace(-1, 2, outputs.numel(), dtype=outputs.dtype).view_as(outputs)
        found = torch.autograd.grad((outputs * weights).sum(), list(named.values()), allow_unused=True)
        return {name: grad for name, grad in zip(named, found, strict=True) if grad is not None}

    @staticmethod
    def separate_passes(network: nn.Module, inputs: Tensor, departments: Sequence[str], factors: dict) -> Tensor:
        """Each sample alone through the plain network with the fused weights of its department."""
        base = dict(network.named_parameters())
        rows = []
        for row, department in zip(inputs, departments, strict=True):
            own = factors[department]
            rows.append(torch.func.functional_call(network, fuse(base, own.pairs(), own.scales), (row[None],)))
        return torch.cat(rows)

    @staticmethod
    def agree(found: Tensor, expected: Tensor, tolerance: float = 1e-10) -> bool:
        return bool((found - expected).norm() <= tolerance * expected.norm().clamp(min=1e-3))


@pytest.fixture(scope="session")
def passes() -> type[Passes]:
    """See ``Passes``."""
    return Passes
