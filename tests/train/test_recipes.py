"""Tests of the recipes: from cases to a foundation, to a base and experts, to a new revision of one of them."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from lorkd_monailabel.departments import structure
from lorkd_monailabel.learning.checkpoint import load_checkpoint
from lorkd_monailabel.networks.segmenter import SIZES, build_segmenter
from lorkd_monailabel.predictor import Predictor
from lorkd_monailabel.prompts import Target
from lorkd_monailabel.store import ExpertStore, load_base, write_file
from lorkd_monailabel.volumes import read_volume
from tests.train.processes import started
from train import decompose, finetune, pretrain
from train.reporting.history import read_history

LAYERS = build_segmenter("tiny").low_rank_weights()


Arguments = Callable[..., list[str]]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_foundation_then_experts_then_a_new_revision(
    tmp_path: Path, arguments: Arguments, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pretrain.main(arguments("default_foundation.toml")) == 0
    foundation = load_base(tmp_path / "run" / "foundation.safetensors", "foundation")
    assert (foundation.about["sources"], foundation.about["steps"]) == (["synthetic"], 2)
    assert foundation.about["training"]["data"]["spacing_mm"] == {"default": 3}
    assert str(tmp_path) not in json.dumps(foundation.about)
    assert foundation.window == (8, 8, 8)
    assert {**foundation.network, "widths": tuple(foundation.network["widths"])} == SIZES["tiny"]

    assert decompose.main(arguments("toy.toml", data__spacing_mm="{ default = 3, thorax = 2 }")) == 0
    store = ExpertStore(tmp_path / "store")
    assert store.departments() == ("thorax", "abdomen")
    assert f"published thorax/0001 in {tmp_path / 'store'}" in capsys.readouterr().out
    abdomen, thorax = store.header("abdomen"), store.header("thorax")
    assert (abdomen["structures"], thorax["structures"]) == (["liver", "spleen"], ["heart"])
    assert (abdomen["spacing_mm"], thorax["spacing_mm"]) == ([3.0] * 3, [2.0] * 3)
    assert abdomen["base_sha256"] == thorax["base_sha256"] == store.base().sha256
    assert store.base().about["foundation"] == foundation.sha256
    assert str(tmp_path) not in json.dumps(store.header("base"))  # a published file tells nothing of the machine
    assert abdomen["about"] == {"cases": 2, "sources": ["synthetic"], "steps": 2}

    # The same store again, from where it is: new revisions over a new base.
    go_on = arguments("demo.toml", output=tmp_path / "again", start=store.folder, warmup_steps=0, rank=2)
    assert decompose.main(go_on) == 0
    assert store.revisions("base") == store.revisions("abdomen") == (1, 2)
    assert store.header("abdomen")["parent"] == 1

    before = contents(store.folder)
    assert finetune.main(arguments("finetune.toml", department="abdomen")) == 0
    after = contents(store.folder)
    assert after.keys() - before.keys() == {"abdomen/0003.safetensors"}
    assert {name: after[name] for name in before} == before

    volume = read_volume(tmp_path / "patient0_image.nii.gz", "ct")
    targets = [Target(name, structure(name)) for name in ("liver", "heart", "spleen")]
    prediction = Predictor(store).segment(volume, targets)
    assert prediction.label_map.array.shape == (14, 12, 12)
    assert [answer.revision for answer in prediction.answers] == [3, 2, 3]


def test_default_store_is_in_half_precision_and_fits_foundations_of_larger_stride(
    tmp_path: Path, arguments: Arguments
) -> None:
    # Volumes of 14 x 12 x 12 voxels: patches of 16 are cut short, to what the foundation's stride of 8 does not divide.
    assert pretrain.main(arguments("default_foundation.toml", network="toy_foundation", steps=1, data__patch=16)) == 0
    equal = {"rank_rule": "equal", "warmup_steps": 0, "licence": "MIT"}
    assert decompose.main(arguments("default_store.toml", steps=1, data__patch=16, **equal)) == 0
    store = ExpertStore(tmp_path / "store")
    told = store.base().about["licence"]  # of what is learned, and of the teacher
    assert told.startswith("MIT; CC BY-SA 4.0")
    assert {str(tensor.dtype) for tensor in store.base().weights.values()} == {"torch.float16"}
    assert {str(a.dtype) for a, _ in store.load("thorax").factors.values()} == {"torch.float16"}


def test_interrupt_leaves_a_run_that_goes_on(root: Path, tmp_path: Path, arguments: Arguments) -> None:
    with started(root, "train.pretrain", *arguments("default_foundation.toml", steps=100_000)) as process:
        assert process.stderr is not None
        seen = b""
        while b"loss" not in seen:
            part = os.read(process.stderr.fileno(), 4096)
            assert part, seen.decode()
            seen += part
        process.send_signal(signal.SIGINT)
        rest = process.communicate(timeout=60)[1].decode()
    assert process.returncode == 130
    assert "Traceback" not in rest
    assert "of 100000; run again to go on" in rest.splitlines()[-1]
    state = load_checkpoint(tmp_path / "run" / "pretrain.pt")
    assert state is not None
    step = state["step"]
    assert f"stopped after step {step} of" in rest
    assert not (tmp_path / "run" / "foundation.safetensors").exists()
    assert pretrain.main(arguments("default_foundation.toml", steps=step + 1)) == 0
    assert [record.step for record in read_history(tmp_path / "run" / "pretrain.jsonl")] == [*range(1, step + 2)]


def test_a_run_that_is_over_is_not_taken_for_one_of_other_settings(tmp_path: Path, arguments: Arguments) -> None:
    path = tmp_path / "run" / "foundation.safetensors"
    hashes = set()
    for seed in (0, 1):
        assert pretrain.main(arguments("default_foundation.toml", seed=seed)) == 0
        foundation = load_base(path, "foundation")
        assert foundation.about["training"]["seed"] == seed
        hashes.add(foundation.sha256)
    assert len(hashes) == 2


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"data__cases": "none.jsonl"}, "list of cases none.jsonl can't be read"),
        ({"data__splits": '["test"]'}, "has no case of splits ['test']"),
        ({"network": "huge"}, "network size 'huge' is unknown; use one of"),
        ({"batch_size": 0}, "batch_size"),
        ({"data__patch": 0}, "patch 0 and max_queries"),
        ({"data__max_queries": 0}, "max_queries 0 must be at least 1"),
        ({"data__spacing_mm__default": 0}, "must be positive"),
        ({"data__weights__abdomen": -1}, "must be at least 0"),
    ],
)
def test_bad_input_is_one_sentence_and_status_two(
    arguments: Arguments, capsys: pytest.CaptureFixture[str], changed: dict[str, object], sentence: str
) -> None:
    assert pretrain.main(arguments("default_foundation.toml", **changed)) == 2
    error = capsys.readouterr().err
    assert sentence in error.splitlines()[-1]
    assert "Traceback" not in error


def test_a_missing_or_damaged_image_is_named(
    tmp_path: Path, arguments: Arguments, capsys: pytest.CaptureFixture[str]
) -> None:
    image = tmp_path / "patient1_image.nii.gz"
    image.write_bytes(image.read_bytes()[:50])
    assert pretrain.main(arguments("default_foundation.toml")) == 2
    assert str(image) in capsys.readouterr().err
    image.unlink()
    assert pretrain.main(arguments("default_foundation.toml")) == 2
    assert str(image) in capsys.readouterr().err


def test_decompose_needs_a_foundation_of_its_own_table_and_a_rank(
    tmp_path: Path, arguments: Arguments, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run" / "foundation.safetensors"
    assert decompose.main(arguments("toy.toml")) == 2
    assert f"{path} is damaged" in capsys.readouterr().err
    assert pretrain.main(arguments("default_foundation.toml")) == 0
    assert decompose.main(arguments("toy.toml", rank=0)) == 2
    assert "rank 0 must be at least 1; set rank in the config" in capsys.readouterr().err
    assert decompose.main(arguments("toy.toml", decoder_multiplier=0)) == 2
    assert "decoder multiplier 0 must be at least 1; set them higher" in capsys.readouterr().err
    assert decompose.main(arguments("toy.toml", start=tmp_path / "none")) == 2
    assert "holds no base" in capsys.readouterr().err
    foundation = load_base(path, "foundation")
    header = {"kind": "foundation", "sha256": foundation.sha256, "network": foundation.network, "window": 8}
    path.unlink()
    write_file(path, {**header, "query_space": "other", "revision": 0, "about": {}}, foundation.weights)
    assert decompose.main(arguments("toy.toml")) == 2
    assert "was trained with another query table; train it anew with this one" in capsys.readouterr().err
    assert not (tmp_path / "store").exists()


def test_lorkd_star_publishes_experts_of_the_ranks_that_its_report_explains(
    tmp_path: Path, arguments: Arguments
) -> None:
    assert pretrain.main(arguments("default_foundation.toml")) == 0
    # Warmed up on the thorax alone: the loss of the abdomen moves by another amount, and so its rank is another.
    star = {"rank": 4, "most_rank": 8, "probe_samples": 3, "warmup_steps": 6, "learning_rate": 1e-2}
    assert decompose.main(arguments("small.toml", **star, data__weights="{ abdomen = 0, thorax = 1 }")) == 0
    run, store = tmp_path / "run", ExpertStore(tmp_path / "store")
    written = {"pretrain.jsonl", "warmup.jsonl", "joint.jsonl", "run.json", "report.html", "overlays.npz"}
    written |= {"foundation.safetensors", "ranks.md", "ranks.json"}
    assert {path.name for path in run.iterdir()} == written
    told = json.loads((run / "ranks.json").read_text(encoding="utf-8"))
    assert told["probe_samples"] == 3
    assert told["ranks"]["abdomen"] != told["ranks"]["thorax"]
    reductions = {name: own["before"] - own["after"] for name, own in told["departments"].items()}
    mean = sum(max(reduction, 0) for reduction in reductions.values()) / 2
    report = (run / "ranks.md").read_text(encoding="utf-8")
    base = store.header("base")["about"]
    assert base["ranks"] == told["ranks"]
    for name, rank in told["ranks"].items():
        ranks = {layer: min(rank * (2 if "decoder" in layer else 1), 8 if ".1.0." in layer else 4) for layer in LAYERS}
        assert store.header(name)["ranks"] == ranks
        wanted = 2 * int(4 * max(reductions[name] / mean, 0) ** 2 / 2)
        assert rank == min(max(wanted, 2), 8)
        assert base["loss_reductions"][name] == pytest.approx(reductions[name])
        assert f"- **{name}** gets rank {rank}: " in report
        assert told["parameters"][name] == sum(a.numel() + b.numel() for a, b in store.load(name).factors.values())

    # Its experts keep their ranks in a run that starts from them, whatever the config's rank.
    again = arguments("demo.toml", output=tmp_path / "again", start=store.folder, warmup_steps=0, rank=3)
    assert decompose.main(again) == 0
    for name in told["ranks"]:
        assert store.newest(name) == 2
        assert store.header(name)["ranks"] == store.header(name, 1)["ranks"]
    assert "the run starts from an expert of that rank" in (tmp_path / "again" / "ranks.md").read_text(encoding="utf-8")


def test_wrong_ranks_are_one_sentence_before_any_step(
    tmp_path: Path, arguments: Arguments, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pretrain.main(arguments("default_foundation.toml", steps=1)) == 0
    wrong: list[tuple[dict[str, object], str]] = [
        ({"rank_rule": "best"}, "rank_rule 'best' is unknown; use one of equal, loss_reduction"),
        ({"rounding": "up"}, "rounding 'up' is unknown; use one of floor_even, nearest_even"),
        ({"most_rank": 16}, "most_rank 16 is more than the largest layer can use; set it to 8 or less"),
        ({"ranks.abdomen": 500}, "rank 500 of abdomen must be in 1..8, what the largest layer of the network can use"),
        ({"ranks.abdomen": 500, "rank_rule": "equal"}, "set ranks.abdomen in the config"),
        ({"ranks.brain": 2}, "ranks.brain is of no department of the run; it has abdomen, thorax"),
        ({"probe_samples": 0}, "probe_samples 0 must be at least 1"),
        ({"warmup_steps": 0}, "rank_rule loss_reduction needs a warm-up, not 0 steps; set warmup_steps higher"),
        ({"transfer": "mean"}, "'mean'"),
    ]
    for changed, sentence in wrong:
        capsys.readouterr()
        assert decompose.main(arguments("small.toml", **{"most_rank": 8, **changed})) == 2
        error = capsys.readouterr().err
        assert sentence in error.splitlines()[-1]
        assert "Traceback" not in error
    assert not (tmp_path / "run" / "warmup.pt").exists()
    assert not (tmp_path / "store").exists()
