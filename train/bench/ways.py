"""The ways to run a mixed batch that are compared: the product's, the references', and the floor.

The floor is the plain network without experts on the same batch. Each way has a forward pass (without gradients, as in
serving) and a training step (forward, and backward of a scalar loss to all parameters that it uses).
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.func import functional_call

from lorkd_monailabel.experts import fuse
from lorkd_monailabel.networks import mixed_batch
from lorkd_monailabel.networks.mixed_layer import Convolve
from train.bench import mixed_adapters
from train.bench.layers import Flora, paper
from train.bench.problem import Problem
from train.bench.timing import Way

FLOOR = "plain"
PHASES = ("forward", "step")

Step = Callable[[], Tensor]
Made = tuple[Step, Step, Sequence[Tensor]]
"""A forward pass giving the batch's outputs, a training step giving its loss, and what gets gradients."""


def plain(problem: Problem) -> Made:
    """The floor: the network without experts."""
    network = problem.network
    return _whole(problem, lambda: network(problem.inputs), problem.tensors)


def t_passes(problem: Problem) -> Made:
    """A pass of the whole batch through each known department's fused network; each sample keeps its own."""

    def forward() -> Tensor:
        outputs = torch.empty_like(problem.probe)
        for department in problem.factors:
            rows = problem.rows(department)
            outputs[rows] = _fused_pass(problem, department, None).index_select(0, rows).to(outputs.dtype)
        return outputs

    def step() -> Tensor:
        loss = torch.zeros((), device=problem.probe.device)
        for department in problem.factors:
            rows = problem.rows(department)
            own = problem.loss(_fused_pass(problem, department, None).index_select(0, rows), rows)
            own.backward()
            loss = loss + own.detach()
        return loss

    return forward, step, problem.tensors


def departments(problem: Problem) -> Made:
    """The product's training step where norms are per sample: each department present, fused, on its own samples.

    Gradients add up; one department's activations are in memory at a time (``lorkd_monailabel.learning.training``).
    """

    def forward() -> Tensor:
        outputs = torch.empty_like(problem.probe)
        for department in problem.present:
            rows = problem.rows(department)
            outputs[rows] = _fused_pass(problem, department, rows).to(outputs.dtype)
        return outputs

    def step() -> Tensor:
        loss = torch.zeros((), device=problem.probe.device)
        for department in problem.present:
            rows = problem.rows(department)
            own = problem.loss(_fused_pass(problem, department, rows), rows)
            own.backward()
            loss = loss + own.detach()
        return loss

    return forward, step, problem.tensors


def mixed(convolve: Convolve | None = None) -> Callable[[Problem], Made]:
    """A single pass of the mixed batch, each layer computed by ``convolve`` or as the product chooses."""

    def make(problem: Problem) -> Made:
        return _whole(problem, lambda: _mixed(problem, convolve), problem.tensors)

    return make


def flora(problem: Problem) -> Made:
    """FLoRA's operation at equal ranks, in a single pass."""
    own = Flora(problem.weights, problem.factors)
    tensors: list[Tensor] = [*problem.network.parameters(), *own.parameters()]
    tensors += [problem.inputs] if problem.inputs.requires_grad else []
    return _whole(problem, lambda: _mixed(problem, own), tensors)


def peft(problem: Problem) -> Made:
    """HuggingFace peft's mixed batch, with its own layout of the factors."""
    forward, tensors = mixed_adapters.adapted(problem)
    return _whole(problem, forward, tensors)


MAKERS: dict[str, Callable[[Problem], Made]] = {
    FLOOR: plain,
    "t_passes": t_passes,
    "paper": mixed(paper),
    "flora": flora,
    "peft": peft,
    "split": mixed(mixed_batch.split),
    "stacked": mixed(mixed_batch.stacked),
    "pointwise": mixed(mixed_batch.pointwise),
    "pointwise_factored": mixed(mixed_batch.pointwise_factored),
    "factored": mixed(mixed_batch.factored),
    "single_pass": mixed(),
    "departments": departments,
}
"""Name of a way -> how it is made."""


def make_ways(problem: Problem, names: Sequence[str], *, notes: dict[str, str] | None = None) -> dict[str, list[Way]]:
    """Make ways ready to be measured.

    Args:
        problem: that they solve.
        names: keys of ``MAKERS``.
        notes: name -> why this way is left out here.

    Returns:
        Phase -> ways.

    Raises:
        ValueError: an unknown name.
    """
    made: dict[str, list[Way]] = {phase: [] for phase in PHASES}
    for name in names:
        if name not in MAKERS:
            raise ValueError(f"there is no way {name!r}; use some of {', '.join(MAKERS)}")
        note = (notes or {}).get(name) or (mixed_adapters.refusal(problem) if name == "peft" else "")
        if note:
            for phase in PHASES:
                made[phase].append(Way(name, None, note=note))
            continue
        forward, step, tensors = MAKERS[name](problem)
        made["forward"].append(Way(name, torch.no_grad()(forward), tensors))
        made["step"].append(Way(name, step, tensors))
    return made


def _whole(problem: Problem, run: Callable[[], Tensor], tensors: Sequence[Tensor]) -> Made:
    def forward() -> Tensor:
        with problem.autocast():
            return run()

    def step() -> Tensor:
        loss = problem.loss(forward())
        loss.backward()
        return loss.detach()

    return forward, step, tensors


def _mixed(problem: Problem, convolve: Convolve | None) -> Tensor:
    return mixed_batch.mixed_forward(
        problem.network, problem.inputs, problem.departments, factors=problem.factors, convolve=convolve
    )


def _fused_pass(problem: Problem, department: str, rows: Tensor | None) -> Tensor:
    own = problem.factors[department]
    weights = fuse(problem.weights, own.pairs(), own.scales)
    inputs = problem.inputs if rows is None else problem.inputs.index_select(0, rows)
    with problem.autocast():
        return functional_call(problem.network, weights, (inputs,))
