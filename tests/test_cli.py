"""Tests of lorkd_monailabel.cli: what all commands share, and the entry that pip makes of it."""

import os
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest

from lorkd_monailabel import __version__
from lorkd_monailabel.cli import main, parser
from lorkd_monailabel.experts import Base, Expert
from lorkd_monailabel.store import ExpertStore

HEAVY = ("torch", "monai", "monailabel", "numpy", "nibabel", "SimpleITK", "safetensors", "tqdm")


@pytest.fixture
def entry(root: Path) -> list[str]:
    """What the console script does that pip makes of pyproject.toml."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    module, function = project["scripts"]["lorkd"].split(":")
    return [sys.executable, "-c", f"import sys; from {module} import {function}; sys.exit({function}())"]


@pytest.fixture
def environment(root: Path) -> dict[str, str]:
    """The package is importable, installed or not."""
    return {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}


def test_the_entry_segments(
    entry: list[str],
    environment: dict[str, str],
    tmp_path: Path,
    tiny_base: Base,
    make_expert: Callable[..., Expert],
) -> None:
    store = ExpertStore(tmp_path / "store")
    store.publish_base(tiny_base)
    store.publish(make_expert())
    array = np.random.default_rng(0).normal(0, 300, (8, 8, 8)).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(array, np.diag([3, 3, 3, 1])), tmp_path / "ct.nii.gz")
    words = ["segment", "ct.nii.gz", "--text", "liver; spleen", "--store", "store"]
    done = subprocess.run([*entry, *words], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "liver" in done.stdout
    assert nibabel.load(tmp_path / "ct_lorkd.nii.gz").shape == (8, 8, 8)
    again = subprocess.run([*entry, *words], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert (again.returncode, again.stdout) == (2, "")
    (line,) = again.stderr.splitlines()
    assert line.startswith("lorkd: ct_lorkd.nii.gz exists already")


def test_help_is_quick_and_imports_nothing_heavy(entry: list[str], environment: dict[str, str]) -> None:
    code = entry[-1].replace("import sys; ", "import sys, atexit; ", 1)
    code = code.replace("sys.exit(", f"atexit.register(lambda: print(set({HEAVY}) & set(sys.modules))); sys.exit(", 1)
    began = time.monotonic()
    done = subprocess.run([*entry[:-1], code, "--help"], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"
    assert time.monotonic() - began < 5  # 0.1 s on an idle machine
    for command in ("segment", "experts", "serve", "doctor", "vocabulary"):
        assert f"\n    {command}" in done.stdout


def test_a_closed_pipe_is_no_error(entry: list[str], environment: dict[str, str]) -> None:
    code = entry[-1].replace("import sys; ", "import sys; sys.argv[1:] = ['doctor', '--store', '']; ", 1)
    process = subprocess.Popen(
        [*entry[:-1], code], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait() == 1


def test_version_and_help_of_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"lorkd {__version__}\n"
    for words in (
        ["segment"],
        ["experts"],
        ["experts", "show"],
        ["experts", "rollback"],
        ["serve"],
        ["doctor"],
        ["vocabulary"],
        ["vocabulary", "embed"],
    ):
        with pytest.raises(SystemExit) as ended:
            main([*words, "--help"])
        assert ended.value.code == 0
        assert capsys.readouterr().out.startswith(f"usage: lorkd {' '.join(words)} ")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "the following arguments are required: COMMAND; see lorkd --help"),
        (["dance"], "argument COMMAND: invalid choice: 'dance'"),
        (["segment"], "the following arguments are required: IMAGE, --text; see lorkd segment --help"),
    ],
)
def test_wrong_arguments_are_one_sentence(capsys: pytest.CaptureFixture[str], words: list[str], message: str) -> None:
    assert main(words) == 2
    written = capsys.readouterr()
    assert written.out == ""
    (line,) = written.err.splitlines()
    assert line.startswith(f"lorkd: {message}")


def test_every_command_has_something_to_run() -> None:
    assert parser().parse_args(["doctor"]).run.__module__ == "lorkd_monailabel.commands.doctor"
    assert parser().parse_args(["experts", "show", "abdomen"]).run.__name__ == "show"
    assert parser().parse_args(["experts"]).run.__name__ == "run"
