"""The front door's own ``--conf`` keys, read once when the server starts."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

OPTIONAL = ("proxy", "models", "reload")
"""Parts of MONAI Label that are off unless ``--conf allow`` names them."""

MIB = 1024**2


@dataclass(frozen=True)
class DoorOptions:
    """What the operator decided.

    Attributes:
        tokens: file of the tokens; None for no tokens.
        open: whether other machines are served without tokens.
        allow: of ``OPTIONAL``.
        origins: web pages that may use the server from a browser.
        upload_bytes: most bytes of an upload.
        params_bytes: most bytes of the options of a request.
    """

    tokens: Path | None
    open: bool
    allow: frozenset[str]
    origins: tuple[str, ...]
    upload_bytes: int
    params_bytes: int


def door_options(conf: Mapping[str, str]) -> DoorOptions:
    """Read the keys that concern the front door.

    Raises:
        ValueError: a value is not usable.
    """
    allow = frozenset(filter(None, (part.strip() for part in conf.get("allow", "").split(","))))
    for part in sorted(allow - set(OPTIONAL)):
        raise ValueError(f"--conf allow {part} is unknown; choose of {', '.join(OPTIONAL)}, separated by commas")
    origins = tuple(filter(None, (part.strip().rstrip("/") for part in conf.get("origins", "").split(","))))
    for origin in origins:
        parts = urlsplit(origin)
        if parts.scheme not in ("http", "https") or not parts.netloc or parts.path or parts.query:
            raise ValueError(f"--conf origins {origin!r} must be like https://viewer.example; no * and no path")
    return DoorOptions(
        tokens=Path(conf["tokens"]) if conf.get("tokens") else None,
        open=_yes(conf.get("open", "false")),
        allow=allow,
        origins=origins,
        upload_bytes=_number(conf, "max_upload_mib", 4096) * MIB,
        params_bytes=_number(conf, "max_params_kib", 100) * 1024,
    )


def _yes(value: str) -> bool:
    known = {"true": True, "false": False}
    if value.lower() not in known:
        raise ValueError(f"--conf open {value!r} must be true or false")
    return known[value.lower()]


def _number(conf: Mapping[str, str], key: str, default: int) -> int:
    value = conf.get(key, str(default))
    if not value.isdecimal() or not 0 < int(value) <= 10**6:
        raise ValueError(f"--conf {key} {value!r} must be a whole number from 1 to 1000000")
    return int(value)
