"""From prompt to query vector: a table first, a text encoder only for what the table lacks.

A hospital's server needs the table alone (a small safetensors file); an encoder (``encoders``) builds it once.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from lorkd_monailabel.encoders import Encoder
from lorkd_monailabel.encoders.minilm import minilm
from lorkd_monailabel.encoders.onnx import onnx_encoder
from lorkd_monailabel.encoders.sat import read_sat_text_encoder, sat_text_encoder

__all__ = [
    "MODALITIES",
    "Encoder",
    "QueryTable",
    "minilm",
    "onnx_encoder",
    "read_sat_text_encoder",
    "sat_query_table",
    "sat_text_encoder",
]

FORMAT = "lorkd-queries/1"
MODALITIES = {"ct": "computed tomography", "mri": "magnetic resonance imaging"}


@dataclass(frozen=True)
class QueryTable:
    """Query vectors of known names.

    An encoder's sentence vectors lie close together ("left kidney" and "right kidney" have cosine 0.87), so the table
    holds them whitened over the vocabulary (``build``): mean taken off, every direction scaled to equal spread. Where
    networks were trained with an encoder's vectors as they are, as SAT's were, the table is a ``plain`` one.

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

        Raises:
            ValueError: the encoder gives other than one finite vector a name.
        """
        raw = _encoded(encode, names).double()
        mean = raw.mean(dim=0)
        _, values, directions = torch.linalg.svd(raw - mean, full_matrices=False)
        # Directions that the vocabulary hardly uses are noise: they keep their size relative to the median one. Those
        # that it does not use at all (with the mean gone, there is always one) are arbitrary, and left out.
        scale = torch.where(values > 1e-9 * values[0], 1 / torch.maximum(values, values.median()), 0)
        whitening = directions.T @ torch.diag(scale) @ directions
        rows = (raw - mean) @ whitening
        whitening = whitening / rows.square().mean().sqrt()
        modalities = (_encoded(encode, list(MODALITIES.values())).double() - mean) @ whitening
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
    def plain(
        cls, names: Sequence[str], encode: Encoder, *, modality_vectors: Mapping[str, Tensor], encoder: str
    ) -> "QueryTable":
        """Encode without whitening: a query is the encoder's vector plus that of the modality, as SAT adds them.

        Its space is told by the encoder alone, since no vocabulary shapes it.

        Args:
            names: the vocabulary; at least one.
            encode: texts to vectors ``(N, D)``.
            modality_vectors: of each modality, ``(D,)``.
            encoder: what to write down as the maker.

        Raises:
            ValueError: the encoder gives other than one finite vector a name, or one of another length than the
                modalities' vectors.
        """
        rows = _encoded(encode, names)
        width = rows.shape[1]
        for modality, vector in modality_vectors.items():
            if vector.shape != (width,):
                shape = tuple(vector.shape)
                raise ValueError(f"the vector of modality {modality} is {shape}, expected {(width,)} as the encoder's")
        return cls(
            names=tuple(names),
            vectors=rows,
            modality_vectors={name: vector.float() for name, vector in modality_vectors.items()},
            mean=torch.zeros(width),
            whitening=torch.eye(width),
            encoder=encoder,
            space=hashlib.sha256(json.dumps([FORMAT, "plain", encoder]).encode()).hexdigest(),
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
            names, modalities = (_names(metadata[key]) for key in ("names", "modalities"))
            width = len(tensors["mean"])
            shapes = {
                "vectors": (len(names), width),
                "modalities": (len(modalities), width),
                "mean": (width,),
                "whitening": (width, width),
            }
            for name, shape in shapes.items():
                if tensors[name].shape != shape or not tensors[name].isfinite().all():
                    raise ValueError(f"{name} is {tuple(tensors[name].shape)}, expected {shape}, all of them finite")
            return cls(
                names=tuple(names),
                vectors=tensors["vectors"].float(),
                modality_vectors=dict(zip(modalities, tensors["modalities"].float(), strict=True)),
                mean=tensors["mean"].float(),
                whitening=tensors["whitening"].float(),
                encoder=metadata["encoder"],
                space=metadata["space"],
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"query table {path} can't be read ({error!r}); restore it or build it anew") from error

    def save(self, path: str | Path) -> None:
        """Write the table; the matrix for new texts in half precision where that holds it, the rows whole."""
        half = self.whitening.half()
        held = (half - self.whitening).abs().max() <= 1e-3 * self.whitening.abs().max()
        tensors = {
            "vectors": self.vectors.contiguous(),
            "modalities": torch.stack(list(self.modality_vectors.values())),
            "mean": self.mean,
            "whitening": (half if held else self.whitening).contiguous(),
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
        """Return a table of the same space with rows for more names; known ones are left as they are.

        Raises:
            ValueError: the encoder gives other than one finite vector a name.
        """
        new = [name for name in dict.fromkeys(names) if name not in self.names]
        if not new:
            return self
        rows = (_encoded(encode, new) - self.mean) @ self.whitening
        return replace(self, names=(*self.names, *new), vectors=torch.cat((self.vectors, rows)))


def sat_query_table(names: Sequence[str], *, weights: Path, tokenizer: Path) -> QueryTable:
    """Make the table of names as SAT's own networks understand them, for its modalities ct, mri, us and pet.

    Args:
        names: the vocabulary; at least one.
        weights: SAT's ``text_encoder.pth``.
        tokenizer: ``tokenizer.json`` or ``vocab.txt`` of BioLORD-2023-C.

    Raises:
        ValueError: a file is missing, damaged or of something else.
    """
    sat = read_sat_text_encoder(weights, tokenizer)
    return QueryTable.plain(names, sat.encode, modality_vectors=sat.modality_vectors, encoder=sat.name)


def _encoded(encode: Encoder, texts: Sequence[str]) -> Tensor:
    vectors = encode(list(texts)).float()
    if vectors.ndim != 2 or len(vectors) != len(texts) or not vectors.isfinite().all():
        shape = tuple(vectors.shape)
        raise ValueError(
            f"the encoder gives {shape} for {len(texts)} texts, expected a finite vector each; use another"
        )
    return vectors


def _names(text: str) -> list[str]:
    names = json.loads(text)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names) or len({*names}) != len(names):
        raise ValueError("names must be a list of texts, each once")
    return names
