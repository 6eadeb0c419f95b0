"""Tests of train.recipe."""

from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from lorkd_monailabel.learning.distributed import World
from lorkd_monailabel.learning.training import Interrupted, Progress
from train.recipe import Session, described, engine_of, run_recipe
from train.settings import EngineConfig


@dataclass(frozen=True)
class SmallConfig:
    """A config of a recipe that learns nothing."""

    output: str = "out"
    seed: int = 0
    engine: EngineConfig = field(default_factory=EngineConfig)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.toml"
    path.write_text('[engine]\ndevice = "cpu"\naccumulate = 3\n', encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (None, 0),
        (ValueError("rank 0 is too small"), 2),
        (OSError("no such file"), 2),
        (Interrupted("stopped after step 3"), 130),
        (KeyboardInterrupt(), 130),
    ],
)
def test_an_end_is_a_status_and_a_sentence(
    config: Path, capsys: pytest.CaptureFixture[str], error: BaseException | None, status: int
) -> None:
    def recipe(own: SmallConfig, world: World) -> list[str]:
        assert (own.engine.accumulate, world.size, world.device) == (3, 1, torch.device("cpu"))
        if error is not None:
            raise error
        return ["published all", "and more"]

    assert run_recipe(recipe, SmallConfig, "doc", [str(config)]) == status
    out, said = capsys.readouterr()
    assert out == ("" if error else "published all\nand more\n")
    assert said == (f"{described(error)[0]}\n" if error else "")


def test_mistakes_of_ours_keep_their_traceback(config: Path) -> None:
    def recipe(own: SmallConfig, world: World) -> list[str]:
        raise TypeError("of ours")

    with pytest.raises(TypeError, match="of ours"):
        run_recipe(recipe, SmallConfig, "doc", [str(config)])
    assert described(TypeError("of ours")) == ("TypeError: of ours", 1)


def test_a_device_that_is_not_there_is_refused(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [str(config), "--set", "engine.device=cuda:99"]
    assert run_recipe(lambda own, world: [], SmallConfig, "doc", arguments) == 2
    assert "'cuda:99' is not there" in capsys.readouterr().err


def test_every_key_reaches_the_engine() -> None:
    keys = {"bf16": False, "accumulate": 2, "ema": 0.5, "shard": True, "save_every_s": 9.0}
    engine = engine_of(EngineConfig(**keys), World(size=4))
    assert {name: getattr(engine, name) for name in keys} == keys
    assert engine.world.size == 4
    assert engine_of(EngineConfig(compile=True), World()).compile


@pytest.mark.parametrize("rank", [0, 1])
def test_the_first_process_alone_shows_and_writes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], rank: int
) -> None:
    world = World(rank=rank, size=2)
    with Session(SmallConfig(), tmp_path / "run", world) as session:
        listener = session.listener("joint")
        listener(Progress(1, 1, 0.5, {"abdomen": 0.5}, 0.0, 1e-3, 2.0, 0.1))
        session.report("A run", [])
    written = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert written == (set() if rank else {"joint.jsonl", "run.json", "report.html"})
    assert ("joint: step 1 of 1" in capsys.readouterr().err) == (rank == 0)


def test_a_run_does_not_fail_for_its_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Session(SmallConfig(), tmp_path, World()) as session:
        session.report("Nothing was trained", [])
    assert "no report was written: " in capsys.readouterr().err
