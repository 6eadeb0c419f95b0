"""Measure what a second process gains on the same cores: samples a second of the training loop, with a teacher.

    python -m train.bench.scaling [--network toy] [--patch 40] [--output FOLDER]

Three ways take turns: one process of two threads, one of one thread, two of one thread each, which exchange gradients
by gloo. Each computes the same batches of base and experts.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

import torch

from lorkd_monailabel.learning.decomposition import Decomposition
from lorkd_monailabel.learning.distributed import World, joined
from lorkd_monailabel.learning.engine import Engine
from lorkd_monailabel.learning.samples import Sample
from lorkd_monailabel.learning.trainer import Trained, Trainer
from lorkd_monailabel.networks.segmenter import SIZES, build_segmenter
from lorkd_monailabel.shipped import QUERIES
from lorkd_monailabel.teachers.network import NetworkTeacher
from lorkd_monailabel.text_encoder import QueryTable
from train.bench.report import machine
from train.recipe import announce, described

WAYS = {"1 process, 2 threads": (1, 2), "1 process, 1 thread": (1, 1), "2 processes, 1 thread each": (2, 1)}
"""Name -> processes and threads of each."""

STRUCTURES = {"abdomen": ("liver", "spleen"), "thorax": ("heart", "trachea")}
BATCH = 4
WARM_UP = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="train.bench.scaling", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--network", choices=list(SIZES), default="toy", help="size of base and teacher (default toy)")
    parser.add_argument("--patch", type=int, default=40, help="voxels along each axis (default 40)")
    parser.add_argument("--steps", type=int, default=10, help=f"timed steps of {BATCH} samples (default 10)")
    parser.add_argument("--rounds", type=int, default=3, help="times that each way is measured (default 3)")
    parser.add_argument("--output", type=Path, default=Path("runs/bench"), help="folder of the results (runs/bench)")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)  # one process of one way
    options = parser.parse_args(argv)
    try:
        if min(options.patch, options.steps, options.rounds) < 1:
            raise ValueError("patch, steps and rounds must be at least 1; give larger ones")
        if options.measure:
            with joined("cpu", describe=described, announce=announce) as world:
                pace = samples_per_second(world, options.network, patch=options.patch, steps=options.steps)
                if world.first:
                    print(pace)
            return 0
        found: dict[str, list[float]] = {name: [] for name in WAYS}
        for _ in range(options.rounds):
            for name, (processes, threads) in WAYS.items():
                found[name].append(launched(options, processes=processes, threads=threads))
        text = f"{table(found)}\n\n{options.network}, patches of {options.patch}³. {machine()}\n"
        options.output.mkdir(parents=True, exist_ok=True)
        (options.output / "scaling.md").write_text(text, encoding="utf-8")
        (options.output / "scaling.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        print(f"\n## scaling\n\n{text}")
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def launched(options: argparse.Namespace, *, processes: int, threads: int) -> float:
    """Measure a way in processes of its own; samples a second.

    Raises:
        ValueError: they failed.
    """
    numbers = [f"--{name}={getattr(options, name)}" for name in ("network", "patch", "steps")]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    done = subprocess.run(
        [*command, "-m", "train.bench.scaling", "--measure", *numbers],
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )
    if done.returncode:
        raise ValueError(f"{processes} processes of {threads} threads failed: {done.stderr.strip()[-500:]}")
    return float(done.stdout.split()[-1])


def samples_per_second(world: World, size: str, *, patch: int, steps: int) -> float:
    """Train base and two experts after a teacher on samples of noise; the samples of all processes, in a second."""
    torch.manual_seed(0)
    table = QueryTable.load(QUERIES)
    numbers = {**SIZES[size], "query_dim": table.vectors.shape[1]}
    decomposition = Decomposition(build_segmenter(**numbers), ranks=dict.fromkeys(STRUCTURES, 2))
    teacher = NetworkTeacher(build_segmenter(**numbers).requires_grad_(False).eval(), table)
    trained: Trained = [(decomposition.weights, 1e-3), (decomposition.factor_tensors(), 1e-3)]
    engine = Engine(world=world)
    trainer = Trainer(
        decomposition.network,
        decomposition.weights_of,
        trained,
        queries=table,
        steps=steps + WARM_UP,
        teacher=teacher,
        engine=engine,
    )
    batch = [_sample(patch, decomposition.network.stride, name) for name in list(STRUCTURES) * (BATCH // 2)]
    own = batch[world.rank : engine.share(BATCH) * world.size : world.size]
    for step in range(steps + WARM_UP):
        if step == WARM_UP:
            world.barrier()
            began = time.perf_counter()
        trainer.train_step(own)
    world.barrier()
    return steps * BATCH / (time.perf_counter() - began)


def _sample(patch: int, stride: int, department: str) -> Sample:
    sides = [-(-patch // stride) * stride] * 3
    image, names = torch.randn(1, *sides), STRUCTURES[department]
    return Sample(department, "ct", names, image, (image.expand(len(names), -1, -1, -1) > 1).float())


def table(found: Mapping[str, Sequence[float]]) -> str:
    """Lay out the median of each way, and how many times the pace of one process of one thread that is."""
    floor = median(found["1 process, 1 thread"])
    lines = ["| way | samples/s | range | times one process, one thread |", "|---|---|---|---|"]
    for name, paces in found.items():
        middle = median(paces)
        lines.append(f"| {name} | {middle:.2f} | {min(paces):.2f}-{max(paces):.2f} | {middle / floor:.2f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
