"""Retraining of one department: its expert's factors learn, base and all other experts stay as they are."""

from collections.abc import Callable
from pathlib import Path

from lorkd_monailabel.experts import Base, Expert, as_float, fuse
from lorkd_monailabel.learning.engine import Engine
from lorkd_monailabel.learning.losses import Objective
from lorkd_monailabel.learning.samples import Samples
from lorkd_monailabel.learning.trainer import Trainer
from lorkd_monailabel.learning.training import Loop, Progress, run
from lorkd_monailabel.networks.low_rank import Factors
from lorkd_monailabel.networks.segmenter import build_segmenter
from lorkd_monailabel.text_encoder import QueryTable


def finetune(
    base: Base,
    expert: Expert,
    samples: Samples,
    loop: Loop,
    *,
    queries: QueryTable,
    steps: int,
    learning_rate: float,
    objective: Objective,
    engine: Engine,
    checkpoint: Path,
    report: Callable[[Progress], None],
) -> Factors:
    """Train a copy of an expert's factors on new samples of its department.

    Args:
        base: that the expert was published with; left as it is.
        expert: to start from; left as it is.
        samples: stream of this department alone.
        loop: see there.
        queries: table of query vectors.
        steps: of the schedule.
        learning_rate: of the factors.
        objective: see there; without a teacher.
        engine: how steps are computed.
        checkpoint: state of the run; resumed where it is there.
        report: told after every step.

    Returns:
        The trained factors, ready for ``extract``.

    Raises:
        Interrupted: the loop's ``stop`` said so; the state is saved.
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
        objective=objective,
        engine=engine,
    )
    run(trainer, samples, loop, checkpoint=checkpoint, report=report)
    return factors
