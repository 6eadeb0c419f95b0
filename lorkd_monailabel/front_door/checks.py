"""What names and options may hold, before any endpoint uses them to read or write a file."""

import json
import math
import re
import unicodedata
from typing import Any

MAX_DEPTH = 16
MAX_NAME_BYTES = 200
"""A file system gives a name 255 bytes, and its extension follows."""

UPLOADS = (".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd", ".dcm", ".bin", ".zip")
FORBIDDEN = {"model", "image", "label", "session", "session_id", "file", "description"}
"""What MONAI Label would let the options of an inference override after the request was checked."""

FORBIDDEN_FOR_TASKS = {"model", "method", "strategy", "bundle_path", "train_ds", "val_ds", "tracking_uri"}
"""What MONAI Label would let the options of a background task turn into any file, any address or other code."""

_MARKS = frozenset(" .,_+-=@#&~!()[]'")
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,99}")
_WORDS = {"tag", "label_tag", "session_id", "model", "strategy", "method", "name"}
"""Names that only programs give; images are named by people."""
_FREE_TEXT = {"text", "prompt"}
_DRIVE = re.compile(r"[A-Za-z]:[\\/]")


def check_name(key: str, value: str) -> None:
    """Check what names an image, a label, a session, a model or a tag.

    Raises:
        ValueError: it is a path, or holds what no name holds.
    """
    if any(part in value for part in ("/", "\\", "\0")) or value in (".", ".."):
        raise ValueError(f"{key} {value!r} must be a name, not a path; take it from the list of studies")
    if key in _WORDS:
        if not _WORD.fullmatch(value):
            raise ValueError(f"{key} {value[:100]!r} must be up to 100 letters, digits and _ . + -")
        return
    strange = sorted({each for each in value if unicodedata.category(each)[0] not in "LMN" and each not in _MARKS})
    if strange:
        raise ValueError(f"{key} {value[:100]!r} must be a name without {' '.join(map(ascii, strange[:5]))}")
    if value != value.strip() or value.startswith(".") or not 0 < len(value.encode()) <= MAX_NAME_BYTES:
        raise ValueError(f"{key} must be a name of at most {MAX_NAME_BYTES} bytes that begins with no dot or space")


def check_upload(file: Any, *, any_kind: bool = False) -> None:
    """Check the name of a file that is uploaded, and leave it nothing but the name: some clients send a path.

    Args:
        file: with its ``filename``, which decides the extension of the file on the server.
        any_kind: whether it may be anything but an image.

    Raises:
        ValueError: it is no name, or of a kind that is no image.
    """
    if not file.filename:
        return
    file.filename = re.split(r"[\\/]", file.filename)[-1]
    check_name("the name of the upload", file.filename)
    if not any_kind and not file.filename.lower().endswith(UPLOADS):
        raise ValueError(f"the upload {file.filename!r} must be one of {', '.join(UPLOADS)}")


def checked_object(text: str, *, key: str, limit: int, forbidden: frozenset[str] = frozenset()) -> dict[str, Any]:
    """Read options that must be a JSON object.

    Args:
        text: JSON; empty for an empty object.
        key: what they are called in the request.
        limit: bytes.
        forbidden: keys that it must not have.

    Raises:
        ValueError: it is too long, no JSON object, or ``check_value`` refuses it.
    """
    if len(text.encode("utf-8", "surrogatepass")) > limit:
        raise ValueError(f"{key} is longer than {limit // 1024} KiB; send files as files")
    options = json.loads(text or "{}")
    if not isinstance(options, dict):
        raise ValueError(f"{key} must be a JSON object, not {type(options).__name__}; write {{}} for none")
    for each in sorted(forbidden.intersection(options)):
        raise ValueError(f"{key} must not hold {each!r}; give it in the address of the request")
    if options.get("label_tag"):
        check_name("label_tag", str(options["label_tag"]))
    check_value(options, key=key)
    return options


def check_value(value: Any, *, key: str) -> None:
    """Check all that a JSON value holds.

    Raises:
        ValueError: it is nested too deeply, or holds a path, a number that is none, or characters that are none.
    """
    rest = [(value, key, 0)]
    while rest:
        each, name, depth = rest.pop()
        if depth > MAX_DEPTH:
            raise ValueError(f"{key} is nested more than {MAX_DEPTH} deep; send it flat")
        if isinstance(each, dict):
            rest += [(text, f"a key of {name}", depth + 1) for text in each]
            rest += [(inner, str(text), depth + 1) for text, inner in each.items()]
        elif isinstance(each, list):
            rest += [(inner, name, depth + 1) for inner in each]
        elif isinstance(each, float) and not math.isfinite(each):
            raise ValueError(f"{name[:60]} in {key} must be a finite number")
        elif isinstance(each, str):
            _check_text(each, name, key)


def _check_text(text: str, name: str, key: str) -> None:
    if any(letter == "\0" or "\ud800" <= letter <= "\udfff" for letter in text):
        raise ValueError(f"{name[:60]} in {key} holds NUL or half a character; send valid text")
    parts = re.split(r"[\\/]", text)
    if name not in _FREE_TEXT and (text.startswith(("/", "\\", "~")) or _DRIVE.match(text) or ".." in parts):
        raise ValueError(f"{name[:60]} in {key} must be no path, but is {text[:100]!r}")
