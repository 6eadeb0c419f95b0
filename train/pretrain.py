"""Train a foundation from scratch: one plain network for every department.

    python -m train.pretrain train/configs/default_foundation.toml --set data.cases=cases.jsonl

Stop with Ctrl+C and run again to go on. The foundation is written to ``output/foundation.safetensors``.
"""

import sys
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import torch

from lorkd_monailabel.experts import Base
from lorkd_monailabel.learning.training import Interrupted, Trainer, run, stop_on_signal
from lorkd_monailabel.networks.segmenter import build_segmenter
from lorkd_monailabel.store import base_header, write_file
from lorkd_monailabel.volumes import three
from train.bar import Bar
from train.config import parse
from train.data import network_numbers, prepared_cases, samples_of, sources_of, table_of
from train.settings import PretrainConfig


def main(argv: Sequence[str] | None = None) -> int:
    """Run the recipe; returns the exit status."""
    config: PretrainConfig = parse(PretrainConfig, __doc__ or "", argv)
    try:
        pretrain(config)
    except (ValueError, OSError, Interrupted) as error:
        print(error, file=sys.stderr)
        return 130 if isinstance(error, Interrupted) else 2
    return 0


def pretrain(config: PretrainConfig) -> Path:
    """Train and write the foundation; return its path."""
    output = Path(config.output)
    prepared = prepared_cases(config.data)
    torch.manual_seed(config.seed)
    table = table_of(config.queries)
    numbers = network_numbers(config.network, table)
    network = build_segmenter(**numbers)
    weights = dict(network.named_parameters())
    trainer = Trainer(
        network,
        lambda department: weights,
        [(weights, config.learning_rate)],
        queries=table,
        steps=config.steps,
        balance=config.balance,
        bf16=config.bf16,
    )
    samples = samples_of(config.data, prepared, stride=network.stride, seed=config.seed)
    with stop_on_signal() as stop, Bar("pretrain") as bar:
        run(
            trainer,
            samples,
            batch_size=config.batch_size,
            checkpoint=output / "pretrain.pt",
            report=bar,
            stop=stop,
            workers=config.data.workers,
        )
    foundation = Base(
        network=numbers,
        weights={name: tensor.detach().half() for name, tensor in network.state_dict().items()},
        window=three(config.data.patch),
        query_space=table.space,
        about={"sources": sources_of(chain.from_iterable(prepared.values())), "steps": config.steps},
        intensities=config.data.intensities,
    )
    path = output / "foundation.safetensors"
    path.unlink(missing_ok=True)
    write_file(path, base_header(foundation, "foundation"), foundation.weights)
    return path


if __name__ == "__main__":
    raise SystemExit(main())
