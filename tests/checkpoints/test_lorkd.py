"""Tests of lorkd_monailabel.checkpoints.lorkd, against names and shapes written down anew."""

from dataclasses import replace

import pytest
import torch

from lorkd_monailabel.checkpoints.keys import LORKD, network_numbers, size_of
from lorkd_monailabel.checkpoints.lorkd import DEPARTMENTS, base_and_experts, is_lorkd, read_lorkd, release_shapes
from lorkd_monailabel.checkpoints.sat import read_sat, write_sat
from lorkd_monailabel.departments import DEPARTMENT_IDS, department
from lorkd_monailabel.experts import Base, fused_network, plain_network
from lorkd_monailabel.networks.segmenter import build_segmenter
from lorkd_monailabel.store import ExpertStore, base_header, load_base, write_file
from lorkd_monailabel.text_encoder import QueryTable

NANO_RANKS = (12, 10, 10, 4, 8, 8, 12, 2)
PRO_RANKS = (4, 4, 4, 4, 4, 16, 12, 12)


@pytest.fixture
def query_table() -> QueryTable:
    """Of a text encoder with vectors of 24 numbers, which does not know the spleen."""
    names = tuple(each.name for name in DEPARTMENT_IDS for each in department(name).structures if each.name != "spleen")
    vectors = torch.randn(len(names), 24, generator=torch.Generator().manual_seed(0))
    modalities = {"ct": torch.zeros(24), "mri": torch.ones(24)}
    return QueryTable(names, vectors, modalities, torch.zeros(24), torch.eye(24), "test", "ab" * 32)


@pytest.mark.parametrize(
    ("size", "ours", "keys", "ranks", "parameters"),
    [
        ("lorkd_nano", "nano", 830, (8,) * 8, 67_010_016),
        ("lorkd_nano", "nano", 830, NANO_RANKS, 67_315_458),
        ("lorkd_pro", "pro", 994, (8,) * 8, 129_106_368),
        ("lorkd_pro", "pro", 994, PRO_RANKS, 127_861_884),
    ],
)
def test_whole_size_has_lorkds_keys_and_shapes(shapes, size, ours, keys, ranks, parameters):
    wanted = shapes(size, ranks=ranks)
    assert len(wanted) == keys
    own = {name.removeprefix("model.module."): shape for name, shape in wanted.items() if not name.startswith("unet.")}
    with torch.device("meta"):
        network = build_segmenter(ours)
    assert release_shapes(network, ranks) == own
    numbers = sum(torch.Size(shape).numel() for shape in own.values())
    assert numbers == parameters
    found = {name: torch.empty(shape, device="meta") for name, shape in own.items()}
    read = network_numbers(found, LORKD, None, what="")
    assert size_of(read) == ours
    with torch.device("meta"):
        assert build_segmenter(**read).stride == network.stride == 32


@pytest.mark.parametrize(
    ("ranks", "scales"),
    [
        ((8,) * 8, [(2.0, 1.0)] * 8),
        ((4,) * 8, [(4.0, 2.0)] * 8),  # alpha 16 over the rank
        (PRO_RANKS, [(2.0, 2.0)] * 8),  # whatever the rank
    ],
)
def test_factors_ranks_and_scales(state, file, ranks, scales):
    own = state("lorkd_tiny", ranks=ranks)
    assert is_lorkd(tuple(own))
    release = read_lorkd(file(own))
    assert list(release.parts) == list(DEPARTMENTS)
    for task, (part, rank, (encoder, decoder)) in enumerate(zip(release.parts.values(), ranks, scales, strict=True)):
        for ours, theirs, times, scale in (
            ("unet.encoder.3.1.conv.weight", "encoder.stages.3.0.stages.1", 1, encoder),
            ("unet.decoder.0.0.conv.weight", "decoder.stages.0.stages.0", 2, decoder),
        ):
            lora_a, lora_b = part.factors[ours]
            assert torch.equal(lora_a, own[f"model.module.backbone.{theirs}.conv.lora_A_list.{task}"])
            assert torch.equal(lora_b, own[f"model.module.backbone.{theirs}.conv.lora_B_list.{task}"])
            assert (part.ranks[ours], part.scales[ours]) == (times * rank, scale)
        assert len(part.factors) == 22
    weight = release.weights["unet.decoder.4.1.conv.weight"]
    assert torch.equal(weight, own["model.module.backbone.decoder.stages.4.stages.1.conv.conv.weight"])
    assert not is_lorkd(tuple(release.weights))


def test_released_layout_to_store_to_sat_to_foundation_with_the_same_outputs(state, file, tmp_path, query_table):
    own = state("lorkd_tiny")
    base, experts = base_and_experts(read_lorkd(file(own)), query_table, about={"sources": ["LoRKD"]})
    store = ExpertStore(tmp_path / "store")
    store.publish_queries(query_table)
    store.publish_base(base)
    for expert in experts:
        store.publish(expert)
    assert store.departments() == DEPARTMENT_IDS
    kept = store.base()
    assert (kept.window, kept.intensities, kept.query_space) == ((288, 288, 96), "sat", query_table.space)
    abdomen = store.load("abdomen")
    assert abdomen.spacing_mm == (1.0, 1.0, 3.0)
    assert "liver" in abdomen.structures
    assert "spleen" not in abdomen.structures  # no query, no answer
    assert abdomen.about["structures"].startswith("assumed: ")

    thorax = fused_network(kept, store.load("thorax"))  # task 6
    name = "backbone.decoder.stages.2.stages.0.conv"
    lora_a, lora_b = (own[f"model.module.{name}.lora_{letter}_list.6"].double() for letter in "AB")
    plain = own[f"model.module.{name}.conv.weight"].double()
    fused = thorax.get_parameter("unet.decoder.2.0.conv.weight").double()
    torch.testing.assert_close(fused, plain + 1.0 * (lora_b @ lora_a).reshape(plain.shape), rtol=1e-5, atol=1e-5)

    write_sat(tmp_path / "thorax.pth", kept.network, thorax.state_dict())
    again = torch.load(tmp_path / "thorax.pth", weights_only=True)["model_state_dict"]
    assert {key: tuple(each.shape) for key, each in again.items()} == {
        key: tuple(each.shape) for key, each in state("tiny").items()
    }
    numbers, weights = read_sat(tmp_path / "thorax.pth")
    foundation = Base(numbers, weights, (288, 288, 96), query_table.space, intensities="sat")
    write_file(tmp_path / "f.safetensors", base_header(foundation, "foundation"), foundation.weights)
    loaded = load_base(tmp_path / "f.safetensors", "foundation")
    assert replace(loaded, network={}, weights={}) == replace(foundation, network={}, weights={})
    assert size_of(loaded.network) is None
    assert {**loaded.network, "widths": numbers["widths"]} == numbers
    image = torch.randn(1, 1, 64, 32, 32, generator=torch.Generator().manual_seed(1))
    queries = query_table.queries(["heart", "liver"], "ct")
    with torch.no_grad():
        expected = thorax(image, queries)
        torch.testing.assert_close(
            plain_network(loaded.network, loaded.weights)(image, queries), expected, atol=1e-5, rtol=0
        )
        assert (plain_network(kept.network, kept.weights)(image, queries) - expected).abs().max() > 1e-2


def test_refuses_by_the_first_name_that_differs(state, file):
    own = state("lorkd_tiny", ranks=PRO_RANKS)
    stem, late = "model.module.backbone.encoder.stages.0.0.stages.0.conv", "backbone.decoder.stages.4.stages.1.conv"
    for name, value, message in (
        (f"{stem}.lora_A_list.7", None, r"it lacks backbone\.encoder\.stages\.0\.0\.stages\.0\.conv\.lora_A_list\.7;"),
        (f"{stem}.lora_A_list.7", torch.zeros(2, 27), r"lora_A_list\.7 has shape \(2, 27\), not rank x 3;"),
        (f"{stem}.lora_A_list.7", torch.zeros(()), r"lora_A_list\.7 has shape \(\), not rank x 3;"),
        (
            f"model.module.{late}.lora_B_list.5",
            torch.zeros(6, 3),
            rf"{late}\.lora_B_list\.5 has shape \(6, 3\), not \(6, 96\)",
        ),
        (
            f"{stem}.lora_A_list.8",
            torch.zeros(12, 27),
            r"has '.*lora_A_list\.8' \(12, 27\), which does not belong there",
        ),
        ("model.module.projection_layer.2.bias", None, r"it lacks projection_layer\.2\.bias \(24,\)"),
    ):
        changed = {**own, name: value}
        with pytest.raises(ValueError, match=rf"is no checkpoint of LoRKD: .*{message}"):
            read_lorkd(file({key: each for key, each in changed.items() if each is not None}))
    with pytest.raises(
        ValueError, match=r"is no checkpoint of LoRKD: it lacks backbone\.encoder\.stages\.0\.0\.stages"
    ):
        read_lorkd(file(state("tiny")))
