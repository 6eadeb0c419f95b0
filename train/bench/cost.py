"""Count what foundation, decomposed and fused networks cost at SAT's patch, next to the paper's ratios.

    python -m train.bench.cost [--queries 16] [--output FOLDER]

Nothing is computed: images, weights and gradients lie on torch's meta device, which knows their shapes only. An
operation is a multiplication or an addition, as torch's own counter has it. Bytes are those of float32, without what a
convolution's algorithm borrows meanwhile.
"""

import argparse
import csv
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from lorkd_monailabel.experts import fuse
from lorkd_monailabel.networks.low_rank import Factors, layer_ranks, layer_scales
from lorkd_monailabel.networks.segmenter import Segmenter
from train.bench.counters import (
    PATCH,
    QUERIES,
    LiveBytes,
    Shape,
    decomposed_parameters,
    meta_segmenter,
    operations,
    patch,
    saved_bytes,
    thop_operations,
)
from train.bench.report import machine

GIB = 2**30
RANK = 8
IMBALANCED = {"nano": (12, 10, 10, 4, 8, 8, 12, 2), "pro": (4, 4, 4, 4, 4, 16, 12, 12)}
"""LoRKD*'s ranks of the eight departments."""

NAMES = {"sat_pro": "SAT-Pro", "pro": "SAT-Nano = LoRKD-Pro", "nano": "LoRKD-Nano"}
PAPER = {("pro", "sat_pro"): (22.96, 17.09), ("nano", "pro"): (52.42, 39.83)}
"""(student, foundation) -> percent of its parameters and of its computation."""

NUMBERS = (1, 16, 32, 256)
"""Queries: of one structure, of LoRKD's training, of SAT's, and of SAT's inference."""

OTHER_PATCHES: tuple[Shape, ...] = ((256, 256, 96), (288, 288, 64))

EXPLANATION = """\
LoRKD's code requires thop 0.1.1 and imports it in a comment. For the networks as released, thop adds up

    4 * sum over 3 x 3 x 3 convolutions of outputs * (27 * C_in + 4)
    + sum over transposed convolutions of outputs * 8 * C_in
    + sum over linear layers of outputs * C_in + sum over layer norms of 4 * inputs

The 4 is 2 x 2: SAT's U-Nets hold each convolution under two names, and thop hooks and adds a module once for each. The
second line is 8 times what is computed. Attention with its projections, activations and the product of masks and
pixels count nothing. The result is the paper's 17.09 % and 39.83 % with the 16 queries of its training.

torch counts 54 * C_in for an output of a convolution, 2 * C_in for one of a transposed convolution, and attention and
masks."""

Counter: TypeAlias = Callable[[Segmenter, Shape, int], int]


@dataclass(frozen=True)
class Cost:
    """What a network costs.

    Attributes:
        network: its name.
        parameters: that run, or are trained.
        forward: operations of a forward pass of one patch.
        step: operations of forward and backward pass, without the loss.
        saved_bytes: that a step keeps between its forward and its backward pass, beside the parameters.
        peak_bytes: most that a forward pass without gradients holds at once, beside parameters and image.
    """

    network: str
    parameters: int
    forward: int
    step: int
    saved_bytes: int
    peak_bytes: int


@dataclass(frozen=True)
class Variant:
    """A way to count, and what it makes of the paper's two ratios of computation, in percent.

    Attributes:
        counter: ``torch`` or ``thop``.
        patch: in voxels.
        queries: structures asked at once.
        names: of a convolution; see ``thop_operations``.
        pro: LoRKD-Pro over SAT-Pro.
        nano: LoRKD-Nano over SAT-Nano.
    """

    counter: str
    patch: str
    queries: int
    names: int
    pro: float
    nano: float


def main(argv: Sequence[str] | None = None) -> int:
    """Count; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="train.bench.cost", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--queries", type=int, default=QUERIES, help=f"structures asked at once (default {QUERIES})")
    parser.add_argument("--output", type=Path, default=Path("runs/bench"), help="folder of the results (runs/bench)")
    options = parser.parse_args(argv)
    try:
        if options.queries < 1:
            raise ValueError(f"{options.queries} queries ask for no mask; give at least 1")
        print(f"\n## cost\n\n{write(options.output, options.queries)}")
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def write(folder: Path, queries: int = QUERIES) -> str:
    """Count everything and write ``cost.md``, ``cost.csv`` and ``cost_ratios.csv``; returns the Markdown."""
    segmenters = {size: meta_segmenter(size) for size in NAMES}
    costs = []
    for size, segmenter in segmenters.items():
        costs.append(cost(segmenter, NAMES[size], queries=queries))
        if size in IMBALANCED:
            name = f"{NAMES[size].rpartition(' ')[2]}, decomposed"
            costs.append(cost(segmenter, f"{name}, 8 experts of rank {RANK}", ranks=(RANK,) * 8, queries=queries))
            costs.append(cost(segmenter, f"{name}, LoRKD*'s ranks", ranks=IMBALANCED[size], queries=queries))
    found = variants(segmenters)
    text = "\n\n".join(
        (
            f"A patch of {PATCH[0]} x {PATCH[1]} x {PATCH[2]} voxels, {queries} queries.",
            cost_table(costs),
            ratio_table(segmenters, queries),
            variant_table(found),
            EXPLANATION,
            machine(),
        )
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cost.md").write_text(text + "\n", encoding="utf-8")
    for name, rows in (("cost", [asdict(each) for each in costs]), ("cost_ratios", [asdict(each) for each in found])):
        with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    return text


def cost(
    segmenter: Segmenter, name: str = "", *, ranks: Sequence[int] = (), shape: Shape = PATCH, queries: int = QUERIES
) -> Cost:
    """Count a plain network, or its decomposition into a base and experts.

    A fused network is the plain one, so a decomposed one's forward pass is too. Its step fuses the weights of the
    department that the patch belongs to, here that of the largest rank.

    Args:
        segmenter: on the meta device.
        name: for the table.
        ranks: of the experts; none for a plain network.
        shape: of the patch, in voxels.
        queries: structures asked at once.
    """
    weights = dict(segmenter.named_parameters())
    factors = _factors(segmenter, max(ranks)) if ranks else None
    inputs = patch(segmenter, shape, queries)

    def step() -> Tensor:
        if factors is None:
            return segmenter(*inputs)
        return functional_call(segmenter, fuse(weights, factors.pairs(), factors.scales), inputs)

    parameters = [*weights.values(), *(factors.parameters() if factors else ())]
    with sdpa_kernel(SDPBackend.MATH):
        segmenter.train()
        saved = saved_bytes(step, leave_out=parameters)
        with FlopCounterMode(display=False) as counter:
            step().mean().backward()
        segmenter.zero_grad()
        segmenter.eval()
        with torch.no_grad(), LiveBytes() as live:
            segmenter(*inputs)
    return Cost(
        name,
        parameters=decomposed_parameters(segmenter, ranks),
        forward=operations(segmenter, shape, queries),
        step=counter.get_total_flops(),
        saved_bytes=saved,
        peak_bytes=live.peak,
    )


def variants(segmenters: Mapping[str, Segmenter]) -> list[Variant]:
    """Count the paper's ratios of computation in every way that it may have.

    Args:
        segmenters: by their keys in ``SIZES``, on the meta device.
    """
    twice = _thop(names=2)
    found = [_variant(segmenters, "torch", operations, queries=number) for number in NUMBERS]
    found.append(_variant(segmenters, "thop", _thop(names=1), names=1))
    found += [_variant(segmenters, "thop", twice, queries=number, names=2) for number in NUMBERS]
    found += [_variant(segmenters, "thop", twice, shape=shape, names=2) for shape in OTHER_PATCHES]
    return found


def cost_table(costs: Sequence[Cost]) -> str:
    """Lay out what networks cost, in Markdown."""
    heads = ("network", "parameters", "forward", "training step", "kept for backward", "peak of a forward pass")
    lines = [f"| {' | '.join(heads)} |", f"|---|{'---:|' * 5}"]
    for each in costs:
        lines.append(
            f"| {each.network} | {each.parameters:,} | {each.forward / 1e12:.3f} TFLOP | {each.step / 1e12:.3f} TFLOP "
            f"| {each.saved_bytes / GIB:.2f} GiB | {each.peak_bytes / GIB:.2f} GiB |"
        )
    return "\n".join(lines)


def ratio_table(segmenters: Mapping[str, Segmenter], queries: int = QUERIES) -> str:
    """Lay out the paper's four ratios beside ours, in Markdown."""
    lines = ["| student / foundation | paper | counted | difference |", "|---|---:|---:|---:|"]
    for (student, teacher), said in PAPER.items():
        counters: dict[str, Callable[[Segmenter], int]] = {
            "parameters": lambda each: decomposed_parameters(each, ()),
            "computation": lambda each: operations(each, PATCH, queries),
        }
        names = f"{NAMES[student].rpartition(' ')[2]} / {NAMES[teacher].partition(' ')[0]}"
        for (quantity, count), paper in zip(counters.items(), said, strict=True):
            own = 100 * count(segmenters[student]) / count(segmenters[teacher])
            lines.append(f"| {names}, {quantity} | {paper:.2f} % | {own:.2f} % | {round(own, 2) - paper:+.2f} |")
    return "\n".join(lines)


def variant_table(found: Sequence[Variant]) -> str:
    """Lay out ways to count, in Markdown; both of the paper's ratios in bold where both are met."""
    lines = [
        "| counter | patch | queries | names of a convolution | Pro, 17.09 % | Nano, 39.83 % |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for each in found:
        ratios = (f"{each.pro:.2f}", f"{each.nano:.2f}")
        mark = "**" if ratios == tuple(f"{computation:.2f}" for _, computation in PAPER.values()) else ""
        cells = " | ".join(f"{mark}{ratio} %{mark}" for ratio in ratios)
        lines.append(f"| {each.counter} | {each.patch} | {each.queries} | {each.names} | {cells} |")
    return "\n".join(lines)


def _thop(*, names: int) -> Counter:
    return lambda segmenter, shape, queries: thop_operations(segmenter, shape, queries, names=names)


def _variant(
    segmenters: Mapping[str, Segmenter],
    name: str,
    count: Counter,
    *,
    shape: Shape = PATCH,
    queries: int = QUERIES,
    names: int = 1,
) -> Variant:
    """Count both ratios."""
    totals = {size: count(segmenter, shape, queries) for size, segmenter in segmenters.items()}
    pro, nano = (100 * totals[student] / totals[teacher] for student, teacher in PAPER)
    return Variant(name, " x ".join(map(str, shape)), queries, names, pro, nano)


def _factors(segmenter: Segmenter, rank: int) -> Factors:
    ranks = layer_ranks(segmenter.low_rank_weights(), rank)
    with torch.device("meta"):
        return Factors(dict(segmenter.named_parameters()), ranks=ranks, scales=layer_scales(ranks))


if __name__ == "__main__":
    raise SystemExit(main())
