"""Test that a checkpoint in SAT's layout becomes a foundation, and that the foundation teaches a decomposition."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lorkd_monailabel.checkpoints.sat import read_sat
from lorkd_monailabel.departments import structures
from lorkd_monailabel.experts import Base
from lorkd_monailabel.store import ExpertStore, base_header, write_file
from lorkd_monailabel.text_encoder import QueryTable
from train import decompose


def test_a_sat_checkpoint_teaches_a_decomposition(
    tmp_path: Path,
    root: Path,
    state: Callable[..., dict[str, torch.Tensor]],
    file: Callable[..., Path],
    write_case: Callable[..., dict[str, Any]],
    write_list: Callable[[list[Any]], Path],
) -> None:
    network, weights = read_sat(file(state("tiny")))
    vectors = {
        name: torch.randn(24, generator=torch.Generator().manual_seed(number))
        for number, name in enumerate(structures())
    }
    table = QueryTable.plain(
        list(structures()),
        lambda names: torch.stack([vectors[name] for name in names]),
        modality_vectors={"ct": torch.zeros(24)},
        encoder="random",
    )
    table.save(tmp_path / "queries.safetensors")
    base = Base(network, weights, (32, 32, 32), table.space, about={}, intensities="sat")
    write_file(tmp_path / "foundation.safetensors", base_header(base, "foundation"), base.weights)
    labels = np.zeros((36, 36, 36), dtype=np.int16)
    labels[4:30, 6:28, 8:30] = 1
    cases = write_list([write_case(labels, {"liver": ("abdomen", [1]), "spleen": ("abdomen", [2])})])
    told = {
        "data.cases": cases,
        "data.cache": tmp_path / "cache",
        "data.intensities": "sat",
        "data.spacing_mm": "{default = [3.0, 3.0, 3.0]}",
        "data.patch": 36,
        "foundation": tmp_path / "foundation.safetensors",
        "queries": tmp_path / "queries.safetensors",
        "output": tmp_path / "run",
        "store": tmp_path / "store",
        "warmup_steps": 1,
        "steps": 1,
        "batch_size": 1,
    }
    options = [part for name, value in told.items() for part in ("--set", f"{name}={value}")]
    assert decompose.main([str(root / "train" / "configs" / "toy.toml"), *options]) == 0
    store = ExpertStore(tmp_path / "store")
    expert, student = store.load("abdomen"), store.base()
    assert student.intensities == "sat"
    assert student.query_space == table.space
    assert student.about["foundation"] == base.sha256
    assert store.queries(table.space).names == table.names
    assert any(lora_b.any() for _, lora_b in expert.factors.values())
