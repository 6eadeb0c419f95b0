"""What the ways are given: a network, a batch of several departments, their factors, and a loss that adds up."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lorkd_monailabel.networks.low_rank import Factors, layer_scales, rank_limit

SPREAD = 0.02


@dataclass(frozen=True)
class Problem:
    """A mixed batch.

    Attributes:
        network: plain; maps ``inputs`` to one tensor with a row for each sample.
        inputs: ``(B, ...)``.
        departments: of each sample.
        factors: of every department, of those too that are absent from the batch.
        probe: the gradient of the outputs, times B; shaped as they are.
        bf16: run the network under bfloat16 autocast.
    """

    network: nn.Module
    inputs: Tensor
    departments: tuple[str, ...]
    factors: Mapping[str, Factors]
    probe: Tensor
    bf16: bool

    @property
    def present(self) -> tuple[str, ...]:
        """Departments in the batch, in order of first appearance."""
        return tuple(dict.fromkeys(self.departments))

    @property
    def weights(self) -> dict[str, Tensor]:
        """The shared parameters of the network."""
        return dict(self.network.named_parameters())

    @property
    def tensors(self) -> list[Tensor]:
        """Everything that gets a gradient."""
        own = [self.inputs] if self.inputs.requires_grad else []
        factors = [tensor for each in self.factors.values() for tensor in each.parameters()]
        return [*own, *self.network.parameters(), *factors]

    def rows(self, department: str) -> Tensor:
        """Indices of a department's samples."""
        found = [row for row, name in enumerate(self.departments) if name == department]
        return torch.tensor(found, dtype=torch.long, device=self.inputs.device)

    def autocast(self) -> torch.autocast:
        """Context of a forward pass."""
        return torch.autocast(self.inputs.device.type, torch.bfloat16, enabled=self.bf16)

    def loss(self, outputs: Tensor, rows: Tensor | None = None) -> Tensor:
        """Sum ``outputs * probe / B``, of the samples ``rows`` or of all: the losses of parts add up to that of all."""
        probe = self.probe if rows is None else self.probe.index_select(0, rows)
        return (outputs.to(probe.dtype) * probe).sum() / len(self.inputs)


def make_problem(
    network: nn.Module,
    shape: Sequence[int],
    departments: Sequence[str],
    *,
    names: Sequence[str],
    known: Sequence[str],
    rank: int,
    device: str = "cpu",
    bf16: bool = False,
) -> Problem:
    """Draw random inputs and factors, the same at every call.

    Args:
        network: plain; moved to the device.
        shape: of the inputs.
        departments: of each sample.
        names: of the weights that have factors.
        known: all departments.
        rank: of every layer that can have it; else the most that it can have.
        device: a torch device.
        bf16: see ``Problem``.
    """
    network = network.to(device)
    weights = dict(network.named_parameters())
    ranks = {name: min(rank, rank_limit(weights[name].shape)) for name in names}
    dtype = next(iter(weights.values())).dtype
    with torch.random.fork_rng():
        torch.manual_seed(0)
        factors = {}
        for department in known:
            own = Factors(weights, ranks=ranks, scales=layer_scales(ranks))
            for lora_b in own.lora_b:
                nn.init.normal_(lora_b, std=SPREAD)  # zeros would leave lora_a without a gradient
            factors[department] = own.to(device, dtype)
        inputs = torch.randn(tuple(shape), dtype=dtype).to(device)
        with torch.no_grad():
            probe = torch.randn(network(inputs).shape, dtype=dtype).to(device)
    return Problem(network, inputs, tuple(departments), factors, probe, bf16)
