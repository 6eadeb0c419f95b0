"""Run the experiment, or go on with it: stage after stage, each in a process of its own that resumes where it stopped.

    python -m train.experiments.decomposition_small --cases cases.jsonl

A stage whose product is there is not run again. Stop with Ctrl+C; the same command goes on.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from lorkd_monailabel.json_files import read_json, write_json
from lorkd_monailabel.shipped import WEIGHTS
from train.experiments.decomposition_small.stages import GROUPS, Stage

HERE = Path(__file__).parent
BEAT_S = 5.0
_QUICK = {"network": "tiny", "steps": 2, "data.patch": 16, "data.max_queries": 4}
QUICK: dict[str, dict[str, object]] = {
    "pretrain": _QUICK,
    "decompose": {**_QUICK, "rank": 2, "ranks": {}},
    "finetune": {"steps": 2, "data.patch": 16, "data.max_queries": 4},
}
QUICK_WARMUP = {"warmup_steps": 2, "steps": 0, "probe_samples": 1, "most_rank": 8}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the chosen groups of stages; returns the exit status of the first that fails."""
    parser = argparse.ArgumentParser(prog=f"python -m {__package__}", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--cases", type=Path, required=True, help="list of cases (JSON lines)")
    parser.add_argument("--folder", type=Path, default=Path("runs/decomposition_small"), help="where runs are kept")
    parser.add_argument("--groups", nargs="+", choices=list(GROUPS), default=list(GROUPS), help="parts to run")
    parser.add_argument("--processes", type=int, default=1, help="that share the work of each stage")
    parser.add_argument("--seed", type=int, default=0, help="of all that is drawn; give another folder with it")
    parser.add_argument("--quick", action="store_true", help="tiny networks, two steps each: do all stages work?")
    parser.add_argument("--list", action="store_true", help="say what is done and what is left, run nothing")
    options = parser.parse_args(argv)
    if options.quick:  # what is done there must not count as done in earnest
        options.folder /= "quick"
    stages = [stage for group in options.groups for stage in GROUPS[group]]
    if options.list:
        print(overview(stages, options.folder))
        return 0
    if not options.cases.is_file():
        parser.error(f"list of cases {options.cases} is not there; give the path of a JSON lines file")
    for stage in stages:
        if not (options.folder / stage.product).exists():
            print(f"# {stage.name}", flush=True)
            status = run(stage.name, command(stage, options), options.folder)
            if status:
                return status
    print(overview(stages, options.folder))
    return 0


def run(name: str, arguments: Sequence[str], folder: Path) -> int:
    """Run a stage to its end or its interruption, and note the seconds that it took; return its exit status."""
    process = subprocess.Popen([sys.executable, "-m", *arguments])
    began, before = time.monotonic(), seconds(folder).get(name, 0.0)
    while True:
        try:
            return process.wait(BEAT_S)
        except subprocess.TimeoutExpired:
            pass
        except KeyboardInterrupt:  # the terminal told the recipe as well, which saves its state before it ends
            return process.wait()
        finally:
            write_json(folder / "seconds.json", {**seconds(folder), name: before + time.monotonic() - began})


def command(stage: Stage, options: argparse.Namespace) -> list[str]:
    """Give the module that runs a stage and its arguments."""
    folder: Path = options.folder
    settings: dict[str, object] = dict(stage.sets)
    if stage.recipe == "evaluate":
        settings |= {"cases": str(options.cases), "processes": options.processes}
    elif stage.recipe != "compare":
        settings |= {"data.cases": str(options.cases), "data.cache": str(folder / "prepared")}
        settings |= {"seed": options.seed + stage.redraw}
    settings |= {name: str(folder / path) for name, path in stage.paths.items()}
    if stage.ranks:
        settings["ranks"] = json.loads((folder / stage.ranks).read_text(encoding="utf-8"))["ranks"]
    if stage.runs:
        settings["runs"] = {name: str(folder / path) for name, path in stage.runs.items()}
    if options.quick:
        settings |= QUICK.get(stage.recipe, {})
        settings |= {"start": ""} if stage.paths.get("start", "").startswith(str(WEIGHTS)) else {}  # no tiny network
        settings |= QUICK_WARMUP if stage.name.endswith("warmup") else {}
    sets = [part for name, value in settings.items() for part in ("--set", f"{name}={toml(value)}")]
    shared = options.processes > 1 and stage.recipe not in ("evaluate", "compare")
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(options.processes), "-m"]
    return [*(launcher if shared else ()), f"train.{stage.recipe}", str(HERE / stage.config), *sets]


def toml(value: object) -> str:
    """Write a value as TOML."""
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{json.dumps(key)} = {toml(item)}" for key, item in value.items()) + " }"
    return json.dumps(value)  # the same as TOML for numbers, truth values, texts and lists of them


def overview(stages: Iterable[Stage], folder: Path) -> str:
    """Lay out which stages are done and how long they took on this machine."""
    took = seconds(folder)
    lines = []
    for stage in stages:
        state = "done" if (folder / stage.product).exists() else "begun" if stage.name in took else "to do"
        lines.append(f"{stage.name:<28}{state:<8}{took.get(stage.name, 0.0) / 3600:6.2f} h")
    return "\n".join(lines)


def seconds(folder: Path) -> dict[str, float]:
    """Read how long each stage has run so far, over all its resumptions."""
    return read_json(folder / "seconds.json")


if __name__ == "__main__":
    raise SystemExit(main())
