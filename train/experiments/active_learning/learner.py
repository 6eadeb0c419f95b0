"""What is learned from some labelled cases, and what its expert thinks of the others. All of it is kept in files."""

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from lorkd_monailabel.active_learning.scoring import ENTROPY, Scoring
from lorkd_monailabel.devices import has_fast_bf16
from lorkd_monailabel.experts import Base, Expert, as_float, extract
from lorkd_monailabel.json_files import read_json, write_json
from lorkd_monailabel.learning.cases import Case
from lorkd_monailabel.learning.engine import Engine
from lorkd_monailabel.learning.finetuning import finetune
from lorkd_monailabel.learning.losses import Objective
from lorkd_monailabel.learning.prepared import PreparedCase, prepare
from lorkd_monailabel.learning.samples import Samples
from lorkd_monailabel.learning.training import Interrupted, Loop
from lorkd_monailabel.networks.low_rank import Factors, layer_ranks, layer_scales, rank_limit
from lorkd_monailabel.networks.segmenter import Segmenter, build_segmenter
from lorkd_monailabel.pins import write_pin
from lorkd_monailabel.predictor import Predictor
from lorkd_monailabel.store import ExpertStore
from lorkd_monailabel.volumes import read_volume
from train.evaluate import NATIVE, EvaluateConfig, evaluate_case
from train.experiments.active_learning.plan import Plan
from train.reporting.bar import Bar

Stop = Callable[[], bool]


@dataclass(frozen=True)
class Learned:
    """The expert that was learned from some cases.

    Attributes:
        folder: of what is known of it.
        revision: in the learner's store.
        dice: structure -> mean Dice over the validation cases.
    """

    folder: Path
    revision: int
    dice: dict[str, float]

    @property
    def mean_dice(self) -> float:
        """Over structures."""
        return fmean(self.dice.values())


def parted(department: str, cases: Sequence[Case], plan: Plan) -> tuple[list[Case], list[Case]]:
    """Give the pool of a department and the cases that judge.

    Raises:
        ValueError: there are too few.
    """
    pool, judges = (
        [case for case in cases if case.split == split and case.of(department)] for split in ("train", "validation")
    )
    if len(pool) <= plan.start or not judges:
        raise ValueError(
            f"{department} has {len(pool)} training and {len(judges)} validation cases, but more than {plan.start} and "
            "at least one are needed; choose another department"
        )
    return pool, judges


class Learner:
    """Learns experts of one department from subsets of its training cases; the same subset is learned once.

    Args:
        department: id.
        cases: of the department, with the splits ``train`` and ``validation``.
        base: that all experts share.
        folder: of the department; another base or training has a folder of its own there.
        plan: of the experiment.
        stop: asked all the time.

    Raises:
        ValueError: see ``parted``.
    """

    def __init__(
        self, department: str, cases: Sequence[Case], *, base: Base, folder: Path, plan: Plan, stop: Stop
    ) -> None:
        self.pool, self.judges = parted(department, cases, plan)
        self.department, self.base, self.plan, self.stop = department, base, plan, stop
        self.folder = folder / _digest([base.sha256, asdict(plan.of_training())])
        self.structures = tuple(sorted({name for case in self.pool for name in case.of(department)}))
        self.store = ExpertStore(self.folder / "store")
        self.store.publish_base(base)
        self.predictor = Predictor(self.store, overlap=plan.overlap, networks_budget_bytes=0)  # one network at a time
        self.scoring = Scoring(self.predictor)

    def learned(self, labelled: Sequence[int], seed: int) -> Learned:
        """Learn from cases of the pool, by their numbers, and measure; or read what was found before.

        Raises:
            Interrupted: ``stop`` said so; what was learned is saved.
        """
        cases = [self.pool[number] for number in sorted(labelled)]
        names = [f"{case.source} {case.subject} {case.image.name}" for case in cases]
        folder = self.folder / "experts" / _digest([seed, names])
        found = read_json(folder / "result.json")
        if not found:
            expert = self._trained(sorted(labelled), seed, folder)
            revision = self.store.publish(expert)
            found = {"cases": names, "seed": seed, "revision": revision, "dice": self._measured(revision)}
            write_json(folder / "result.json", found)
            (folder / "finetune.pt").unlink(missing_ok=True)
        return Learned(folder, int(found["revision"]), {name: float(dice) for name, dice in found["dice"].items()})

    def uncertainties(self, learned: Learned, numbers: Sequence[int]) -> dict[int, float]:
        """Give the entropy of an expert on cases of the pool; each is found out once."""
        self._serve(learned.revision)
        return self._each(
            learned.folder / "entropy.json",
            numbers,
            lambda case: self.scoring.measure(
                ENTROPY, read_volume(case.image, case.modality), self.department, self._go_on
            ),
        )

    def features(self) -> dict[int, Sequence[float]]:
        """Give the feature of every case of the pool; there must be an expert, whichever."""
        return self._each(
            self.folder / "features.json",
            range(len(self.pool)),
            lambda case: self.scoring.feature(read_volume(case.image, case.modality), self.department, self._go_on),
        )

    def _each(self, path: Path, numbers: Sequence[int], find: Callable[[Case], Any]) -> dict[int, Any]:
        found = read_json(path)
        for number in numbers:
            if str(number) not in found:
                self._check()
                found[str(number)] = find(self.pool[number])
                write_json(path, found, flush=False)
        return {number: found[str(number)] for number in numbers}

    def _trained(self, labelled: Sequence[int], seed: int, folder: Path) -> Expert:
        """Learn a new expert from scratch, over the base."""
        torch.manual_seed(seed)
        start, stride = self._fresh()
        plan, prepared = self.plan, [self._prepared(self.pool[number]) for number in labelled]
        samples = Samples(
            {self.department: prepared},
            weights={self.department: 1.0},
            patch=plan.patch,
            stride=stride,
            max_queries=plan.max_queries,
            foreground=plan.foreground,
            augment=True,
            seed=seed,
        )
        with closing(Bar(f"{self.department}, {len(labelled)} cases, seed {seed}")) as bar:
            factors = finetune(
                self.base,
                start,
                samples,
                Loop(plan.batch_size, self.stop, workers=0),
                queries=self.store.queries(self.base.query_space),
                steps=plan.steps,
                learning_rate=plan.learning_rate,
                objective=Objective(balance=plan.balance),
                engine=Engine(bf16=has_fast_bf16(torch.device("cpu"))),
                checkpoint=folder / "finetune.pt",
                report=bar,
            )
        return self._extracted(factors)

    def _fresh(self) -> tuple[Expert, int]:
        """Give an expert that changes nothing yet, and the stride of its network."""
        with torch.device("meta"):
            network: Segmenter = build_segmenter(**self.base.network)
        weights = as_float(self.base.weights)
        wanted = layer_ranks(network.low_rank_weights(), self.plan.rank)
        ranks = {name: min(rank, rank_limit(weights[name].shape)) for name, rank in wanted.items()}
        return self._extracted(Factors(weights, ranks=ranks, scales=layer_scales(ranks))), network.stride

    def _extracted(self, factors: Factors) -> Expert:
        return extract(
            factors,
            department=self.department,
            base_sha256=self.base.sha256,
            spacing_mm=self.plan.spacing_of(self.department),
            structures=self.structures,
        )

    def _prepared(self, case: Case) -> PreparedCase:
        self._check()
        spacing_mm = self.plan.spacing_of(self.department)
        return prepare(
            case,
            department=self.department,
            spacing_mm=spacing_mm,
            margin_mm=max(self.plan.margin_mm, self.plan.patch * spacing_mm / 2),
            cache=self.folder / "prepared",
            intensities=self.base.intensities,
        )

    def _measured(self, revision: int) -> dict[str, float]:
        """Give the mean Dice of each structure over the validation cases, as ``train.evaluate`` finds it."""
        self._serve(revision)
        sources = sorted({case.source for case in self.judges})
        config = EvaluateConfig("", "", "", grids=[NATIVE], no_distances=sources, structures=list(self.structures))
        found: dict[str, list[float]] = {}
        for case in self.judges:
            self._check()
            for score in evaluate_case(self.predictor, case, config):
                found.setdefault(score.structure, []).append(score.dsc)
        return {name: fmean(dice) for name, dice in sorted(found.items())}

    def _serve(self, revision: int) -> None:
        write_pin(self.store.folder, self.department, revision)

    def _check(self) -> None:
        if self.stop():
            raise Interrupted("stopped; run again to go on")

    def _go_on(self, done: int, total: int) -> bool:
        self._check()
        return True


def _digest(told: Any) -> str:
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]
