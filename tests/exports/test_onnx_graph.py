"""Tests of lorkd_monailabel.exports.onnx_graph: what onnxruntime gives. One export, for each takes seconds."""

import builtins
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from lorkd_monailabel.experts import fused_network
from lorkd_monailabel.exports import onnx_graph
from lorkd_monailabel.exports.formats import Exported, export


@pytest.fixture
def written(write, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Exported]:
    """A graph with its weights beside it, as large ones have them."""
    monkeypatch.setattr(onnx_graph, "INSIDE_BYTES", 0)
    return write("onnx")


def test_graph_is_run_as_its_card_says(written, tiny_base, expert, table, monkeypatch) -> None:
    folder, found = written
    files = ["README.md", "abdomen.onnx", "abdomen.onnx.data", "queries.npz", "settings.json"]
    assert [path.name for path in found.files] == files
    assert found.difference <= 1e-4
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {}
    exec(re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(encoding="utf-8"), re.S)[0], names)
    assert names["probabilities"].shape == (1, 2, 8, 8, 8)
    network, queries = fused_network(tiny_base, expert), np.load("queries.npz", allow_pickle=False)
    assert np.array_equal(queries["mri"], table.queries(("liver", "spleen"), "mri").numpy())
    for modality, rows, (batch, *shape) in (("ct", [0, 1], (1, 8, 8, 8)), ("mri", [1], (3, 2, 12, 4))):
        image, own = torch.randn(batch, 1, *shape), queries[modality][rows]
        (given,) = names["session"].run(None, {"image": image.numpy(), "queries": own})
        expected = network(image, torch.from_numpy(own)).sigmoid()
        torch.testing.assert_close(torch.from_numpy(given), expected, atol=1e-4, rtol=0)


def test_graph_is_valid_and_says_its_opset(written) -> None:
    folder, _ = written
    model = onnx.load(folder / "abdomen.onnx")
    onnx.checker.check_model(str(folder / "abdomen.onnx"), full_check=True)
    assert [(each.domain, each.version) for each in model.opset_import] == [("", 20)]
    assert "Opset 20." in (folder / "README.md").read_text(encoding="utf-8")
    assert {each.name for each in model.graph.input} == {"image", "queries"}


def test_without_onnx_it_says_what_to_install(
    tiny_base, expert, table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def without(name: str, *rest: object) -> object:
        if name == "onnxscript":
            raise ImportError("no", name=name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ValueError, match=r"format onnx needs onnxscript, which is not installed; run: pip install"):
        export(tiny_base, expert, table, tmp_path / "new", form="onnx")
    assert list(tmp_path.iterdir()) == []
