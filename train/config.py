"""Configs: dataclasses read from TOML, with ``--set key=value`` over them."""

import argparse
import tomllib
import types
from collections.abc import Sequence
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints


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
