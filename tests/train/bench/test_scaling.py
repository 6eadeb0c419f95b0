import json

import pytest
import torch

from lorkd_monailabel.learning.distributed import World
from train.bench import scaling


def test_the_table_compares_with_one_process_of_one_thread():
    found = {"1 process, 2 threads": [3.0, 1.0, 4.0], "1 process, 1 thread": [2.0], "2 processes, 1 thread each": [3.5]}
    assert scaling.table(found).splitlines()[2:] == [
        "| 1 process, 2 threads | 3.00 | 1.00-4.00 | 1.50 |",
        "| 1 process, 1 thread | 2.00 | 2.00-2.00 | 1.00 |",
        "| 2 processes, 1 thread each | 3.50 | 3.50-3.50 | 1.75 |",
    ]


def test_a_way_is_measured_and_two_processes_share_the_batch(tmp_path, monkeypatch, capsys):
    with torch.random.fork_rng():
        assert scaling.samples_per_second(World(), "tiny", patch=7, steps=2) > 0
    # The processes of the other ways are torchrun's; one pair of them is started here.
    launched, ran = scaling.launched, []

    def only_two(options, *, processes, threads):
        ran.append((processes, threads))
        return launched(options, processes=processes, threads=threads) if processes == 2 else 1.0

    monkeypatch.setattr(scaling, "launched", only_two)
    options = ["--network", "tiny", "--patch", "8", "--steps", "1", "--rounds", "1", "--output", str(tmp_path)]
    assert scaling.main(options) == 0
    assert ran == [(1, 2), (1, 1), (2, 1)]
    found = json.loads((tmp_path / "scaling.json").read_text(encoding="utf-8"))
    assert found["2 processes, 1 thread each"][0] > 0
    assert (tmp_path / "scaling.md").read_text(encoding="utf-8") in capsys.readouterr().out


@pytest.mark.parametrize("wrong", [["--steps", "0"], ["--patch", "0"], ["--rounds", "0"]])
def test_bad_numbers_are_one_sentence(wrong, capsys):
    assert scaling.main(wrong) == 2
    assert capsys.readouterr().err == "patch, steps and rounds must be at least 1; give larger ones\n"
