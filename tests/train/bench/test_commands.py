import argparse
import csv
import re

import nibabel
import numpy as np
import pytest
import torch

from lorkd_monailabel.experts import fuse
from lorkd_monailabel.store import ExpertStore
from train.bench import eks, overhead, switching
from train.bench.cases import low_rank_names, unet_cases, unet_problem


@pytest.fixture(autouse=True)
def same_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def read(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_quick_comparison_writes_table_csv_and_plot(tmp_path, capsys):
    assert eks.main(["all", "--quick", "--threads", "1", "--output", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    for name in ("layers", "unet", "departments", "classifier"):
        assert (tmp_path / f"eks_{name}.md").read_text(encoding="utf-8") in printed
        assert (tmp_path / f"eks_{name}.png").stat().st_size > 1000
        rows = read(tmp_path / f"eks_{name}.csv")
        assert all(row["note"] or float(row["seconds"]) > 0 for row in rows)
        assert all(row["note"] or row["memory_mib"] == "" or float(row["memory_mib"]) >= 0 for row in rows)
        assert sum(row["floor"] == "True" for row in rows) == len({(row["case"], row["phase"]) for row in rows})
    rows = {(row["way"], row["phase"]): row for row in read(tmp_path / "eks_unet.csv")}
    assert set(rows) >= {(way, phase) for way in ("plain", "paper", "departments") for phase in ("forward", "step")}
    assert float(rows["paper", "step"]["memory_mib"] or 1) > 0
    counts = [row["operations"] for row in read(tmp_path / "eks_departments.csv")]
    assert len(counts) == 4
    assert counts[0] == counts[1]  # absent departments cost no operation
    assert counts[2] == counts[3]


def test_only_named_ways_and_the_floor_are_run():
    options = argparse.Namespace(device="cpu", bf16=False, quick=True, case="")
    (comparison,) = eks.comparisons("unet", options, ("paper",))
    assert {phase: [way.name for way in ways] for phase, ways in comparison.make().items()} == {
        "forward": ["plain", "paper"],
        "step": ["plain", "paper"],
    }


def test_quick_switching(tmp_path, capsys):
    assert switching.main(["--quick", "--output", str(tmp_path)]) == 0
    assert re.search(r"bit-identical after 20 switches: sha256 [0-9a-f]{64}", capsys.readouterr().out)
    rows = {row["way"]: row for row in read(tmp_path / "switching.csv")}
    assert {"fuse", "first department", "warm switch"} < set(rows)
    assert all(float(row["seconds"]) > 0 for row in rows.values())
    assert (tmp_path / "switching.png").exists()


def test_a_fusion_that_writes_into_the_base_is_caught(tmp_path, monkeypatch):
    store = switching.make_store(tmp_path, "tiny")

    def careless(weights, factors, scales, norms=None):
        for name, tensor in fuse(weights, factors, scales, norms).items():
            weights[name].copy_(tensor)
        return weights

    monkeypatch.setattr("lorkd_monailabel.experts.fuse", careless)
    with pytest.raises(ValueError, match=r"changed the base .* must not write into its arguments"):
        switching.check_base(store, 3)


@pytest.fixture
def scan(tmp_path):
    path = tmp_path / "scan.nii.gz"
    array = np.random.default_rng(0).normal(0, 300, (20, 20, 20)).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(array, np.diag([3.0, 3.0, 3.0, 1.0])), path)
    return path


def test_quick_overhead(tmp_path, capsys, scan):
    store = switching.make_store(tmp_path / "store", "tiny")
    text = store.load(store.departments()[0]).structures[0]
    options = ["--store", str(store.folder), "--text", text, "--quick", "--output", str(tmp_path)]
    assert overhead.main([str(scan), *options]) == 0, capsys.readouterr().err
    rows = {row["way"]: row for row in read(tmp_path / "overhead.csv")}
    assert list(rows) == [
        "forward passes",
        "each layer on all cores",
        "window after window",
        "request",
        "image at hand",
        "first request of a department",
    ]
    assert rows["forward passes"]["floor"] == "True"
    assert all(float(row["seconds"]) > 0 for row in rows.values())
    assert {row["case"] for row in rows.values()} == {"0.0 megavoxels"}


@pytest.mark.parametrize("text", ["liver; heart", "liverr"])
def test_overhead_wants_one_department(text, scan, capsys):
    assert overhead.main([str(scan), "--text", text]) == 2
    assert "must name structures of one department" in capsys.readouterr().err


def test_an_image_is_enlarged_to_about_so_many_voxels(tmp_path, scan):
    assert overhead.resized(scan, tmp_path / "big.nii.gz", 1_000_000) == "1.0 megavoxels"
    before, after = nibabel.load(scan), nibabel.load(tmp_path / "big.nii.gz")
    assert after.shape == (100, 100, 100)
    np.testing.assert_allclose(after.header.get_zooms(), np.array(before.header.get_zooms()) / 5, rtol=1e-5)


def test_store_of_the_switching_benchmark_is_the_papers(tmp_path):
    store = switching.make_store(tmp_path, "toy")
    expert = store.load(store.departments()[0])
    assert isinstance(store, ExpertStore)
    assert len(store.departments()) == 2
    assert {rank for name, rank in expert.ranks.items() if ".encoder." in name and ".0.0." not in name} == {8}
    assert {rank for name, rank in expert.ranks.items() if ".decoder." in name} == {16}


def test_unet_has_the_parameters_that_the_figures_are_of():
    with torch.device("meta"):
        from train.bench.cases import Pixels

        network = Pixels((32, 64, 128, 256, 320))
    assert sum(tensor.numel() for tensor in network.parameters()) == 16_546_624
    assert len(low_rank_names(network)) == 18
    names = [f"unet.{name}" for name in network.unet.low_rank_weights()]
    assert sorted(low_rank_names(network)) == sorted(names)  # the paper's choice
    # each convolution: r * k * (C_in * k^2 + C_out * k), with r = 8 and k = 3
    shapes = [network.get_parameter(name).shape for name in names]
    assert 8 * sum(8 * 3 * (shape[1] * 9 + shape[0] * 3) for shape in shapes) == 6_176_448
    problem = unet_problem(8, 2, 2, known=2, device="cpu", bf16=False, quick=True)
    assert {rank for each in problem.factors.values() for rank in each.ranks.values()} <= {8, 4}


def test_cases_of_the_issue():
    assert [case.name for case in unet_cases(device="cpu", bf16=False, quick=False)] == [
        "U-Net 64³, batch 4, 4 of 8",
        "U-Net 32³, batch 8, 8 of 8",
    ]
    assert "96³" in unet_cases(device="cuda", bf16=True, quick=False)[-1].name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rounds", "0"], "0 rounds"),
        (["--device", "abacus"], "'abacus' is no device"),
        (["--device", "meta"], "device meta is not there"),
        (["--ways", "paper,lora"], "no way 'lora'"),
    ],
)
def test_bad_options_are_refused_in_a_sentence(arguments, message, tmp_path, capsys):
    assert eks.main([*arguments, "--quick", "--output", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_no_switches_are_refused(capsys):
    assert switching.main(["--switches", "0"]) == 2
    assert "0 switches" in capsys.readouterr().err
