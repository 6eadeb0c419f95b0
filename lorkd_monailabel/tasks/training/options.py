"""Options of a training as a client sends them -> checked values: nothing that is not listed here has an effect."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from lorkd_monailabel.networks.segmenter import SIZES

MOST_BYTES = 100 * 1024
"""Of a request: the system refuses a longer argument of a process, and MONAI Label would wait for it for ever."""

STOCK = frozenset(
    (
        "client_id description device dataloader dataset early_stop_patience gpus local_rank max_epochs model "
        "multi_gpu name pretrained run run_id tracking tracking_experiment_name tracking_uri train_batch_size "
        "val_batch_size val_split"
    ).split()
)
"""What MONAI Label and its clients send to every train task; of these the ``gpus`` alone are used."""

_TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,99}")
_GPUS = re.compile(r"all|\d{1,2}(,\d{1,2})*")


@dataclass(frozen=True)
class TrainingOptions:
    """What a training may be told.

    Attributes:
        steps: of the schedule; of base and experts together in a decomposition.
        batch_size: samples a step.
        learning_rate: of what is trained.
        validation: share of the new subjects that are kept for validation, for ever.
        tags: of the labels to learn from, the first that an image has.
        labels: structure -> value, for label volumes that don't say it; written like "liver=1, spleen=2".
        force: publish also what is worse.
        fresh: begin anew, though an earlier run was stopped.
        augment: vary geometry and intensities.
        seed: of everything drawn.
        workers: processes that make samples.
        warmup_steps: of the base alone, in a decomposition.
        rank: of every expert, in a decomposition.
        network: size of the base, in a decomposition; empty for that of the store's base.
    """

    steps: int = 200
    batch_size: int = 4
    learning_rate: float = 1e-3
    validation: float = 0.2
    tags: str = "final"
    labels: str = ""
    force: bool = False
    fresh: bool = False
    augment: bool = True
    seed: int = 0
    workers: int = 1
    warmup_steps: int = 300
    rank: int = 4
    network: str = ""

    @property
    def tag_list(self) -> tuple[str, ...]:
        """The tags, each once."""
        return tuple(dict.fromkeys(part.strip() for part in self.tags.split(",")))

    @property
    def values(self) -> dict[str, tuple[int, ...]]:
        """Structure -> values of ``labels``."""
        found: dict[str, tuple[int, ...]] = {}
        for part in filter(None, (part.strip() for part in self.labels.split(","))):
            name, _, value = part.rpartition("=")
            found[name.strip()] = (*found.get(name.strip(), ()), int(value))
        return found


RANGES: dict[str, tuple[float, float]] = {
    "steps": (1, 1_000_000),
    "batch_size": (1, 1024),
    "learning_rate": (1e-8, 1.0),
    "validation": (0.05, 0.5),
    "seed": (0, 2**31 - 1),
    "workers": (0, 16),
    "warmup_steps": (0, 1_000_000),
    "rank": (1, 256),
}
DECOMPOSITION = ("warmup_steps", "rank", "network")
"""Options of a decomposition alone."""


def options_of(request: Mapping[str, Any], *, known: Mapping[str, Any]) -> TrainingOptions:
    """Check the options of a request.

    Args:
        request: as MONAI Label gives it to a task; lists stand for their first element, texts for numbers.
        known: option -> its default, of this task.

    Raises:
        ValueError: an option is unknown, of another type or out of its range, or all together are too long.
    """
    if len(json.dumps(request).encode()) > MOST_BYTES:
        raise ValueError(f"the options of a training are longer than {MOST_BYTES // 1024} KiB; send fewer")
    if not _GPUS.fullmatch(str(request.get("gpus") or "all")):
        raise ValueError(f"gpus {str(request['gpus'])[:40]!r} must be all, or numbers like 0,1")
    strange = sorted(set(request) - set(known) - STOCK)
    if strange:
        raise ValueError(f"option {strange[0][:60]!r} is unknown; a training takes {', '.join(known)}")
    kinds = {field.name: type(field.default) for field in fields(TrainingOptions)}
    chosen = {name: _value(name, request.get(name, default), kinds[name]) for name, default in known.items()}
    options = TrainingOptions(**chosen)
    if not all(map(_TAG.fullmatch, options.tag_list)):
        raise ValueError(f"tags {options.tags[:60]!r} must be names of tags, such as final, separated by commas")
    if options.network and options.network not in SIZES:
        raise ValueError(f"network {options.network[:40]!r} is unknown; choose one of {', '.join(SIZES)}")
    return options


def _value(name: str, value: Any, kind: type) -> Any:
    if isinstance(value, list):
        value = value[0] if value else None
    try:
        made = _of_kind(value, kind)
    except (KeyError, TypeError, ValueError, OverflowError):
        words = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
        raise ValueError(f"{name} {str(value)[:40]!r} must be {words[kind]}") from None
    if name in RANGES:
        low, high = RANGES[name]
        if not low <= made <= high:
            raise ValueError(f"{name} {value} must be in {low:g}..{high:g}")
    if name == "labels":
        _check_labels(made)
    return made


def _of_kind(value: Any, kind: type) -> Any:
    if kind is bool:
        return value if isinstance(value, bool) else {"true": True, "false": False}[str(value).strip().lower()]
    if kind is str:
        return value.strip() if isinstance(value, str) and len(value) <= 10_000 else _refuse(value)
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        _refuse(value)
    number = float(value)
    if kind is float:
        return number if math.isfinite(number) else _refuse(value)
    return int(number) if number == int(number) else _refuse(value)


def _refuse(value: Any) -> Any:
    raise ValueError(value)


def _check_labels(text: str) -> None:
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, value = part.rpartition("=")
        if not name.strip() or not value.strip().isdecimal() or not 0 < int(value) <= 32767:
            raise ValueError(f'labels {part[:60]!r} must be like "liver=1, spleen=2", values in 1..32767')
