"""Tests of `lorkd foundation`, with the text encoder in miniature of tests/golden."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from lorkd_monailabel.checkpoints.lorkd import release_shapes
from lorkd_monailabel.checkpoints.sat import sat_state
from lorkd_monailabel.departments import DEPARTMENT_IDS, structures
from lorkd_monailabel.encoders.mpnet import MPNetSize
from lorkd_monailabel.networks.segmenter import build_segmenter
from lorkd_monailabel.predictor import Predictor
from lorkd_monailabel.store import ExpertStore, load_base
from lorkd_monailabel.text_encoder import QueryTable

GOLDEN = Path(__file__).parents[1] / "golden" / "mpnet.safetensors"
NUMBERS = {
    "widths": (2, 3, 4, 5, 6, 7),
    "in_channels": 3,
    "query_dim": 8,
    "dim": 8,
    "layers": 1,
    "feedforward": 4,
    "mask_hidden": 4,
}


@pytest.fixture
def encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A text encoder whose vectors have 8 numbers, and its pieces."""
    size = MPNetSize(pieces=30, positions=260, width=8, expanded=16, layers=2, heads=2)
    monkeypatch.setattr("lorkd_monailabel.encoders.sat.BIOLORD", size)
    with safe_open(GOLDEN, "pt") as file:
        pieces = json.loads(file.metadata()["pieces"])
    state = {name: each for name, each in load_file(GOLDEN).items() if name.startswith("module.")}
    torch.save({"step": 1, "model_state_dict": state}, tmp_path / "text_encoder.pth")
    (tmp_path / "vocab.txt").write_text("\n".join(pieces) + "\n", encoding="utf-8")
    return tmp_path / "text_encoder.pth", tmp_path / "vocab.txt"


@pytest.fixture
def sat(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    network = build_segmenter(**NUMBERS)
    torch.save({"model_state_dict": sat_state(NUMBERS, network.state_dict())}, tmp_path / "sat.pth")
    return tmp_path / "sat.pth"


@pytest.fixture
def lorkd_file(tmp_path: Path) -> Path:
    with torch.device("meta"):
        network = build_segmenter(**NUMBERS)
    generator = torch.Generator().manual_seed(0)
    state = {
        f"model.module.{name}": torch.randn(shape, generator=generator) / 10
        for name, shape in release_shapes(network, (4, 4, 4, 4, 4, 16, 12, 12)).items()
    }
    torch.save({"model_state_dict": state}, tmp_path / "lorkd.pth")
    return tmp_path / "lorkd.pth"


def contents(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_import_sat_and_show(lorkd: Callable, sat: Path, encoder: tuple[Path, Path], tmp_path: Path) -> None:
    weights, tokenizer = encoder
    output = tmp_path / "new" / "sat"
    outcome = lorkd("foundation", "import", "sat", sat, weights, "--tokenizer", tokenizer, "--output", output)
    assert (outcome.status, outcome.err) == (0, "")
    first, second, third = outcome.out.splitlines()
    assert first.startswith("licence: SAT states none for its code or its weights; they are yours to obtain")
    assert second.startswith(f"{output / 'foundation.safetensors'}: ")
    assert second.endswith(" weights, a shape of its own")
    base, table = (
        load_base(output / "foundation.safetensors", "foundation"),
        QueryTable.load(output / "queries.safetensors"),
    )
    assert third == f"{output / 'queries.safetensors'}: {len(structures())} names, space {table.space[:12]}"
    assert (base.window, base.intensities, base.query_space) == ((288, 288, 96), "sat", table.space)
    assert base.about == {
        "sources": ["SAT"],
        "spacing_mm": [1.0, 1.0, 3.0],
        "licence": "none stated by SAT; the user's own file",
    }
    raw = torch.load(sat, weights_only=True)["model_state_dict"]
    assert torch.equal(base.weights["projection.0.weight"], raw["module.projection_layer.0.weight"])
    assert table.queries(["liver"], "ct").shape == (1, 8)
    assert contents(output) == {"foundation.safetensors", "queries.safetensors"}

    again = lorkd("foundation", "import", "sat", sat, weights, "--tokenizer", tokenizer, "--output", output)
    assert again.status == 2
    assert "foundation.safetensors exists already" in again.err
    shown = lorkd("foundation", "show", output / "foundation.safetensors")
    assert {"window: 288, 288, 96", "intensities: sat", "kind: foundation"} <= set(shown.out.splitlines())
    shown = lorkd("foundation", "show", sat).out
    assert "SAT: give it with its text encoder" in shown
    assert "licence: SAT states none" in shown


def test_import_lorkd_and_show(lorkd: Callable, lorkd_file: Path, encoder: tuple[Path, Path], tmp_path: Path) -> None:
    weights, tokenizer = encoder
    store = ExpertStore(tmp_path / "store")
    outcome = lorkd("foundation", "import", "lorkd", lorkd_file, "--text-encoder", weights, "--tokenizer", tokenizer,
                    "--store", store.folder)  # fmt: skip
    assert (outcome.status, outcome.err) == (0, "")
    assert "spine/0001: 29 structures, rank 16" in outcome.out.splitlines()
    assert outcome.out.startswith("licence: LoRKD's segmentation code is Apache-2.0")
    assert store.departments() == DEPARTMENT_IDS
    fused = Predictor(store).fused("spine")
    assert (fused.spacing_mm, fused.window, fused.intensities) == ((1.0, 1.0, 3.0), (288, 288, 96), "sat")
    assert fused.queries.space == store.base().query_space
    assert lorkd("doctor", "--store", store.folder).out.count("at 1 x 1 x 3 mm, loads and fuses") == 8
    shown = lorkd("foundation", "show", lorkd_file).out
    assert "LoRKD: ranks abdomen 4, brain 4, head_and_neck 4, lower_limb 4, pelvis 4, spine 16, thorax 12" in shown


@pytest.mark.parametrize("broken", ["file", "text encoder", "tokenizer", "pair", "empty"])
@pytest.mark.parametrize("maker", ["sat", "lorkd"])
def test_what_is_wrong_is_refused_and_nothing_is_written(
    lorkd: Callable, sat: Path, lorkd_file: Path, encoder: tuple[Path, Path], tmp_path: Path, maker: str, broken: str
) -> None:
    weights, tokenizer = encoder
    file = {"sat": sat, "lorkd": lorkd_file}[maker]
    if broken == "pair":
        torch.manual_seed(0)
        network = {**NUMBERS, "query_dim": 16, "dim": 16}
        with torch.device("meta"):
            other = release_shapes(build_segmenter(**network), (8,) * 8)
        states = {
            "sat": lambda: sat_state(network, build_segmenter(**network).state_dict()),
            "lorkd": lambda: {name: torch.zeros(shape) for name, shape in other.items()},
        }
        torch.save(states[maker](), file)
        message = "makes vectors of 8 numbers, the network of"
    else:
        damaged = {"file": file, "text encoder": weights, "tokenizer": tokenizer, "empty": file}[broken]
        damaged.write_bytes(b"" if broken == "empty" else damaged.read_bytes()[:20])
        message = str(damaged)
    before = contents(tmp_path)
    output = tmp_path / "output"
    words = ["foundation", "import", maker, file, "--tokenizer", tokenizer]
    words += [weights, "--output", output] if maker == "sat" else ["--text-encoder", weights, "--store", output]
    outcome = lorkd(*words)
    assert outcome.status == 2
    assert outcome.err.startswith("lorkd: ")
    assert outcome.err.count("\n") == 1
    assert message in outcome.err
    assert contents(tmp_path) == before


def test_a_write_that_fails_leaves_no_table_alone(
    lorkd: Callable, sat: Path, encoder: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lorkd_monailabel.store.save_file", fail)
    outcome = lorkd(
        "foundation", "import", "sat", sat, encoder[0], "--tokenizer", encoder[1], "--output", tmp_path / "output"
    )
    assert outcome.status == 2
    assert "No space left" in outcome.err
    assert contents(tmp_path / "output") == set()


def test_refuses_outputs_that_are_files(lorkd: Callable, sat: Path, encoder: tuple[Path, Path]) -> None:
    words = ("foundation", "import", "sat", sat, encoder[0], "--tokenizer", encoder[1], "--output", sat)
    assert "is not a folder; name another with --output" in lorkd(*words).err
    shown = lorkd("foundation", "show", encoder[1])
    assert (shown.status, "is no checkpoint of torch 1.6 or newer" in shown.err) == (2, True)
