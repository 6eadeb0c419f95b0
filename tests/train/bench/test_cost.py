import csv
import functools

import pytest
import torch

from lorkd_monailabel.networks.segmenter import build_segmenter
from train.bench import cost as cost_module
from train.bench.cost import IMBALANCED, PAPER, Variant, cost, ratio_table, variant_table
from train.bench.counters import (
    PATCH,
    LiveBytes,
    decomposed_parameters,
    meta_segmenter,
    operations,
    saved_bytes,
    thop_operations,
)

SMALL = {
    "widths": (2, 4),
    "convs": 1,
    "query_dim": 5,
    "dim": 6,
    "layers": 1,
    "heads": 2,
    "feedforward": 5,
    "projection_hidden": 7,
    "mask_hidden": 4,
}
SIDES, VOXELS, TOKENS, N = (4, 4, 4), 64, 8, 3


@functools.cache
def named(size):
    return meta_segmenter(size)


@pytest.mark.parametrize(
    ("size", "plain", "eight", "star"),
    [
        ("nano", 57_235_872, 67_010_016, 67_315_458),
        ("pro", 109_194_624, 129_106_368, 127_861_884),
        ("sat_pro", 475_561_344, None, None),
    ],
)
def test_parameters_are_the_papers(size, plain, eight, star):
    assert decomposed_parameters(named(size), ()) == plain
    if eight is not None:
        assert decomposed_parameters(named(size), (8,) * 8) == eight
        assert decomposed_parameters(named(size), IMBALANCED[size]) == star


def test_every_product_of_a_small_network_is_counted():
    multiply_adds = {
        "encoder": VOXELS * 2 * 1 * 27 + TOKENS * 4 * 2 * 27,
        "transposed convolution": VOXELS * 2 * 4,
        "decoder": VOXELS * 2 * 4 * 27,
        "projection": TOKENS * (6 * 7 + 7 * 6),
        "query projection": N * 5 * 6,
        "attention's projections": (N + TOKENS + TOKENS + N) * 6 * 6,
        "attention": 2 * N * TOKENS * 6,
        "feed-forward": N * (6 * 5 + 5 * 6),
        "mask embedding": N * (6 * 4 + 4 * 2),
        "masks and pixels": N * VOXELS * 2,
    }
    assert operations(meta_segmenter(**SMALL), SIDES, N) == 2 * sum(multiply_adds.values())


@pytest.mark.parametrize("names", [1, 2])
def test_thop_counts_transposed_convolutions_eightfold_and_no_attention(names):
    stages = VOXELS * 2 * (1 * 27 + 4) + TOKENS * 4 * (2 * 27 + 4) + VOXELS * 2 * (4 * 27 + 4)
    linear = TOKENS * (6 * 7 + 7 * 6) + N * 5 * 6 + N * (6 * 5 + 5 * 6) + N * (6 * 4 + 4 * 2)
    norms = 3 * 4 * N * 6
    wanted = names**2 * stages + VOXELS * 2 * 4 * 8 + linear + norms
    assert thop_operations(meta_segmenter(**SMALL), SIDES, N, names=names) == wanted


@pytest.mark.parametrize(
    ("size", "once", "twice"),
    [
        ("nano", 2_039_392_575_488, 7_421_831_782_400),
        ("pro", 4_945_415_538_688, 18_635_750_563_840),
        ("sat_pro", 28_399_823_296_512, 109_019_254_824_960),
    ],
)
def test_thop_is_met_to_the_last_operation(size, once, twice):
    """The numbers are thop 0.1.1's own, of the released networks (without and with their second names), 16 queries."""
    assert thop_operations(named(size), names=1) == once
    assert thop_operations(named(size)) == twice


def test_ratios_are_the_papers():
    found = {}
    for (student, teacher), (parameters, computation) in PAPER.items():
        small, large = named(student), named(teacher)
        ratio = 100 * decomposed_parameters(small, ()) / decomposed_parameters(large, ())
        assert f"{ratio:.2f}" == f"{parameters:.2f}"
        assert f"{100 * thop_operations(small) / thop_operations(large):.2f}" == f"{computation:.2f}"
        found[student] = [100 * operations(small, PATCH, n) / operations(large, PATCH, n) for n in (16, 256)]
    assert found["pro"] == pytest.approx([17.05, 17.36], abs=0.005)
    assert found["nano"] == pytest.approx([39.59, 39.94], abs=0.005)


def test_saved_bytes_by_hand():
    weight = torch.ones(10, requires_grad=True)
    factor = torch.ones(10, requires_grad=True)
    # The product keeps the weight and the factor, the exponential its result.
    assert saved_bytes(lambda: (weight * factor).exp().sum()) == 3 * 40
    assert saved_bytes(lambda: (weight * factor).exp().sum(), leave_out=[weight]) == 2 * 40
    # A view is no storage of its own, and what is kept twice counts once; a copy counts.
    assert saved_bytes(lambda: (weight[:5] * factor[:5]).sum() + (weight * factor).sum()) == 2 * 40
    assert saved_bytes(lambda: (weight * factor[:5].repeat(2)).sum() + (weight * factor).sum()) == 3 * 40


def test_live_bytes_by_hand():
    given = torch.ones(256)
    with LiveBytes() as live:
        first = given + 1
        assert live.live == 1024
        second = first.view(16, 16).mul_(2)  # a view, in place
        assert live.live == 1024
        del first
        third = second + second
        del second
        assert (live.live, live.peak) == (1024, 2048)
        del third
        given.mul_(2)
    assert (live.live, live.peak) == (0, 2048)


def test_the_meta_device_keeps_what_the_processor_keeps():
    torch.manual_seed(0)
    found = []
    for device in ("meta", "cpu"):
        with torch.device(device):
            segmenter = build_segmenter(**SMALL)
            image, queries = torch.zeros(1, 1, *SIDES), torch.zeros(N, 5)
        kept = saved_bytes(lambda: segmenter(image, queries), leave_out=segmenter.parameters())  # noqa: B023
        with torch.no_grad(), LiveBytes() as live:
            segmenter.unet(image)
        found.append((kept, live.peak))
    (meta_kept, meta_peak), (kept, peak) = found
    assert meta_kept == pytest.approx(kept, rel=0.05)  # attention has another kernel there
    assert meta_peak == peak > 0


def test_decomposition_costs_its_fused_weights():
    segmenter = meta_segmenter(**SMALL | {"widths": (4, 6)})
    plain = cost(segmenter, "plain", shape=SIDES, queries=N)
    whole = cost(segmenter, "decomposed", ranks=(1, 2), shape=SIDES, queries=N)
    kernels = {(4, 1): 2, (6, 4): 2, (4, 8): 4}  # (C_out, C_in) -> largest rank; the decoder's is doubled
    fusion = sum(2 * (out * 3) * (rank * 3) * (inner * 9) for (out, inner), rank in kernels.items())
    assert whole.forward == plain.forward == operations(segmenter, SIDES, N)
    assert whole.step - plain.step == 3 * fusion
    assert whole.saved_bytes - plain.saved_bytes == 4 * sum(27 * out * inner for out, inner in kernels)
    assert whole.peak_bytes == plain.peak_bytes
    unit = {key: 3 * (inner * 9 + out * 3) for key in kernels for out, inner in [key]}
    assert whole.parameters - plain.parameters == 3 * (unit[4, 1] + unit[6, 4] + 2 * unit[4, 8])
    # Beside the forward pass, a step has the gradients of weights and of inputs, but for the image's.
    assert 2 * plain.forward < plain.step < 3 * plain.forward
    assert all(tensor.grad is None for tensor in segmenter.parameters())


def test_command_writes_tables(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(cost_module, "meta_segmenter", lambda size: meta_segmenter(**SMALL | {"widths": (4,) * 6}))
    monkeypatch.setattr(cost_module, "NUMBERS", (1, 2))
    monkeypatch.setattr(cost_module, "RANK", 1)
    monkeypatch.setattr(cost_module, "IMBALANCED", {"nano": (1, 2), "pro": (2, 2)})
    assert cost_module.main(["--queries", "2", "--output", str(tmp_path / "new")]) == 0
    text = (tmp_path / "new" / "cost.md").read_text(encoding="utf-8")
    assert text in capsys.readouterr().out
    assert "| LoRKD-Nano / SAT-Nano, parameters | 52.42 % | 100.00 % | +47.58 |" in text
    with (tmp_path / "new" / "cost.csv").open(encoding="utf-8", newline="") as file:
        assert [row["network"] for row in csv.DictReader(file)] == [
            "SAT-Pro",
            "SAT-Nano = LoRKD-Pro",
            "LoRKD-Pro, decomposed, 8 experts of rank 1",
            "LoRKD-Pro, decomposed, LoRKD*'s ranks",
            "LoRKD-Nano",
            "LoRKD-Nano, decomposed, 8 experts of rank 1",
            "LoRKD-Nano, decomposed, LoRKD*'s ranks",
        ]
    with (tmp_path / "new" / "cost_ratios.csv").open(encoding="utf-8", newline="") as file:
        assert {(float(row["pro"]), float(row["nano"])) for row in csv.DictReader(file)} == {(100.0, 100.0)}


def test_the_papers_ratios_are_bold():
    rows = [Variant("thop", "p", 16, 2, 17.094, 39.826), Variant("thop", "p", 1, 2, 17.094, 39.8248)]
    _, _, met, missed = variant_table(rows).splitlines()
    assert met == "| thop | p | 16 | 2 | **17.09 %** | **39.83 %** |"
    assert "*" not in missed
    assert "39.82 %" in missed


def test_ratio_table_counts_with_the_queries_asked():
    networks = {"sat_pro": named("sat_pro"), "pro": named("pro"), "nano": named("nano")}
    lines = ratio_table(networks, 256).splitlines()
    assert lines[2] == "| LoRKD-Pro / SAT-Pro, parameters | 22.96 % | 22.96 % | +0.00 |"
    assert lines[3] == "| LoRKD-Pro / SAT-Pro, computation | 17.09 % | 17.36 % | +0.27 |"


def test_no_queries_are_refused(capsys):
    assert cost_module.main(["--queries", "0"]) == 2
    assert capsys.readouterr().err == "0 queries ask for no mask; give at least 1\n"
