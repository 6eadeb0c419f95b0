"""Retraining of one department: its expert's factors learn, base and all other experts stay as they are."""

from collections.abc import Callable
from pathlib import Path

from lorkd_monailabel.experts import Base, Expert, as_float, fuse
from lorkd_monailabel.learning.engine import Engine
from lorkd_monailabel.learning.samples import Samples
from lorkd_monailabel.learning.trainer import Trainer
from lorkd_monailabel.learning.training import Progress, run
from lorkd_monailabel.networks.low_rank import Factors
from lorkd_monailabel.networks.segmenter import build_segmenter
from lorkd_monailabel.text_encoder import QueryTable


def finetune(
    base: Base,
    expert: Expert,
    samples: Samples,
    *,
    queries: QueryTable,
    steps: int,
    batch_size: int,
    learning_rate: float,
    balance: float,
    engine: Engine,
    checkpoint: Path,
    report: Callable[[Progress], None],
    stop: Callable[[], bool],
    workers: int = 1,
) -> Factors:
    """Train a copy of an expert's factors on new samples of its department.

    Args:
        base: that the expert was published with; left as it is.
        expert: to start from; left as it is.
        samples: stream of this department alone.
        queries: table of query vectors.
        steps: of the schedule.
        batch_size: samples a step.
        learning_rate: of the factors.
        balance: of the cross-entropy, see ``task_loss``.
        engine: how steps are computed.
        checkpoint: state of the run; resumed where it is there.
        report: told after every step.
        stop: asked after every step.
        workers: processes that make samples.

    Returns:
        The trained factors, ready for ``extract``.

    Raises:
        Interrupted: ``stop`` said so; the state is saved.
        ValueError: the expert belongs to another base.
    """
    if expert.base_sha256 != base.sha256:
        raise ValueError(
            f"expert {expert.department}/{expert.revision:04d} belongs to base {expert.base_sha256[:12]}, "
            f"not to {base.sha256[:12]}; use the base it was published with"
        )
    weights = {name: tensor.to(engine.world.device) for name, tensor in as_float(base.weights).items()}
    factors = Factors(weights, ranks=expert.ranks, scales=expert.scales)
    factors.load_pairs(expert.factors)
    norms = {name: tensor.to(engine.world.device) for name, tensor in as_float(expert.norms).items()}
    trainer = Trainer(
        build_segmenter(**base.network),
        lambda department: fuse(weights, factors.pairs(), factors.scales, norms),
        [(dict(factors.named_parameters()), learning_rate)],
        queries=queries,
        steps=steps,
        balance=balance,
        engine=engine,
    )
    run(
        trainer,
        samples,
        batch_size=batch_size,
        checkpoint=checkpoint,
        report=report,
        stop=stop,
        workers=workers,
    )
    return factors
