"""Any sentence encoder that was exported as ONNX, from the user's own file; ``onnxruntime`` runs it."""

import hashlib
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lorkd_monailabel.encoders import Encoder
from lorkd_monailabel.encoders.tokens import MAX_LENGTH, mean_of_tokens, read_tokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
_POOLED = "sentence_embedding"
_PADDINGS = ("[PAD]", "<pad>")
_ENDS = (("<s>", "</s>"), ("[CLS]", "[SEP]"))
_WAY_OUT = "export the encoder anew, as optimum-cli export onnx --task feature-extraction does"


def onnx_encoder(model: Path, tokenizer: Path) -> tuple[Encoder, str]:
    """Load a sentence encoder with inputs ``input_ids``, ``attention_mask`` and, if it has it, ``token_type_ids``.

    Its output ``sentence_embedding`` is taken where there is one, else its first: one vector a text ``(N, D)`` as it
    is, one a token ``(N, L, D)`` as the mean over the text.

    Args:
        model: one file, without external data: its hash then tells all of it.
        tokenizer: ``tokenizer.json``, or ``vocab.txt`` of a lower-casing WordPiece tokenizer.

    Returns:
        The encoder and its name with SHA-256 of both files.

    Raises:
        ValueError: ``onnxruntime`` or ``tokenizers`` is not installed, or a file is missing, damaged or something else.
    """
    session, digest = _session(model)
    inputs = {each.name: each.type for each in session.get_inputs()}
    _check_inputs(inputs, model)
    outputs = [each.name for each in session.get_outputs()]
    output = _POOLED if _POOLED in outputs else outputs[0]
    pieces, pieces_digest = _pieces(tokenizer)

    def encode(texts: Sequence[str]) -> Tensor:
        encodings = pieces.encode_batch(list(texts))
        mask = torch.tensor([encoding.attention_mask for encoding in encodings])
        feed = {
            "input_ids": torch.tensor([encoding.ids for encoding in encodings]),
            "attention_mask": mask,
            "token_type_ids": torch.tensor([encoding.type_ids for encoding in encodings]),
        }
        types = {"tensor(int64)": torch.int64, "tensor(int32)": torch.int32}
        arrays = {name: feed[name].to(types[kind]).numpy() for name, kind in inputs.items()}
        try:
            (found,) = session.run([output], arrays)
        except Exception as error:  # onnxruntime's errors share no narrower type
            raise ValueError(f"{model} can't encode {len(texts)} texts ({_sentence(error)}); {_WAY_OUT}") from error
        vectors = torch.tensor(found).float()
        if vectors.ndim == 3 and vectors.shape[:2] == mask.shape:
            return mean_of_tokens(vectors, mask)
        if vectors.ndim != 2 or len(vectors) != len(texts):
            shape = tuple(vectors.shape)
            raise ValueError(f"output {output} of {model} is {shape}, neither texts x D nor texts x L x D; {_WAY_OUT}")
        return vectors

    return encode, f"ONNX sha256:{digest} tokenizer:{pieces_digest[:16]}"


def _session(path: Path) -> tuple[Any, str]:
    """Open a model, and hash it."""
    try:
        import onnxruntime  # only the maker of a table needs it
    except ImportError as error:
        raise ValueError(
            "onnxruntime, which runs ONNX encoders, is not installed; run: pip install onnxruntime"
        ) from error
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"ONNX model {path} can't be read ({error.strerror}); check the path") from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # it would write to the standard error what the sentence below says
    try:
        # A model may keep its numbers in other files, which would then be read unhashed, from memory even from the
        # current folder: it is told to look for them where nothing is.
        with tempfile.TemporaryDirectory() as empty:
            options.add_session_config_entry("session.model_external_initializers_file_folder_path", empty)
            session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors share no narrower type
        raise ValueError(f"{path} is no ONNX model that can run ({_sentence(error)}); {_WAY_OUT}") from error
    return session, hashlib.sha256(content).hexdigest()


def _check_inputs(inputs: dict[str, str], path: Path) -> None:
    missing = [name for name in _INPUTS[:2] if name not in inputs]
    if missing:
        raise ValueError(f"{path} is no text encoder: it has no input {missing[0]}; {_WAY_OUT}")
    for name, kind in inputs.items():
        if name not in _INPUTS:
            raise ValueError(f"{path} wants an input {name[:80]!r}, known are {', '.join(_INPUTS)}; {_WAY_OUT}")
        if kind not in ("tensor(int64)", "tensor(int32)"):
            raise ValueError(f"input {name} of {path} is a {kind}, expected whole numbers; {_WAY_OUT}")


def _pieces(path: Path) -> "tuple[Tokenizer, str]":
    """Read a tokenizer that pads to the longest text, and hash its file."""
    tokenizer = read_tokenizer(path)
    if path.suffix != ".json":
        _add_ends(tokenizer, path)
    padding: dict[str, Any] = dict(tokenizer.padding or {})
    if not padding:
        piece = next((piece for piece in _PADDINGS if tokenizer.token_to_id(piece) is not None), None)
        if piece is None:
            raise ValueError(f"tokenizer {path} knows no padding ({', '.join(_PADDINGS)}); give the encoder's own")
        padding = {"pad_id": tokenizer.token_to_id(piece), "pad_token": piece}
    padding.pop("length", None)  # of one length for all texts
    tokenizer.enable_padding(**padding)
    if tokenizer.truncation is None:
        tokenizer.enable_truncation(max_length=MAX_LENGTH)
    return tokenizer, hashlib.sha256(path.read_bytes()).hexdigest()


def _add_ends(tokenizer: "Tokenizer", path: Path) -> None:
    """Put the pieces around a text that BERT, or MPNet, was trained with: a list of pieces does not name them."""
    from tokenizers.processors import BertProcessing

    for first, last in _ENDS:
        first_id, last_id = tokenizer.token_to_id(first), tokenizer.token_to_id(last)
        if first_id is not None and last_id is not None:
            tokenizer.post_processor = BertProcessing((last, last_id), (first, first_id))
            return
    raise ValueError(f"tokenizer {path} has neither [CLS] and [SEP] nor <s> and </s>; give the encoder's own")


def _sentence(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
