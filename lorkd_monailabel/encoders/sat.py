"""SAT's text encoder from the user's own file: BioLORD-2023-C, a projection, and a vector for each modality."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import gelu

from lorkd_monailabel.encoders import Encoder
from lorkd_monailabel.encoders.mpnet import MPNetSize, mpnet, mpnet_shapes
from lorkd_monailabel.encoders.tokens import MAX_LENGTH, mean_of_tokens, read_tokenizer
from lorkd_monailabel.encoders.transformer import dense
from lorkd_monailabel.torch_files import checked_tensors, read_checkpoint

if TYPE_CHECKING:
    from tokenizers import Tokenizer

BIOLORD = MPNetSize()
MODALITIES = ("ct", "mri", "us", "pet")
_CHALLENGE_MODALITIES = (*MODALITIES, "microscopy")  # the encoder of SAT's CVPR 2025 challenge has a fifth row
_TOWER = "text_tower.biolord."
_PROJECTION = ("projection_layer.0", "projection_layer.2")
_FIRST, _LAST = "[CLS]", "[SEP]"
_PADDING = 0


class SATTextEncoder(NamedTuple):
    """What a file of SAT's text encoder is.

    Attributes:
        encode: texts to projected vectors ``(N, 768)``, without the modality.
        name: with SHA-256 of the weights and of the tokenizer's pieces.
        modality_vectors: of each modality, ``(768,)``; SAT adds them after the projection.
    """

    encode: Encoder
    name: str
    modality_vectors: dict[str, Tensor]


def sat_text_encoder(weights: Path, tokenizer: Path) -> tuple[Encoder, str]:
    """Load SAT's text encoder (``text_encoder.pth``); see ``read_sat_text_encoder`` for its modality vectors.

    Raises:
        ValueError: a file is missing, damaged or of something else.
    """
    return read_sat_text_encoder(weights, tokenizer)[:2]


def read_sat_text_encoder(weights: Path, tokenizer: Path, *, size: MPNetSize | None = None) -> SATTextEncoder:
    """Load SAT's text encoder with its modality vectors.

    Args:
        weights: a checkpoint with 204 keys in ``model_state_dict``.
        tokenizer: ``tokenizer.json`` or ``vocab.txt`` of BioLORD-2023-C.
        size: of the MPNet; SAT's if not given.

    Raises:
        ValueError: a file is missing, damaged or of something else.
    """
    size = size or BIOLORD
    tensors = _read(weights, size)
    pieces = _read_pieces(tokenizer, size)
    tower = {key.removeprefix(_TOWER): tensor for key, tensor in tensors.items() if key.startswith(_TOWER)}

    def encode(texts: Sequence[str]) -> Tensor:
        ids = token_ids(pieces, texts)
        mask = ids > _PADDING
        with torch.no_grad():
            pooled = mean_of_tokens(mpnet(tower, ids, mask, size=size), mask)
            return dense(gelu(dense(pooled, tensors, _PROJECTION[0])), tensors, _PROJECTION[1])

    with open(weights, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    vocabulary = hashlib.sha256(json.dumps(sorted(pieces.get_vocab().items())).encode()).hexdigest()
    rows = tensors["modality_embed.weight"]
    return SATTextEncoder(
        encode,
        f"SAT text encoder sha256:{digest} pieces:{vocabulary[:16]}",
        {name: row.clone() for name, row in zip(_CHALLENGE_MODALITIES, rows, strict=False)},
    )


def token_ids(tokenizer: "Tokenizer", texts: Sequence[str]) -> Tensor:
    """Number the pieces of texts as SAT does, ``(N, L)``: in lower case, ``[CLS]`` before and ``[SEP]`` after them.

    MPNet's own tokenizer would write ``<s>`` and ``</s>`` and pad with 1; SAT pads with 0, which is ``<s>``, and masks
    it. Of a text of more than 256 pieces the first 255 stay, and ``[SEP]``.
    """
    first, last = tokenizer.token_to_id(_FIRST), tokenizer.token_to_id(_LAST)
    rows = []
    for text in texts:
        own = tokenizer.encode(text.lower(), add_special_tokens=False).ids
        rows.append(torch.tensor([first, *own[: MAX_LENGTH - 2], last]))
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=_PADDING)


def sat_shapes(size: MPNetSize, modalities: int) -> dict[str, tuple[int, ...]]:
    """Give key and shape of every tensor in a file of SAT's text encoder."""
    shapes = {f"module.{_TOWER}{name}": shape for name, shape in mpnet_shapes(size)}
    for name in _PROJECTION:
        shapes |= {f"module.{name}.weight": (size.width, size.width), f"module.{name}.bias": (size.width,)}
    return {**shapes, "module.modality_embed.weight": (modalities, size.width)}


def _read(path: Path, size: MPNetSize) -> dict[str, Tensor]:
    content = read_checkpoint(path).get("model_state_dict")
    if not isinstance(content, dict):
        raise ValueError(f"{path} is no text encoder of SAT: it lacks model_state_dict; give SAT's text_encoder.pth")
    # transformers wrote the positions' numbers into the file up to version 4.30; SAT's own reader drops the other two
    found = {
        key: tensor
        for key, tensor in content.items()
        if key != f"module.{_TOWER}embeddings.position_ids"
        and "atlas_tower" not in str(key)
        and "temperature" not in str(key)
    }
    modalities = found.get("module.modality_embed.weight")
    challenge = isinstance(modalities, Tensor) and modalities.shape[:1] == (len(_CHALLENGE_MODALITIES),)
    shapes = sat_shapes(size, len(_CHALLENGE_MODALITIES if challenge else MODALITIES))
    tensors = checked_tensors(found, shapes, path, what="text encoder of SAT")
    return {key.removeprefix("module."): tensor.float() for key, tensor in tensors.items()}


def _read_pieces(path: Path, size: MPNetSize) -> "Tokenizer":
    tokenizer = read_tokenizer(path)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    count = tokenizer.get_vocab_size()
    if count != size.pieces or max(tokenizer.get_vocab().values()) >= size.pieces:
        raise ValueError(f"tokenizer {path} has {count} pieces, the encoder {size.pieces}; give BioLORD-2023-C's own")
    for piece in (_FIRST, _LAST):
        if tokenizer.token_to_id(piece) is None:
            raise ValueError(f"tokenizer {path} has no piece {piece}; give BioLORD-2023-C's own")
    return tokenizer
