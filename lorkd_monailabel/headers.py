"""Headers of the store's files: what each says of itself, and of which type."""

from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from torch import Tensor

from lorkd_monailabel.experts import Expert
from lorkd_monailabel.intensities import INTENSITIES

EXPERT_FIELDS = tuple(field.name for field in fields(Expert) if field.name not in ("factors", "norms"))
"""What an expert's header says; factors and norms are tensors."""


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_whole(value: object) -> bool:
    return type(value) is int


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and -1e30 < value < 1e30  # type: ignore[operator]


def _is_positive(value: object) -> bool:
    return _is_number(value) and value > 0  # type: ignore[operator]


def _is_size(value: object) -> bool:
    return _is_whole(value) and _is_positive(value)


def _is_three(rule: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: isinstance(value, list) and len(value) == 3 and all(map(rule, value))


def _is_table(value: object) -> bool:
    return isinstance(value, dict)


def _is_table_of_numbers(value: object) -> bool:
    return isinstance(value, dict) and all(map(_is_number, value.values()))


def _is_list_of_texts(value: object) -> bool:
    return isinstance(value, list) and all(map(_is_text, value))


_BASE_RULES: dict[str, Callable[[object], bool]] = {
    "sha256": _is_text,
    "network": _is_table,
    "window": _is_three(_is_size),
    "query_space": _is_text,
    "revision": _is_whole,
    "about": _is_table,
    "intensities": lambda value: isinstance(value, str) and value in INTENSITIES,
}
_EXPERT_RULES: dict[str, Callable[[object], bool]] = {
    "department": _is_text,
    "base_sha256": _is_text,
    "scales": _is_table_of_numbers,
    "ranks": lambda value: isinstance(value, dict) and all(map(_is_whole, value.values())),
    "spacing_mm": _is_three(_is_positive),
    "structures": _is_list_of_texts,
    "revision": _is_whole,
    "parent": _is_whole,
    "metrics": _is_table_of_numbers,
    "about": _is_table,
}


def expert_contents(expert: Expert) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Give header and tensors of an expert's file."""
    header = {"kind": "expert", **{name: getattr(expert, name) for name in EXPERT_FIELDS}}
    tensors = {f"norms.{name}": tensor for name, tensor in expert.norms.items()}
    for name, (lora_a, lora_b) in expert.factors.items():
        tensors |= {f"lora_a.{name}": lora_a, f"lora_b.{name}": lora_b}
    return header, tensors


def completed(header: Mapping[str, Any]) -> dict[str, Any]:
    """Write out what files written before left unsaid: one number for all axes, and the one kind of intensities."""
    whole = dict(header) if header["kind"] == "expert" else {"intensities": "fixed", **header}
    for name in ("window", "spacing_mm"):
        if _is_number(whole.get(name)):
            whole[name] = [whole[name]] * 3
    return whole


def check(header: Mapping[str, Any], path: Path) -> None:
    """Check the names and types of what a header says.

    Raises:
        ValueError: one is missing or of another type.
    """
    for name, rule in (_EXPERT_RULES if header["kind"] == "expert" else _BASE_RULES).items():
        if not rule(header.get(name)):
            raise ValueError(f"{path} can't have {str(header.get(name))[:40]!r} as {name!r}; publish it anew")
    if header["kind"] == "expert" and header["scales"].keys() != header["ranks"].keys():
        raise ValueError(f"{path} can't have scales and ranks of different weights; publish it anew")
