"""Configs: dataclasses read from TOML, with ``--set key=value`` over them."""

import argparse
import tomllib
import types
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints


@dataclass(frozen=True)
class DataConfig:
    """Which cases a run learns from and how it cuts patches.

    Attributes:
        cases: JSON lines, see ``lorkd_monailabel.learning.cases``.
        splits: keep these.
        sources: keep these; empty keeps all.
        limit: most cases of a source for each department; 0 keeps all.
        spacing_mm: department -> spacing of its grid, one number or three; ``default`` for the others.
        weights: department -> how often it is drawn; ``default`` for the others.
        patch: voxels along each axis, one number or three.
        max_queries: structures asked for at once.
        intensities: that the networks see, ``fixed`` or ``sat``, see ``lorkd_monailabel.volumes.normalise``.
        all_structures: ask for structures of other departments too where the case has them; an expert never does.
        augment: vary geometry and intensities.
        workers: processes that make samples.
        cache: folder of prepared cases.
    """

    cases: str
    splits: list[str] = field(default_factory=lambda: ["train"])
    sources: list[str] = field(default_factory=list)
    limit: int = 0
    spacing_mm: dict[str, float | list[float]] = field(default_factory=lambda: {"default": 3.0})
    weights: dict[str, float] = field(default_factory=lambda: {"default": 1.0})
    patch: int | list[int] = 64
    max_queries: int = 16
    intensities: str = "fixed"
    all_structures: bool = False
    augment: bool = True
    workers: int = 1
    cache: str = ".cache/prepared"


@dataclass(frozen=True)
class PretrainConfig:
    """A foundation trained from scratch; ``queries`` is the path of its query table, empty for the package's own."""

    data: DataConfig
    output: str
    network: str = "toy_foundation"
    queries: str = ""
    steps: int = 1000
    batch_size: int = 8
    learning_rate: float = 1e-3
    balance: float = 0.5
    bf16: bool = True
    seed: int = 0


@dataclass(frozen=True)
class DecomposeConfig:
    """Base and experts from a teacher (LoRKD, Algorithm 1).

    Attributes:
        data: cases.
        output: folder of the run's state.
        store: where base and experts are published.
        teacher: path of a foundation, a MONAI Bundle, a TorchScript or an exported program; or ``precomputed``: the
            masks that the lines of the cases name.
        foundation: another name of ``teacher``.
        queries: path of the query table of the students and of a foundation; empty for the package's own.
        network: size of the base.
        rank: of every expert; r of Eq. 2 where the rule is ``loss_reduction``.
        rank_rule: ``equal`` (LoRKD) or ``loss_reduction`` of the warm-up (LoRKD*).
        rounding: of Eq. 2, ``floor_even`` or ``nearest_even``.
        least_rank: bound of what Eq. 2 gives.
        most_rank: bound of what Eq. 2 gives.
        probe_samples: of each department, whose loss is measured before and after the warm-up.
        ranks: department -> rank that wins over the rule.
        decoder_multiplier: rank of the pixel decoder over that of the encoder.
        alpha: scale times rank.
        beta: weight of the transfer loss.
        transfer: its form, ``bernoulli`` or ``sum``, see ``lorkd_monailabel.learning.losses.transfer_loss``.
        balance: of the cross-entropy, see ``lorkd_monailabel.learning.losses.task_loss``.
        start: store whose newest base and experts to start from; empty starts from scratch. Experts keep their ranks.
        warmup_steps: of the base alone.
        steps: of base and experts together.
        batch_size: samples a step.
        learning_rate: of the base.
        expert_learning_rate: of the factors.
        half: publish in half precision.
        bf16: train under bfloat16 autocast.
        seed: of everything drawn.
    """

    data: DataConfig
    output: str
    store: str
    teacher: str = ""
    foundation: str = ""
    queries: str = ""
    network: str = "toy"
    rank: int = 8
    rank_rule: str = "equal"
    rounding: str = "floor_even"
    least_rank: int = 2
    most_rank: int = 16
    probe_samples: int = 16
    ranks: dict[str, int] = field(default_factory=dict)
    decoder_multiplier: int = 2
    alpha: float = 16.0
    beta: float = 0.1
    transfer: str = "bernoulli"
    balance: float = 0.5
    start: str = ""
    warmup_steps: int = 300
    steps: int = 1000
    batch_size: int = 8
    learning_rate: float = 1e-3
    expert_learning_rate: float = 1e-3
    half: bool = False
    bf16: bool = True
    seed: int = 0


@dataclass(frozen=True)
class FinetuneConfig:
    """Retraining of one department's expert.

    Attributes:
        data: cases; spacing and intensities are those of the expert and its base.
        department: id.
        store: of the expert; the new revision is published there.
        output: folder of the run's state.
        steps: of the schedule.
        batch_size: samples a step.
        learning_rate: of the factors.
        balance: of the cross-entropy, see ``lorkd_monailabel.learning.losses.task_loss``.
        bf16: train under bfloat16 autocast.
        seed: of everything drawn.
    """

    data: DataConfig
    department: str
    store: str
    output: str
    steps: int = 200
    batch_size: int = 4
    learning_rate: float = 1e-3
    balance: float = 0.5
    bf16: bool = True
    seed: int = 0


@dataclass(frozen=True)
class EvaluateConfig:
    """Agreement of a store's experts with labelled cases.

    Attributes:
        cases: JSON lines, see ``lorkd_monailabel.learning.cases``.
        store: of the experts.
        splits: keep these; empty keeps all.
        sources: keep these; empty keeps all.
        structures: compare these; empty compares all that are annotated and known.
        limit: most cases of a source; 0 takes all.
        output: CSV file to write; empty for none.
        device: to run on.
    """

    cases: str
    store: str
    splits: list[str] = field(default_factory=lambda: ["validation"])
    sources: list[str] = field(default_factory=list)
    structures: list[str] = field(default_factory=list)
    limit: int = 0
    output: str = ""
    device: str = "cpu"


def parse(config_class: type, description: str, argv: Sequence[str] | None) -> Any:
    """Read the command line of a recipe: a TOML file and ``--set`` overrides.

    Exits with status 2 and one sentence where they don't make a config.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("config", type=Path, help="TOML file")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="for example data.patch=48")
    arguments = parser.parse_args(argv)
    try:
        return load(config_class, arguments.config, arguments.set)
    except ValueError as error:
        parser.error(str(error))


def load(config_class: type, path: Path, overrides: Sequence[str] = ()) -> Any:
    """Make a config of a TOML file.

    Args:
        config_class: dataclass to fill.
        path: of the file.
        overrides: ``key=value``; dots reach into tables, values are TOML, and what is no TOML is text.

    Raises:
        ValueError: the file or an override can't be read, a key is unknown or missing, or a value has the wrong type.
    """
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ValueError(f"config {path} can't be read ({error}); give a TOML file") from error
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            raise ValueError(f"--set {override!r} has no '='; write key=value")
        *tables, last = key.strip().split(".")
        place = tree
        for table in tables:
            place = place.setdefault(table, {})
            if not isinstance(place, dict):
                raise ValueError(f"--set {override!r} reaches into {table}, which is no table; write {table}=value")
        place[last] = _value(text.strip())
    return _fill(config_class, tree, "")


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _fill(config_class: type, tree: dict[str, Any], prefix: str) -> Any:
    hints = get_type_hints(config_class)
    unknown = sorted(set(tree) - set(hints))
    if unknown:
        raise ValueError(f"config key {prefix}{unknown[0]} is unknown; known are {', '.join(sorted(hints))}")
    values = {}
    for entry in fields(config_class):
        key = f"{prefix}{entry.name}"
        if entry.name not in tree:
            if entry.default is MISSING and entry.default_factory is MISSING and not is_dataclass(hints[entry.name]):
                raise ValueError(f"config key {key} is missing; set it in the file or by --set {key}=…")
            if is_dataclass(hints[entry.name]):
                values[entry.name] = _fill(hints[entry.name], {}, f"{key}.")
            continue
        value = tree[entry.name]
        if is_dataclass(hints[entry.name]) and isinstance(value, dict):
            values[entry.name] = _fill(hints[entry.name], value, f"{key}.")
        else:
            values[entry.name] = _checked(value, hints[entry.name], key)
    return config_class(**values)


def _checked(value: Any, hint: Any, key: str) -> Any:
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        choices = get_args(hint)
    else:
        choices = (hint,)
    for choice in choices:
        kind = get_origin(choice) or choice
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        if isinstance(value, kind) and (kind is bool or not isinstance(value, bool)):
            if kind in (list, dict):
                inner = get_args(choice)[-1]
                items = value.items() if kind is dict else enumerate(value)
                checked = {index: _checked(item, inner, f"{key}.{index}") for index, item in items}
                return checked if kind is dict else list(checked.values())
            return value
    raise ValueError(f"config key {key} is {value!r}; it must be {hint}")
