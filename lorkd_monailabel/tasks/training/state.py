"""The state of trainings in files: what a run's process writes while it learns and its server reads."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

from lorkd_monailabel.json_files import read_json, write_json
from lorkd_monailabel.learning.training import Progress

State = Literal["queued", "running", "stopping", "done", "failed", "stopped"]
OVER = ("done", "failed", "stopped")
SECONDS = 0.5
"""Between two writings of what changes with every step."""


@dataclass(frozen=True)
class RunState:
    """What there is to know of a training at one moment.

    Attributes:
        id: of the run.
        task: of MONAI Label, such as ``finetune_abdomen``.
        department: whose expert learns; empty for all.
        client: who started it; empty where it did not say.
        state: where it is; the last three are final.
        position: its place in the queue, 1 for the next; 0 where it is not queued.
        stage: what it does now: ``cases``, ``warmup``, ``train`` or ``validate``.
        step: finished steps, or cases that were prepared or validated, of ``steps`` in this stage.
        steps: see ``step``.
        loss: of the last step.
        losses: department -> its loss in the last step that had it.
        seconds_left: of this stage, at the pace so far.
        learning_rate: in the last step.
        dice: department -> its scores: ``new`` and ``current`` means, and ``structures`` -> both.
        result: department -> what became of it: ``revision`` or ``candidate``, ``published`` and ``message``.
        cases: how many were used: ``train``, ``validation`` and ``left_out``.
        message: why it failed or was stopped, or what came out, in a sentence.
        created: when it was asked for, in seconds of Unix time.
        began: when its process began; 0 before.
        ended: when it was over; 0 before.
        pid: of its process; 0 before.
    """

    id: str
    task: str
    department: str = ""
    client: str = ""
    state: State = "queued"
    position: int = 0
    stage: str = ""
    step: int = 0
    steps: int = 0
    loss: float | None = None
    losses: dict[str, float] = field(default_factory=dict)
    seconds_left: float | None = None
    learning_rate: float | None = None
    dice: dict[str, Any] = field(default_factory=dict)
    result: dict[str, Any] = field(default_factory=dict)
    cases: dict[str, int] = field(default_factory=dict)
    message: str = ""
    created: float = 0.0
    began: float = 0.0
    ended: float = 0.0
    pid: int = 0


def private_folder(folder: Path) -> None:
    """Make the folder of trainings, which nobody else may look into: prepared cases are images of patients."""
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)


def state_file(folder: Path, run: str) -> Path:
    """Give the file of a run."""
    return folder / "runs" / f"{run}.json"


def read_state(path: Path) -> RunState | None:
    """Read a state; None where there is none that can be read."""
    try:
        return RunState(**read_json(path))
    except (TypeError, ValueError):
        return None


def write_state(folder: Path, state: RunState, *, flush: bool = False) -> None:
    """Write a state under its run, and as the latest one of its task."""
    told = asdict(state)
    write_json(state_file(folder, state.id), told, flush=flush)
    write_json(folder / f"{state.task}.json", told, flush=flush)


class Teller:
    """Writes down how far a run is, not more than a few times a second.

    Args:
        folder: of the trainings.
        state: to begin with.
        clock: gives seconds.
    """

    def __init__(self, folder: Path, state: RunState, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.folder = folder
        self.state = state
        self._clock = clock
        self._written = -SECONDS

    def tell(self, *, now: bool = True, **changed: Any) -> None:
        """Change the state and write it, unless it was written a moment ago and need not be ``now``."""
        self.state = replace(self.state, **changed)
        if now or self._clock() - self._written >= SECONDS:
            write_state(self.folder, self.state, flush=self.state.state in OVER)
            self._written = self._clock()

    def stage(self, stage: str) -> Callable[[int, int], None]:
        """Begin a stage; gives what is told its steps done and in all."""
        began = self._clock()
        self.tell(stage=stage, step=0, steps=0, seconds_left=None)

        def progress(done: int, total: int) -> None:
            left = (self._clock() - began) / done * (total - done) if done else None
            self.tell(step=done, steps=total, seconds_left=left, now=False)

        return progress

    def steps(self, stage: str) -> Callable[[Progress], None]:
        """Begin a stage of learning; gives what is told of each step."""
        self.tell(stage=stage, step=0, steps=0, seconds_left=None)

        def report(progress: Progress) -> None:
            self.tell(
                step=progress.step,
                steps=progress.steps,
                loss=progress.loss,
                losses={**self.state.losses, **progress.losses},
                seconds_left=progress.seconds_left,
                learning_rate=progress.learning_rate,
                now=progress.step == progress.steps,
            )

        return report


def train_stats(state: RunState | None) -> dict[str, Any]:
    """Give what MONAI Label's clients show of a training: its own keys, and all of ours under ``lorkd``.

    ``total_time`` is there once the training is over, by which clients know.
    """
    if state is None or not state.began:
        return {}
    seconds = (state.ended or time.time()) - state.began
    known = [each.get("new", each.get("current")) for each in state.dice.values()]
    scores = [each for each in known if each is not None]
    elapsed = str(timedelta(seconds=int(max(0.0, seconds))))
    return {
        "epoch": state.step,
        "total_epochs": max(1, state.steps),
        "best_metric": sum(scores) / len(scores) if scores else 0,
        "total_time" if state.ended else "current_time": elapsed,
        "train": {"loss": state.loss, "learning_rate": state.learning_rate, "losses": state.losses},
        "eval": {"dice": state.dice},
        "lorkd": asdict(state),
    }
