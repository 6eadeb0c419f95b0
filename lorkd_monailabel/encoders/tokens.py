"""Tokenizers from the user's files, and one vector for a text from those of its tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from tokenizers import Tokenizer

MAX_LENGTH = 256
FILE_LIMIT_BYTES = 64 * 1024**2
_WAY_OUT = "give the tokenizer.json or vocab.txt that belongs to the encoder"


def read_tokenizer(path: Path) -> Tokenizer:
    """Read ``tokenizer.json`` as it is, or make a lower-casing WordPiece tokenizer of a ``vocab.txt``.

    One that is made adds no pieces of its own at the ends.

    Raises:
        ValueError: the package ``tokenizers`` or the file is missing, or the file is damaged or something else.
    """
    try:
        import tokenizers  # only the maker of a table needs it
    except ImportError as error:
        raise ValueError("the package tokenizers is not installed; run: pip install tokenizers") from error
    if path.is_dir():
        raise ValueError(f"{path} is a folder; {_WAY_OUT}")
    try:
        if path.stat().st_size > FILE_LIMIT_BYTES:
            raise ValueError(f"tokenizer {path} has more than {FILE_LIMIT_BYTES:,} bytes; {_WAY_OUT}")
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(f"tokenizer {path} can't be read ({error.strerror}); check the path") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"tokenizer {path} is no text in UTF-8; {_WAY_OUT}") from error
    if path.suffix != ".json":
        return _word_pieces(path, text)
    try:
        if not isinstance(json.loads(text), dict):
            raise ValueError("no table")
        tokenizer = tokenizers.Tokenizer.from_str(text)
        tokenizer.encode("a \u2603")  # one without a piece for what is unknown fails only at its first use
        return tokenizer
    except Exception as error:  # tokenizers raises no narrower type
        reason = " ".join(str(error).split())[:120]
        raise ValueError(f"tokenizer {path} can't be read ({reason}); {_WAY_OUT}") from error


def mean_of_tokens(hidden: Tensor, mask: Tensor) -> Tensor:
    """Average the tokens of each text: ``(N, L, D)`` where the mask ``(N, L)`` is true to ``(N, D)``."""
    summed = (hidden * mask[..., None]).sum(dim=1)
    return summed / mask.sum(dim=1, keepdim=True).clamp(min=1)


def _word_pieces(path: Path, text: str) -> Tokenizer:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    pieces = text.splitlines()
    numbers = {piece: number for number, piece in enumerate(pieces)}
    if len(numbers) != len(pieces):
        raise ValueError(f"tokenizer {path} has a line twice; {_WAY_OUT}")
    unknown = next((piece for piece in ("[UNK]", "<unk>") if piece in numbers), None)
    if unknown is None:
        raise ValueError(f"tokenizer {path} has no line [UNK], so it is no list of word pieces; {_WAY_OUT}")
    tokenizer = Tokenizer(models.WordPiece(numbers, unk_token=unknown))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer
