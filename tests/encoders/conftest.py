"""SAT's text encoder in miniature, with what Hugging Face's transformers makes of it (tests/golden/make_mpnet.py)."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from lorkd_monailabel.encoders.mpnet import MPNetSize

GOLDEN = Path(__file__).parents[1] / "golden" / "mpnet.safetensors"
SIZE = MPNetSize(pieces=30, positions=260, width=8, expanded=16, layers=2, heads=2)


@dataclass(frozen=True)
class Golden:
    """Weights by SAT's keys, pieces of the tokenizer, texts, and results."""

    state: dict[str, Tensor]
    pieces: list[str]
    texts: list[str]
    results: dict[str, Tensor]
    size: MPNetSize = SIZE


@pytest.fixture(scope="session")
def golden() -> Golden:
    tensors = load_file(GOLDEN)
    with safe_open(GOLDEN, "pt") as file:
        metadata = file.metadata()
    state = {name: tensor for name, tensor in tensors.items() if name.startswith("module.")}
    results = {name: tensor for name, tensor in tensors.items() if name not in state}
    return Golden(state, json.loads(metadata["pieces"]), json.loads(metadata["texts"]), results)


@pytest.fixture
def vocabulary(golden: Golden, tmp_path: Path) -> Path:
    """The pieces as vocab.txt."""
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join(golden.pieces) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def write_sat(golden: Golden, tmp_path: Path) -> Callable[..., Path]:
    """Write a checkpoint as SAT does; what is given replaces entries, None drops them."""

    def write(**changed: Any) -> Path:
        changed = {name.replace("__", "."): value for name, value in changed.items()}
        state = {name: value for name, value in {**golden.state, **changed}.items() if value is not None}
        path = tmp_path / "text_encoder.pth"
        torch.save({"step": 1, "model_state_dict": state}, path)
        return path

    return write
