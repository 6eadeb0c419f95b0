"""Measure fusion and department switch of an expert of LoRKD-Nano's size, and check that they leave no trace.

    python -m train.bench.switching [--device cuda] [--output FOLDER]

A base and experts of random weights go into a store in a temporary folder. The base is hashed, its experts are fused
with it in turn a thousand times, and it is hashed again.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import torch
from torch import nn

from lorkd_monailabel.departments import departments
from lorkd_monailabel.experts import Base, Expert, as_float, extract, fuse, fused_network, tensors_sha256
from lorkd_monailabel.networks.low_rank import Factors, layer_ranks, layer_scales, rank_limit
from lorkd_monailabel.networks.segmenter import SIZES, build_segmenter
from lorkd_monailabel.predictor import Predictor
from lorkd_monailabel.shipped import QUERIES
from lorkd_monailabel.store import ExpertStore
from lorkd_monailabel.text_encoder import QueryTable
from train.bench.command import add_options, apply
from train.bench.report import write_report
from train.bench.timing import Result, Way, measure

RANK = 8
DECODER_MULTIPLIER = 2
SPREAD = 0.02
SWITCHES = 1000
WARM_UP = 10


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="train.bench.switching", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--switches", type=int, default=SWITCHES, help=f"switches in a row (default {SWITCHES})")
    add_options(parser, rounds=10)
    options = parser.parse_args(argv)
    try:
        apply(options)
        if options.switches < 1:
            raise ValueError(f"{options.switches} switches measure nothing; ask for at least 1")
        size, switches = ("tiny", min(20, options.switches)) if options.quick else ("nano", options.switches)
        with tempfile.TemporaryDirectory() as folder:
            store = make_store(Path(folder), size)
            results = time_switches(store, size, device=options.device, rounds=options.rounds, switches=switches)
            text = write_report(results, options.output, "switching", device=options.device)
            print(f"\n## switching\n\n{text}\n{check_base(store, switches)}")
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def make_store(folder: Path, size: str) -> ExpertStore:
    """Publish a base of random weights and an expert for each of two departments.

    Args:
        folder: of the store.
        size: a key of ``SIZES``.
    """
    store = ExpertStore(folder)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        segmenter = build_segmenter(size)
        weights = {name: tensor.detach() for name, tensor in segmenter.state_dict().items()}
        space = QueryTable.load(QUERIES).space
        base = Base(network=SIZES[size], weights=weights, window=(96, 96, 96), query_space=space)
        store.publish_base(base)
        wanted = layer_ranks(segmenter.low_rank_weights(), RANK, decoder_multiplier=DECODER_MULTIPLIER)
        ranks = {name: min(rank, rank_limit(weights[name].shape)) for name, rank in wanted.items()}
        for department in departments()[:2]:
            factors = Factors(weights, ranks=ranks, scales=layer_scales(ranks))
            for lora_b in factors.lora_b:
                nn.init.normal_(lora_b, std=SPREAD)
            structures = tuple(structure.name for structure in department.structures)
            store.publish(
                extract(
                    factors,
                    department=department.id,
                    base_sha256=base.sha256,
                    spacing_mm=3.0,
                    structures=structures,
                )
            )
    return store


def time_switches(store: ExpertStore, size: str, *, device: str, rounds: int, switches: int) -> list[Result]:
    """Time fusion, the first use of a department, and switching between departments that are kept.

    Args:
        store: with a base and two experts.
        size: of the network, for the tables.
        device: a torch device.
        rounds: of the fusion.
        switches: between the departments.
    """
    case = f"{size}, rank {RANK}, decoder {RANK * DECODER_MULTIPLIER}"
    base, experts = _loaded(store)
    weights = {name: tensor.to(device) for name, tensor in as_float(base.weights).items()}
    factors = {name: (a.to(device), b.to(device)) for name, (a, b) in experts[0].factors.items()}
    ways = [
        Way("fuse", torch.no_grad()(lambda: fuse(weights, factors, experts[0].scales))),
        Way("fuse and build the network", lambda: fused_network(base, experts[0]).to(device)),
    ]
    results = measure(case, "time", ways, rounds=rounds, device=device)
    predictor = Predictor(store, device=device)
    first, second = store.departments()
    for way, department in (("first department", first), ("second department", second)):
        took = _took(lambda name=department: predictor.fused(name), device)  # type: ignore[misc]
        results.append(Result(case, "time", way, seconds=took, rounds=1))
    for number in range(WARM_UP):
        predictor.fused((first, second)[number % 2])
    warm = [
        _took(lambda name=(first, second)[number % 2]: predictor.fused(name), device)  # type: ignore[misc]
        for number in range(switches)
    ]
    results.append(Result(case, "time", "warm switch", seconds=median(warm), rounds=switches))
    results.append(Result(case, "time", "slowest warm switch", seconds=max(warm), rounds=switches))
    return results


def check_base(store: ExpertStore, switches: int) -> str:
    """Fuse the store's experts in turn with one base, and compare the base's hash before and after.

    Returns:
        A sentence for the report.

    Raises:
        ValueError: the base changed, or a department's fused weights did.
    """
    base, experts = _loaded(store)
    before = tensors_sha256(base.weights)
    fused = {expert.department: _fused_sha256(base, expert) for expert in experts}
    for number in range(switches):
        fused_network(base, experts[number % len(experts)])
    if tensors_sha256(base.weights) != before:
        raise ValueError(f"{switches} switches changed the base {before[:12]}; fuse must not write into its arguments")
    for expert in experts:
        if _fused_sha256(base, expert) != fused[expert.department]:
            raise ValueError(f"{switches} switches changed the fusion of {expert.department}; fuse must be pure")
    return f"The base is bit-identical after {switches} switches: sha256 {before} before and after."


def _loaded(store: ExpertStore) -> tuple[Base, list[Expert]]:
    return store.base(), [store.load(department) for department in store.departments()]


def _fused_sha256(base: Base, expert: Expert) -> str:
    return tensors_sha256(fused_network(base, expert).state_dict())


def _took(run: Callable[[], object], device: str) -> float:
    cuda = torch.device(device).type == "cuda"
    if cuda:
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    run()
    if cuda:
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


if __name__ == "__main__":
    raise SystemExit(main())
