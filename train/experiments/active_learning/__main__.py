"""Simulate annotation, or go on with it: which strategy reaches a Dice with the fewest labelled cases?

    python -m train.experiments.active_learning --cases cases.jsonl --folder runs/active_learning

Cases of the split ``train`` are the pool, those of ``validation`` the judges. The base is trained first, on all other
departments. Stop with Ctrl+C; the same command goes on. Tables and a picture are written after every training.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from lorkd_monailabel.departments import DEPARTMENT_IDS
from lorkd_monailabel.experts import Base
from lorkd_monailabel.learning.cases import Case, departments_of, read_cases
from lorkd_monailabel.learning.training import Interrupted, stop_on_signal
from lorkd_monailabel.store import load_base
from train import pretrain
from train.experiments.active_learning.learner import Learner, Stop, parted
from train.experiments.active_learning.plan import DEPARTMENTS, STRATEGIES, Plan
from train.experiments.active_learning.results import tables, write_results
from train.experiments.active_learning.rounds import Round, simulate
from train.reporting.provenance import write_provenance
from train.scoring.tables import markdown

HERE = Path(__file__).parent
QUICK_BASE = {"network": "tiny", "steps": 2, "data.patch": 16, "data.max_queries": 4}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the experiment; returns the exit status: 0, 2 for bad input, 130 for one that was stopped."""
    options = parser().parse_args(argv)
    if options.quick:  # what is learned there must not count as learned in earnest
        options.folder /= "quick"
    try:
        plan = plan_of(options)
        with stop_on_signal() as stop:
            cases = read_cases(options.cases, splits=("train", "validation"))
            for department in plan.departments:  # before hours are spent on a base
                parted(department, cases, plan)
            base = base_of(options, plan, cases)
            write_provenance(options.folder, plan, plan.seeds[0], device="cpu")
            rounds = run(plan, cases, base, options.folder, stop)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    except (Interrupted, KeyboardInterrupt):
        print("stopped; run again to go on", file=sys.stderr)
        return 130
    for table in tables(rounds):
        print(markdown(table), end="\n\n")
    return 0


def parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    plan = Plan()
    parser = argparse.ArgumentParser(prog=f"python -m {__package__}", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--cases", type=Path, required=True, help="list of cases (JSON lines)")
    parser.add_argument("--folder", type=Path, default=Path("runs/active_learning"), help="where all is kept")
    parser.add_argument("--base", type=Path, help="file of a base or foundation that has not seen the departments")
    parser.add_argument("--departments", nargs="+", default=list(DEPARTMENTS), choices=DEPARTMENT_IDS)
    parser.add_argument("--strategies", nargs="+", default=list(STRATEGIES), choices=STRATEGIES)
    parser.add_argument(
        "--seeds", nargs="+", type=int, default=list(plan.seeds), help="a run of each strategy for each"
    )
    parser.add_argument("--start", type=int, default=plan.start, help="cases that are labelled at first")
    parser.add_argument("--each", type=int, default=plan.each, help="cases that are labelled between two trainings")
    parser.add_argument("--rounds", type=int, default=plan.rounds, help="trainings of a strategy, the first included")
    parser.add_argument("--steps", type=int, default=plan.steps, help="of each training")
    parser.add_argument("--quick", action="store_true", help="a tiny network, two steps: does all of it work?")
    return parser


def plan_of(options: argparse.Namespace) -> Plan:
    """Make the plan of a command line.

    Raises:
        ValueError: a number is too small.
    """
    for name in ("start", "each", "rounds", "steps"):
        if getattr(options, name) < 1:
            raise ValueError(f"--{name} {getattr(options, name)} must be at least 1")
    plan = Plan(
        departments=tuple(dict.fromkeys(options.departments)),
        strategies=tuple(dict.fromkeys(options.strategies)),
        seeds=tuple(dict.fromkeys(options.seeds)),
        start=options.start,
        each=options.each,
        rounds=options.rounds,
        steps=options.steps,
    )
    return replace(plan, steps=2, patch=16, max_queries=4, rank=1) if options.quick else plan


def base_of(options: argparse.Namespace, plan: Plan, cases: Sequence[Case]) -> Base:
    """Load the base, or train one on the departments that are not annotated here.

    Raises:
        ValueError: it can't be loaded or trained.
        KeyboardInterrupt: its training was stopped; the same command goes on.
    """
    if options.base:
        return loaded(options.base)
    # a folder for each choice of departments: a base of another one has seen labels of these
    path: Path = options.folder / "_".join(["base_without", *sorted(plan.departments)]) / "foundation.safetensors"
    if not path.exists():
        train = [case for case in cases if case.split == "train"]
        others = [name for name in departments_of(train) if name not in plan.departments]
        if not others:
            raise ValueError("no department is left to train a base on; give one with --base, or more cases")
        settings = {
            "data.cases": str(options.cases),
            "data.cache": str(options.folder / "prepared"),
            "data.departments": others,
            "output": str(path.parent),
            **(QUICK_BASE if options.quick else {}),
        }
        sets = [part for name, value in settings.items() for part in ("--set", f"{name}={json.dumps(value)}")]
        status = pretrain.main([str(HERE / "base.toml"), *sets])
        if status == 130:
            raise KeyboardInterrupt
        if status:
            raise ValueError("the base could not be trained; see above, or give one with --base")
    return loaded(path)


def loaded(path: Path) -> Base:
    """Load a base, or a foundation in the role of one.

    Raises:
        ValueError: it is neither.
    """
    try:
        return load_base(path)
    except ValueError:
        return load_base(path, "foundation")


def run(plan: Plan, cases: Sequence[Case], base: Base, folder: Path, stop: Stop) -> list[Round]:
    """Run all departments, seeds and strategies, and write what is known after every training."""
    rounds: list[Round] = []
    for name in plan.departments:
        learner = Learner(name, cases, base=base, folder=folder / name, plan=plan, stop=stop)
        for seed in plan.seeds:
            for strategy in plan.strategies:
                made = simulate(
                    len(learner.pool),
                    plan,
                    department=name,
                    strategy=strategy,
                    seed=seed,
                    learn=learner.learned,
                    uncertainties=learner.uncertainties,
                    features=learner.features,
                )
                for each in made:
                    rounds.append(each)
                    write_results(rounds, folder)
    return rounds


if __name__ == "__main__":
    raise SystemExit(main())
