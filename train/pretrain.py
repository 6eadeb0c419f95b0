"""Train a plain network with all its weights: a foundation for every department, or a specialist for one of them.

    python -m train.pretrain train/configs/default_foundation.toml --set data.cases=cases.jsonl
    torchrun --nproc-per-node 8 -m train.pretrain train/configs/default_foundation.toml --set data.cases=cases.jsonl

Stop with Ctrl+C and run again to go on. The foundation is written to ``output/foundation.safetensors``; ``output`` also
gets the history of the steps, ``run.json`` and ``report.html``.
"""

from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import torch

from lorkd_monailabel.experts import Base
from lorkd_monailabel.learning.distributed import World
from lorkd_monailabel.learning.losses import Objective
from lorkd_monailabel.learning.sharding import gathered, shard
from lorkd_monailabel.learning.trainer import Trainer
from lorkd_monailabel.learning.training import Loop, run, stop_on_signal
from lorkd_monailabel.networks.segmenter import Segmenter, build_segmenter
from lorkd_monailabel.store import base_header, write_file
from lorkd_monailabel.text_encoder import QueryTable
from lorkd_monailabel.volumes import three
from train.data import network_numbers, prepared_cases, samples_of, sources_of, table_of
from train.recipe import Session, cases_once, engine_of, overlays, run_recipe
from train.reporting.provenance import licensed, portable
from train.settings import PretrainConfig
from train.start import plain


def main(argv: Sequence[str] | None = None) -> int:
    """Run the recipe; returns the exit status."""
    return run_recipe(pretrain, PretrainConfig, __doc__ or "", argv)


def pretrain(config: PretrainConfig, world: World) -> list[str]:
    """Train and write the foundation."""
    output, engine = Path(config.output), engine_of(config.engine, world)
    checkpoint = output / "pretrain.pt"
    with cases_once(world):
        prepared = prepared_cases(config.data)
    torch.manual_seed(config.seed)
    table = table_of(config.queries)
    numbers = network_numbers(config.network, table)
    network = build_segmenter(**numbers)
    if config.start:
        load_start(config, network, table, tuple(prepared))
    if engine.shard:
        shard(network, world)
    trainer = Trainer(
        network,
        None,
        [(dict(network.named_parameters()), config.learning_rate)],
        queries=table,
        steps=config.steps,
        objective=Objective(balance=config.balance),
        engine=engine,
    )
    samples = samples_of(config.data, prepared, stride=network.stride, seed=config.seed)
    with Session(config, output, world) as session:
        with stop_on_signal() as stop:
            loop = Loop(config.batch_size, stop, config.data.workers)
            run(trainer, samples, loop, checkpoint=checkpoint, report=session.listener("pretrain"))
        weights = gathered(dict(network.state_dict()), world)
        shown = overlays(samples, network, table)
        if not world.first:
            return []
        foundation = Base(
            network=numbers,
            weights={name: tensor.detach().cpu().half() for name, tensor in weights.items()},
            window=three(config.data.patch),
            query_space=table.space,
            about={
                "sources": sources_of(chain.from_iterable(prepared.values())),
                "steps": config.steps,
                "training": portable(config),
                **licensed(config.licence),
            },
            intensities=config.data.intensities,
        )
        path = output / "foundation.safetensors"
        path.unlink(missing_ok=True)
        write_file(path, base_header(foundation, "foundation"), foundation.weights)
        checkpoint.unlink(missing_ok=True)  # the run is over: the same command starts another
        session.report("Foundation", shown)
    return [f"wrote {path}"]


def load_start(config: PretrainConfig, network: Segmenter, table: QueryTable, departments: Sequence[str]) -> None:
    """Put the weights to go on from into a network.

    Raises:
        ValueError: they are of another network, query table or intensities.
    """
    base, other = plain(Path(config.start), departments)
    if (base.query_space, base.intensities) != (table.space, config.data.intensities):
        raise ValueError(
            f"{config.start} has another query table or intensities ({base.intensities}); set queries and "
            "data.intensities to its own"
        )
    shapes = {name: tensor.shape for name, tensor in network.state_dict().items()}
    if shapes != {name: tensor.shape for name, tensor in other.state_dict().items()}:
        raise ValueError(f"{config.start} is another network than {config.network!r}; set network to its size")
    network.load_state_dict(other.state_dict())


if __name__ == "__main__":
    raise SystemExit(main())
