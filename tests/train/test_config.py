"""Tests of train.config."""

from collections.abc import Callable
from pathlib import Path

import pytest

from train import config, settings
from train.config import load
from train.data import spacing_of
from train.settings import DecomposeConfig, PretrainConfig

MINIMAL = 'output = "out"\n[data]\ncases = "cases.jsonl"\n'


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        path = tmp_path / "config.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_what_is_not_said_is_the_default(write: Callable[[str], Path]) -> None:
    loaded = load(PretrainConfig, write(MINIMAL))
    assert loaded == PretrainConfig(data=settings.DataConfig(cases="cases.jsonl"), output="out")
    assert loaded.data.spacing_mm == {"default": 3.0}


def test_what_is_said_is_taken(write: Callable[[str], Path]) -> None:
    text = (
        'output = "elsewhere"\nsteps = 7\nlearning_rate = 1\n[engine]\nbf16 = false\n[data]\ncases = "c"\n'
        'splits = []\nsources = ["a", "b"]\nspacing_mm = { default = 2, brain = 1.5 }\naugment = false\n'
    )
    loaded = load(PretrainConfig, write(text))
    assert (loaded.output, loaded.steps, loaded.learning_rate, loaded.engine.bf16) == ("elsewhere", 7, 1.0, False)
    assert isinstance(loaded.learning_rate, float)
    assert (loaded.data.splits, loaded.data.sources, loaded.data.augment) == ([], ["a", "b"], False)
    assert loaded.data.spacing_mm == {"default": 2.0, "brain": 1.5}
    assert all(isinstance(value, float) for value in loaded.data.spacing_mm.values())


def test_spacing_and_patch_are_one_number_or_three(write: Callable[[str], Path]) -> None:
    text = MINIMAL + "patch = [64, 64, 32]\nspacing_mm = { default = 3, brain = [1, 1, 3.5] }\n"
    data = load(PretrainConfig, write(text)).data
    assert data.patch == [64, 64, 32]
    assert data.spacing_mm == {"default": 3.0, "brain": [1.0, 1.0, 3.5]}
    assert spacing_of(data, "brain") == (1.0, 1.0, 3.5)
    assert spacing_of(data, "abdomen") == (3.0, 3.0, 3.0)


def test_overrides_stand_over_the_file(write: Callable[[str], Path]) -> None:
    path = write(MINIMAL + "patch = 32\nspacing_mm = { default = 2.0 }\n")
    loaded = load(
        PretrainConfig,
        path,
        [
            "steps=5",
            "steps = 6",
            "output=a folder/with=signs",
            'network="tiny"',
            "data.patch=48",
            "data.spacing_mm.brain=1.5",
            'data.sources=["x", "y"]',
            "data.augment=false",
            "data.weights.abdomen=2",
        ],
    )
    assert (loaded.steps, loaded.output, loaded.network) == (6, "a folder/with=signs", "tiny")
    assert (loaded.data.patch, loaded.data.sources, loaded.data.augment) == (48, ["x", "y"], False)
    assert loaded.data.spacing_mm == {"default": 2.0, "brain": 1.5}
    assert loaded.data.weights == {"abdomen": 2.0}
    assert load(PretrainConfig, write('output = "out"\n'), ["data.cases=list.jsonl"]).data.cases == "list.jsonl"


@pytest.mark.parametrize(
    ("text", "overrides", "sentence"),
    [
        ("stepz = 3\n" + MINIMAL, [], r"config key stepz is unknown; known are balance, batch_size, .*steps"),
        (MINIMAL + "patches = 3\n", [], r"config key data\.patches is unknown; known are .*patch"),
        (MINIMAL, ["data.patches=3"], r"config key data\.patches is unknown"),
        ('output = "out"\n', [], r"config key data\.cases is missing; set it in the file or by --set data\.cases="),
        ('[data]\ncases = "c"\n', [], r"config key output is missing; set it in the file or by --set output="),
        (MINIMAL, ["steps=many"], r"config key steps is 'many'; it must be .*int"),
        (MINIMAL, ["steps=1.5"], r"config key steps is 1\.5; it must be .*int"),
        (MINIMAL, ["steps=true"], r"config key steps is True; it must be .*int"),
        (MINIMAL, ["learning_rate=true"], r"config key learning_rate is True; it must be .*float"),
        (MINIMAL, ["engine.bf16=1"], r"config key engine.bf16 is 1; it must be .*bool"),
        (MINIMAL, ["output=5"], r"config key output is 5; it must be .*str"),
        (MINIMAL, ["data.sources=one"], r"config key data\.sources is 'one'; it must be list\[str\]"),
        (MINIMAL, ["data.sources=[1]"], r"config key data\.sources\.0 is 1; it must be .*str"),
        (MINIMAL, ["data.spacing_mm=3"], r"config key data\.spacing_mm is 3; it must be dict"),
        (MINIMAL, ["data.spacing_mm.brain=fine"], r"config key data\.spacing_mm\.brain is 'fine'; it must be .*float"),
        (
            MINIMAL,
            ["data.spacing_mm.brain=[1, 'x']"],
            r"config key data\.spacing_mm\.brain\.1 is 'x'; it must be .*float",
        ),
        (MINIMAL, ["data.patch=[8, 8.5, 8]"], r"config key data\.patch\.1 is 8\.5; it must be .*int"),
        (MINIMAL, ["data.weights.brain=true"], r"config key data\.weights\.brain is True; it must be .*float"),
        (MINIMAL, ["data=5"], r"config key data is 5; it must be"),
        (
            MINIMAL,
            ["output.folder=5"],
            r"'output\.folder=5' reaches into output, which is no table; write output=",
        ),
        (MINIMAL, ["data.cases.first=5"], r"reaches into cases, which is no table"),
        (MINIMAL, ["steps"], r"--set 'steps' has no '='; write key=value"),
        ("steps = = 3", [], r"config .*config\.toml can't be read \(.*line 1.*\); give a TOML file"),
    ],
)
def test_mistakes_are_one_sentence(
    write: Callable[[str], Path], text: str, overrides: list[str], sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence) as caught:
        load(PretrainConfig, write(text), overrides)
    assert caught.type is ValueError
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"config .*none\.toml can't be read"):
        load(PretrainConfig, tmp_path / "none.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"config .*binary\.toml can't be read"):
        load(PretrainConfig, tmp_path / "binary.toml")


def test_command_line_exits_with_two_and_the_sentence(
    write: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(write(MINIMAL + 'foo = "bar"\n'))
    with pytest.raises(SystemExit) as caught:
        config.parse(DecomposeConfig, "What it does.", [path, "--set", "store=s"])
    assert caught.value.code == 2
    assert "config key data.foo is unknown" in capsys.readouterr().err
    path = str(write(MINIMAL))
    arguments = [path, "--set", "store=s", "--set", "foundation=f", "--set", "rank=3"]
    loaded = config.parse(DecomposeConfig, "What it does.", arguments)
    assert (loaded.store, loaded.foundation, loaded.rank) == ("s", "f", 3)


def test_ranks_are_a_table_of_whole_numbers(write: Callable[[str], Path]) -> None:
    path = write('store = "s"\nfoundation = "f"\n' + MINIMAL)
    assert load(DecomposeConfig, path, ["ranks.brain=6", "ranks.spine = 2"]).ranks == {"brain": 6, "spine": 2}
    with pytest.raises(ValueError, match=r"config key ranks\.brain is 2\.5; it must be .*int"):
        load(DecomposeConfig, path, ["ranks.brain=2.5"])
