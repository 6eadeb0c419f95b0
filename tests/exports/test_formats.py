"""Tests of lorkd_monailabel.exports.formats: the folder, the card, fused weights, SAT's checkpoint, refusals."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lorkd_monailabel.checkpoints.sat import read_sat
from lorkd_monailabel.experts import Base, Expert, fused_network, plain_network
from lorkd_monailabel.exports import formats
from lorkd_monailabel.exports.formats import export
from lorkd_monailabel.networks.segmenter import build_segmenter
from lorkd_monailabel.text_encoder import QueryTable


def code(card: str) -> str:
    """The Python of a model card."""
    (found,) = re.findall(r"```python\n(.*?)```", card, re.S)
    return found


@pytest.mark.parametrize(("dtype", "most"), [("float32", 1e-7), ("float16", 2e-3), ("bfloat16", 2e-2), ("int8", 5e-2)])
def test_fused_weights_are_read_as_their_card_says(
    dtype: str, most: float, write, tiny_base: Base, expert: Expert, table: QueryTable, monkeypatch
) -> None:
    folder, found = write("safetensors", dtype)
    assert [path.name for path in found.files] == ["README.md", "abdomen.safetensors", "settings.json"]
    assert found.difference <= most
    assert (found.difference > 0) == (dtype != "float32")
    monkeypatch.chdir(folder)
    names: dict = {}
    exec(code((folder / "README.md").read_text(encoding="utf-8")), names)
    network = fused_network(tiny_base, expert)
    for name, weight in network.state_dict().items():
        torch.testing.assert_close(names["weights"][name], weight, atol=most, rtol=0.01)
    for modality in ("ct", "mri"):
        assert torch.equal(names["queries"][modality], table.queries(("liver", "spleen"), modality))
    assert names["probabilities"].shape == (1, 2, 8, 8, 8)
    assert names["settings"] == json.loads((folder / "settings.json").read_text(encoding="utf-8"))


def test_settings(write, tiny_base: Base) -> None:
    settings = json.loads((write("safetensors")[0] / "settings.json").read_text(encoding="utf-8"))
    assert settings == {
        "format": "lorkd-export/1",
        "department": "abdomen",
        "department_name": "abdomen",
        "revision": 7,
        "structures": ["liver", "spleen"],
        "modalities": ["ct", "mri"],
        "orientation": "RAS",
        "spacing_mm": [2.0, 3.0, 4.0],
        "window": [8, 8, 8],
        "stride": 2,
        "overlap": 0.5,
        "intensities": "fixed",
        "threshold": 0.5,
        "dtype": "float32",
        "network": json.loads(json.dumps(tiny_base.network)),
        "base_sha256": tiny_base.sha256,
        "query_space": tiny_base.query_space,
        "metrics": {"liver": 0.912},
    }


def test_card(write, tiny_base: Base) -> None:
    card = (write("safetensors")[0] / "README.md").read_text(encoding="utf-8")
    for text in (
        "# abdomen: 2 structures",
        "| expert | abdomen/0007, rank 1 |",
        f"| base | SHA-256 {tiny_base.sha256} |",
        "| spacing | 2 x 3 x 4 mm |",
        "| window | 8 x 8 x 8 voxels",
        "| 1 | liver | 0.912 |",
        "| 2 | spleen | not measured |",
        "Sources: set | one.",
        "Licence of the weights: CC BY 4.0.",
        "Not for clinical use",
    ):
        assert text in card
    assert "hounsfield" not in card.lower() or "HU" in card


def test_no_licence_is_invented(tiny_base: Base, make_expert: Callable[..., Expert], table: QueryTable, tmp_path: Path):
    base = replace(tiny_base, about={"training": {"data": {"sources": ["b"]}}}, intensities="sat")
    export(base, make_expert(about={"sources": ["a", "b"]}), table, tmp_path / "new", form="safetensors")
    card = (tmp_path / "new" / "README.md").read_text(encoding="utf-8")
    assert "Neither base nor expert states a licence of the weights." in card
    assert "Sources: a, b." in card
    assert card.count("after resampling: clip") == 2


def sat_like() -> tuple[Base, Expert, QueryTable]:
    """A department of a small network of SAT's shape."""
    numbers = {
        "widths": (4, 4, 4, 4, 4, 4),
        "in_channels": 3,
        "convs": 2,
        "query_dim": 24,
        "dim": 24,
        "layers": 1,
        "feedforward": 16,
        "mask_hidden": 12,
    }
    with torch.random.fork_rng():
        torch.manual_seed(1)
        weights = {name: tensor.detach().clone() for name, tensor in build_segmenter(**numbers).state_dict().items()}
    names = ("liver", "spleen")
    vectors = {"ct": torch.ones(24), "mri": torch.zeros(24)}
    table = QueryTable.plain(names, lambda texts: torch.randn(len(texts), 24), modality_vectors=vectors, encoder="x")
    base = Base(network=numbers, weights=weights, window=(8, 8, 4), query_space=table.space, intensities="sat")
    expert = Expert("abdomen", base.sha256, {}, {}, {}, (1.0, 1.0, 3.0), names, revision=1)
    return base, expert, table


def test_sat_checkpoint_gives_the_same_masks(tmp_path: Path) -> None:
    base, expert, table = sat_like()
    found = export(base, expert, table, tmp_path / "sat", form="sat")
    assert [path.name for path in found.files] == ["README.md", "model.pth", "settings.json"]
    assert found.difference == 0
    state = torch.load(tmp_path / "sat" / "model.pth", weights_only=True)["model_state_dict"]
    assert "module.backbone.encoder.stages.0.0.convs.1.all_modules.0.weight" in state
    numbers, weights = read_sat(tmp_path / "sat" / "model.pth")
    image, queries = torch.randn(1, 1, 32, 64, 32), table.queries(expert.structures, "ct")
    expected = fused_network(base, expert)(image, queries)
    assert torch.equal(plain_network(numbers, weights)(image, queries), expected)
    half = export(base, expert, table, tmp_path / "half", form="sat", dtype="float16")
    assert 0 < half.difference < 1e-2
    assert read_sat(tmp_path / "half" / "model.pth")[1]["projection.0.weight"].dtype == torch.float16


def test_other_networks_are_no_sat(tiny_base: Base, expert: Expert, table: QueryTable, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="mask embeddings that end in a GELU, this one has 2, 2 and signed_masks=True"):
        export(tiny_base, expert, table, tmp_path / "new", form="sat")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"form": "zip"}, "format 'zip' is unknown; use one of safetensors, sat, bundle, onnx, program"),
        ({"dtype": "int4"}, "dtype 'int4' is unknown"),
        ({"modality": "pet"}, "modality 'pet' is unknown; use one of ct, mri"),
        ({"form": "bundle"}, "format bundle holds queries and intensities of one modality; name it: ct or mri"),
        ({"form": "program"}, "format program holds queries"),
        ({"form": "sat", "dtype": "int8"}, "SAT's loader knows no int8 weights"),
        ({"table": {"space": "other"}}, "was trained with other query vectors than the table's"),
        ({"expert": {"structures": ()}}, "abdomen/0007 was trained on no structure, so there is nothing to export"),
        ({"expert": {"structures": ("liver", "../evil")}}, "'../evil' is not in the query table"),
        ({"expert": {"base_sha256": "0" * 64}}, "was trained on base 000000000000, this base is"),
        ({"expert": {"department": "pets"}}, "department 'pets' is unknown"),
        ({"base": {"weights": {}}}, "this base is"),
    ],
)
def test_what_can_not_be(
    changed: dict, message: str, tiny_base: Base, expert: Expert, table: QueryTable, tmp_path: Path
) -> None:
    options = {"form": "safetensors", **{key: each for key, each in changed.items() if isinstance(each, str)}}
    parts = {"base": tiny_base, "expert": expert, "table": table}
    parts = {key: replace(part, **changed.get(key, {})) for key, part in parts.items()}
    with pytest.raises(ValueError, match=re.escape(message)):
        export(parts["base"], parts["expert"], parts["table"], tmp_path / "new", **options)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_there_stays_as_it_is(
    tiny_base: Base, expert: Expert, table: QueryTable, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("empty", "file", "link"):
        with pytest.raises(FileExistsError, match=f"{name} exists already; an export goes into a new folder"):
            export(tiny_base, expert, table, tmp_path / name, form="safetensors")
    with pytest.raises(FileNotFoundError, match="no of new does not exist; make it first"):
        export(tiny_base, expert, table, tmp_path / "no" / "new", form="safetensors")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "file", "link"]
    assert list((tmp_path / "empty").iterdir()) == []


@pytest.mark.parametrize("place", ["model_card", "os.fsync", "os.replace"])
def test_nothing_is_left_of_an_export_that_fails(
    place: str, tiny_base: Base, expert: Expert, table: QueryTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    if place == "model_card":
        monkeypatch.setattr(formats, place, full)
    else:
        monkeypatch.setattr(place, full)
    with pytest.raises(OSError, match="No space left"):
        export(tiny_base, expert, table, tmp_path / "new", form="safetensors")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_made_meanwhile_wins(
    tiny_base: Base, expert: Expert, table: QueryTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(*_: object, **__: object) -> str:
        (tmp_path / "new").mkdir()
        return "card"

    monkeypatch.setattr(formats, "model_card", slow)
    with pytest.raises(FileExistsError, match="new exists already"):
        export(tiny_base, expert, table, tmp_path / "new", form="safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["new"]
    assert list((tmp_path / "new").iterdir()) == []


def test_files_can_be_read_by_others(write) -> None:
    folder, found = write("safetensors")
    assert folder.stat().st_mode & 0o777 == 0o755
    assert {path.stat().st_mode & 0o777 for path in found.files} == {0o644}


def test_a_wrong_export_is_not_passed_on(
    tiny_base: Base, expert: Expert, table: QueryTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = fused_network(tiny_base, replace(expert, scales=dict.fromkeys(expert.scales, 1.0)))
    monkeypatch.setattr("lorkd_monailabel.exports.fused_weights.plain_network", lambda *_: wrong)
    with pytest.raises(ValueError, match=r"gives probabilities that differ by 0\.\d+ from the network's, above 0.0001"):
        export(tiny_base, expert, table, tmp_path / "new", form="safetensors")
    assert list(tmp_path.iterdir()) == []
