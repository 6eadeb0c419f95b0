import csv

import pytest

from train.bench import report
from train.bench.report import duration, machine, markdown, write_report
from train.bench.timing import Result

RESULTS = [
    Result("32³", "step", "plain", seconds=1.5, ratio=1.0, memory_mib=200.0, memory_ratio=1.0, rounds=5, floor=True),
    Result("32³", "step", "paper", seconds=5.7, ratio=3.8, memory_mib=600.0, memory_ratio=3.0, rounds=5),
    Result("32³", "step", "peft", note="peft is not installed"),
    Result("64³", "step", "plain", seconds=8.1, ratio=1.0, operations=1000, rounds=5, floor=True),
    Result("64³", "step", "paper", seconds=8.1, ratio=1.0, operations=1500, rounds=5),
]


def test_table():
    assert markdown(RESULTS).splitlines() == [
        "| case | | plain | paper | peft |",
        "|---|---|---|---|---|",
        "| 32³ | step | 1.50 s | 3.80 | - |",
        "| 32³ | step, peak memory | 200 MiB | 3.00 | - |",
        "| 64³ | step | 8.10 s | 1.00 | - |",
        "| 64³ | step, operations | 1000 | 1.5000 | - |",
        "",
        "peft: peft is not installed (32³).",
    ]


def test_files(tmp_path):
    text = write_report(RESULTS, tmp_path / "new", "eks", device="cpu")
    assert (tmp_path / "new" / "eks.md").read_text(encoding="utf-8") == text
    with (tmp_path / "new" / "eks.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["case"], row["way"], row["ratio"], row["note"]) for row in rows][1:3] == [
        ("32³", "paper", "3.8", ""),
        ("32³", "peft", "", "peft is not installed"),
    ]
    assert (tmp_path / "new" / "eks.png").read_bytes().startswith(b"\x89PNG")


def test_machine_is_named(monkeypatch):
    import torch

    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "123")
    line = machine()
    assert line.startswith("Machine: ")
    assert "\n" not in line
    for part in (f"torch {torch.__version__}", f"{torch.get_num_threads()} threads", "MALLOC_TRIM_THRESHOLD_=123"):
        assert part in line


def test_missing_matplotlib_is_said_in_a_sentence(monkeypatch, tmp_path):
    monkeypatch.setattr(report, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"needs matplotlib.*lorkd-monailabel\[train\]"):
        write_report(RESULTS, tmp_path, "eks")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(8.1, "8.10 s"), (123.4, "123 s"), (0.01234, "12.3 ms"), (0.9999, "1000 ms"), (17.8e-6, "17.8 µs")],
)
def test_durations(seconds, text):
    assert duration(seconds) == text
