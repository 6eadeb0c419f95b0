"""Exported programs (``torch.export.save``): that one holds operators and numbers, and nothing that Python would run.

``torch.export.load`` unpickles parts of its archive, evaluates expressions of sizes and looks the functions of a graph
up by name in the whole of torch, from where ``os.system`` can be reached. So the archive is looked through first: the
files of one program and no more, no pickles, operators of ATen and arithmetic alone, expressions of sizes alone.
"""

import json
import re
import zipfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import torch

from lorkd_monailabel.teachers.archives import archive_entries

_FILES = re.compile(
    r"(archive_format|archive_version|byteorder|models/model\.json|data/sample_inputs/model\.pt"
    r"|data/weights/(weight_\d+|model_weights_config\.json)|data/constants/(tensor_\d+|model_constants_config\.json)"
    r"|\.data/(version|serialization_id)|\.format_version)"
)
_ARITHMETIC = "add|sub|mul|floordiv|truediv|mod|neg|pow|getitem|eq|ne|lt|le|gt|ge|and_|or_|not_"
_TARGETS = re.compile(
    rf"torch\.ops\.aten\.\w+\.\w+|_operator\.({_ARITHMETIC})|math\.(ceil|floor|trunc|sqrt)"
    r"|torch\.sym_(float|int|max|min|not|sqrt|sum)"
)
_EXPRESSION = re.compile(r"(?:[A-Za-z]\w*|'[A-Za-z]\w*'|\d+(?:\.\d+)?|[\s(),=<>*+/-])*")
_QUOTED = re.compile(r"'\w*'")
_WORDS = {
    *("Symbol", "Integer", "Rational", "Float", "Add", "Mul", "Pow", "Mod", "Max", "Min", "Abs", "True", "False"),
    *("PythonMod", "FloorDiv", "ModularIndexing", "CleanDiv", "CeilDiv", "CeilToInt", "FloorToInt", "IntTrueDiv"),
    *("TruncToInt", "Identity", "Eq", "Ne", "Lt", "Le", "Gt", "Ge", "positive", "integer", "nonnegative", "precision"),
}


def check_exported(path: Path) -> None:
    """Look an exported program through, without loading it.

    Raises:
        ValueError: it holds what is not of a plain program; nothing was run.
    """
    parts = {entry.filename.partition("/")[0] for entry in archive_entries(path)}
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            name = entry.filename.partition("/")[2]
            if len(parts) > 1 or not _FILES.fullmatch(name) or entry.compress_type != zipfile.ZIP_STORED:
                raise _refusal(path, f"the file {entry.filename[:80]!r}")
        root = parts.pop() if parts else ""
        try:
            model = json.loads(archive.read(f"{root}/models/model.json"))
            configs = [json.loads(archive.read(f"{root}/data/{kind}/model_{kind}_config.json")) for kind in _KINDS]
            inputs = archive.read(f"{root}/data/sample_inputs/model.pt")
        except (KeyError, ValueError, RecursionError, zipfile.BadZipFile, EOFError) as error:
            raise ValueError(f"{path} is no exported program ({error}); save it by torch.export.save") from error
    for config in configs:
        for name, entry in _items(config):
            path_name = entry.get("path_name") if isinstance(entry, dict) else None
            if not isinstance(path_name, str) or entry.get("use_pickle") is not False:
                raise _refusal(path, f"the pickle of {name[:80]!r}")
    if inputs:
        try:
            torch.load(BytesIO(inputs), weights_only=True)
        except Exception as error:  # what torch raises is of many types
            raise _refusal(path, "a pickle of inputs that asks to run code") from error
    for key, value in _walk(model):
        if key == "target" and not (isinstance(value, str) and _TARGETS.fullmatch(value)):
            raise _refusal(path, f"a call of {str(value)[:80]!r}")
        if key == "expr_str" and not _is_expression(value):
            raise _refusal(path, f"the expression {str(value)[:80]!r}")


_KINDS = ("weights", "constants")


def _refusal(path: Path, what: str) -> ValueError:
    return ValueError(f"{path} holds {what}, which no plain program needs; nothing of it was run: export it anew")


def _items(config: Any) -> Iterator[tuple[str, Any]]:
    inner = config.get("config") if isinstance(config, dict) else None
    yield from inner.items() if isinstance(inner, dict) else [("an unknown form", None)]


def _is_expression(value: Any) -> bool:
    if not isinstance(value, str) or "__" in value or not _EXPRESSION.fullmatch(value):
        return False
    words = re.findall(r"[A-Za-z]\w*", _QUOTED.sub("", value))
    return all(word in _WORDS or re.fullmatch(r"[su]\d+", word) for word in words)


def _walk(model: Any) -> Iterator[tuple[str, Any]]:
    waiting = [model]
    while waiting:
        place = waiting.pop()
        if isinstance(place, dict):
            yield from place.items()
            waiting += place.values()
        elif isinstance(place, list):
            waiting += place
