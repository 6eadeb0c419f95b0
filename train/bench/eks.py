"""Compare the product's mixed batch with LoRKD's EKS convolution, FLoRA, peft, T passes and the plain network.

    python -m train.bench.eks layers|unet|departments|classifier|all [--device cuda] [--bf16] [--output FOLDER]

``layers`` are single convolutions, ``unet`` is the 3D U-Net, ``departments`` asks what departments cost that are absent
from the batch, ``classifier`` is ShuffleNetV2 with batch norm. Each writes a table, a CSV file and a plot. Times come
first, then memory.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from multiprocessing import get_context

import torch

from train.bench.cases import (
    DEPARTMENTS,
    Case,
    classifier_cases,
    layer_cases,
    side,
    unet_cases,
    unet_problem,
)
from train.bench.command import add_options, apply
from train.bench.report import write_report
from train.bench.timing import Result, Way, hand_back_blocks, measure, with_memory
from train.bench.ways import FLOOR, MAKERS, make_ways

CASES = {"layers": layer_cases, "unet": unet_cases, "classifier": classifier_cases}
CHOICES = ("layers", "unet", "departments", "classifier", "all")
KNOWN = (8, 16, 32, 64)
"""Departments that there are, with the same 8 in the batch."""


@dataclass(frozen=True)
class Comparison:
    """Ways to measure against each other.

    Attributes:
        case: name in the tables.
        make: gives phase -> ways.
        floor: name of the way that the others are divided by.
        count: operations too.
    """

    case: str
    make: Callable[[], Mapping[str, Sequence[Way]]]
    floor: str = FLOOR
    count: bool = False


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="train.bench.eks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", nargs="?", choices=CHOICES, default="all", help="what to measure (default: all)")
    parser.add_argument("--bf16", action="store_true", help="under bfloat16 autocast")
    parser.add_argument("--ways", default="", help=f"only these, by commas, of {','.join(MAKERS)}")
    parser.add_argument("--case", default="", help="only cases whose name has this text in it, such as '32³'")
    add_options(parser, rounds=5)
    options = parser.parse_args(argv)
    wanted = [name for name in CHOICES if name != "all" and options.what in (name, "all")]
    try:
        apply(options)
        only = tuple(name for name in options.ways.split(",") if name)
        unknown = set(only) - set(MAKERS)
        if unknown:
            raise ValueError(f"there is no way {min(unknown)!r}; use some of {', '.join(MAKERS)}")
        if not any(comparisons(name, options, only) for name in wanted):
            raise ValueError(f"no case has {options.case!r} in its name; leave --case out to see all")
        texts: dict[str, str] = {}
        for name, results in benchmark(wanted, options, only):
            texts[name] = write_report(results, options.output, f"eks_{name}", device=options.device)
        for name, text in texts.items():
            print(f"\n## {name}\n\n{text}")
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def benchmark(
    names: Sequence[str], options: argparse.Namespace, only: Sequence[str] = ()
) -> Iterator[tuple[str, list[Result]]]:
    """Measure all times, then all memory in a process of its own.

    Args:
        names: of the tables, of ``CHOICES``.
        options: of the command.
        only: see ``comparisons``.

    Yields:
        The name of a table and its results so far, after each case.
    """
    plan = [(name, number, case) for name in names for number, case in enumerate(comparisons(name, options, only))]
    found: dict[str, list[list[Result]]] = {name: [] for name in names}
    for name, _, comparison in plan:
        print(f"time: {comparison.case} …", file=sys.stderr)
        found[name].append(times(comparison, options))
        yield name, list(chain(*found[name]))
    with ProcessPoolExecutor(1, get_context("spawn"), start_memory, (options.threads,)) as pool:
        for name, number, comparison in plan:
            print(f"memory: {comparison.case} …", file=sys.stderr)
            found[name][number] = pool.submit(memory, name, number, options, only, found[name][number]).result()
            yield name, list(chain(*found[name]))


def times(comparison: Comparison, options: argparse.Namespace) -> list[Result]:
    """Measure a comparison's times."""
    results = []
    for phase, ways in comparison.make().items():
        results += measure(
            comparison.case,
            phase,
            ways,
            floor=comparison.floor,
            rounds=options.rounds,
            device=options.device,
            count=comparison.count,
        )
    return results


def start_memory(threads: int) -> None:
    """Prepare a process for measuring memory."""
    hand_back_blocks()
    if threads:
        torch.set_num_threads(threads)


def memory(
    name: str, number: int, options: argparse.Namespace, only: Sequence[str], results: Sequence[Result]
) -> list[Result]:
    """Add memory to the results of a table's comparison, which is made anew in this process."""
    found = []
    for phase, ways in comparisons(name, options, only)[number].make().items():
        own = [result for result in results if result.phase == phase]
        found += with_memory(own, ways, device=options.device)
    return found


def comparisons(name: str, options: argparse.Namespace, only: Sequence[str] = ()) -> list[Comparison]:
    """Say what stands in a table.

    Args:
        name: one of ``CHOICES``.
        options: of the command.
        only: ways to measure, beside the floor; all of the case if none is named.
    """
    if name == "departments":
        return [
            Comparison(*absent_departments(way, options), count=True)
            for way in ("departments", "single_pass")
            if not only or way in only
        ]

    def make(case: Case) -> dict[str, list[Way]]:
        names = [way for way in case.ways if not only or way in (*only, FLOOR)]
        return make_ways(case.make(), names, notes=dict(case.notes))

    cases = CASES[name](device=options.device, bf16=options.bf16, quick=options.quick)
    return [Comparison(case.name, partial(make, case)) for case in cases if options.case in case.name]


def absent_departments(
    way: str, options: argparse.Namespace
) -> tuple[str, Callable[[], Mapping[str, Sequence[Way]]], str]:
    """Compare training steps with the same departments in the batch and ever more that are absent.

    Returns:
        Case, ways and floor of a ``Comparison``.
    """
    size, present, numbers = (8, 2, (2, 4)) if options.quick else (32, DEPARTMENTS, KNOWN)
    names = [f"T = {number}" for number in numbers]

    def make() -> dict[str, list[Way]]:
        most = unet_problem(
            size,
            present,
            present,
            known=numbers[-1],
            device=options.device,
            bf16=options.bf16,
            quick=options.quick,
        )
        ways = []
        for name, number in zip(names, numbers, strict=True):
            factors = dict(list(most.factors.items())[:number])
            _, step, tensors = MAKERS[way](replace(most, factors=factors))
            ways.append(Way(name, step, tensors))
        return {"step": ways}

    return f"{way}: U-Net {side(size, 3)}, batch {present}, {present} present", make, names[0]


if __name__ == "__main__":
    raise SystemExit(main())
