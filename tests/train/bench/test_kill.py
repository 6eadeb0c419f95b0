"""Tests of train.bench.kill: the short form of the tool, and that it sees what is wrong."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from train.bench import kill
from train.bench.kill import Ground, faults, make_ground


@pytest.fixture
def ground(tmp_path: Path) -> Ground:
    return make_ground(tmp_path)


def test_three_kills_of_each_work_leave_all_that_was_done(root: Path) -> None:
    # in a process of its own: what learned in this one can't be forked any more
    done = subprocess.run(
        [sys.executable, "-m", "train.bench.kill", "--moments", "3"],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    lines = [line.partition(",")[0] for line in done.stdout.splitlines()]
    assert (done.returncode, lines) == (
        0,
        ["publish: killed 3 times", "save-label: killed 3 times", "training: killed 3 times"],
    ), done.stdout + done.stderr


def test_what_a_work_says_is_heard_up_to_its_end(ground: Ground) -> None:
    said = kill.kill_at_a_moment(kill.save_label, ground, 0.5)
    assert said[:2] == [{"label": "one"}, {"label": "two"}]
    assert list(faults(ground, said)) == []


def test_a_work_that_fails_by_itself_is_a_fault(ground: Ground) -> None:
    def fail(ground: Ground, say: kill.Say) -> None:
        raise OSError("no space left")

    said = kill.kill_at_a_moment(fail, ground, 0.5)
    assert list(faults(ground, said)) == ["the work failed by itself: OSError('no space left')"]


def cut(ground: Ground) -> None:
    path = ground.store.path("brain")
    path.write_bytes(path.read_bytes()[:-100])


def remove(ground: Ground) -> None:
    os.unlink(ground.folder / "studies" / "labels" / "final" / "two.nii.gz")


def swap(ground: Ground) -> None:
    label = ground.folder / "studies" / "labels" / "final" / "two.nii.gz"
    label.write_bytes((ground.folder / "studies" / "two.nii.gz").read_bytes())


def tear(ground: Ground) -> None:
    catalogue = ground.folder / "studies" / "datastore_v2.json"
    catalogue.write_text(catalogue.read_text(encoding="utf-8")[:50], encoding="utf-8")


def unpin(ground: Ground) -> None:
    (ground.store.folder / "pins.json").write_text("{", encoding="utf-8")


@pytest.mark.parametrize("harm", [cut, remove, swap, tear, unpin])
def test_planted_harm_is_seen(ground: Ground, harm: Callable[[Ground], None]) -> None:
    assert list(faults(ground, [])) == []
    harm(ground)
    assert list(faults(ground, [])) != []


def test_a_revision_that_was_published_and_is_gone_is_seen(ground: Ground) -> None:
    said = [{"revision": 2, "sha256": "0" * 64}]
    assert list(faults(ground, said)) == ["ValueError: brain has no revision 2; it has 1 to 1"]


def test_bad_numbers_are_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert kill.main(["--moments", "0"]) == 2
    assert capsys.readouterr().err == "moments must be at least 1; give a larger number\n"
