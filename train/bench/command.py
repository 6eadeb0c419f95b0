"""What the benchmark commands share: options, and the settings that they stand for."""

import argparse
from pathlib import Path

import torch

from train.bench.report import need_matplotlib


def add_options(parser: argparse.ArgumentParser, *, rounds: int) -> None:
    """Give a parser the options that every benchmark has."""
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda or cuda:N")
    parser.add_argument("--rounds", type=int, default=rounds, help=f"timed rounds (default {rounds})")
    parser.add_argument("--threads", type=int, default=0, help="threads that torch uses (default: its own choice)")
    parser.add_argument("--output", type=Path, default=Path("runs/bench"), help="folder of the results (runs/bench)")
    parser.add_argument("--quick", action="store_true", help="one round of tiny shapes, to see that it runs")


def apply(options: argparse.Namespace) -> None:
    """Check options and set the number of threads.

    Raises:
        ValueError: a device that is not there, or numbers out of range.
    """
    if options.rounds < 1 or options.threads < 0:
        raise ValueError(
            f"{options.rounds} rounds, {options.threads} threads: give at least 1 round, 0 or more threads"
        )
    try:
        kind = torch.device(options.device).type
    except RuntimeError as error:
        raise ValueError(f"{options.device!r} is no device; use cpu or cuda") from error
    if kind not in ("cpu", "cuda") or (kind == "cuda" and not torch.cuda.is_available()):
        raise ValueError(f"device {options.device} is not there or can't be measured; use --device cpu")
    need_matplotlib()
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.quick:
        options.rounds = 1
