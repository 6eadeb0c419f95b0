"""Tests of the report that a run leaves."""

import json
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from train import report
from train.report import main, write_report
from train.reporting.charts import COLORS
from train.reporting.overlays import Overlay
from train.reporting.provenance import write_provenance
from train.settings import DataConfig, DecomposeConfig

HOSTILE = "<img src=http://example.org/x.png onerror=alert(1)>"


class Reader(HTMLParser):
    """What a browser makes of a page: tags with their attributes, the rows of its tables, what is seen."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.rows: list[list[str]] = []
        self.cell = False
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag == "tr":
            self.rows.append([])
        self.cell = self.cell or tag in ("td", "th")
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        self.cell = self.cell and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.cell:
            self.rows[-1][-1] += data

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]

    def rows_of(self, first: str) -> list[list[str]]:
        return [row[1:] for row in self.rows if row[0] == first]


def leave(folder: Path, phases: dict[str, int]) -> Path:
    """Write what a decomposition of two departments leaves; ``phases`` gives the steps of each."""
    config = DecomposeConfig(data=DataConfig(cases="/there/cases.jsonl", patch=24), output=str(folder), store="store")
    write_provenance(folder, config, 11)
    start = 1.7e9
    for phase, steps in phases.items():
        lines = [
            {
                "step": step,
                "loss": 2.0 - step / 40,
                "losses": {"brain": 2.0 - step / 40, **({} if step % 2 else {"abdomen": 1.0})},
                "learning_rate": 1e-3,
                "samples_per_second": 3.25,
                "waiting": 0.05,
                "time": start + step,
            }
            for step in range(1, steps + 1)
        ]
        start += steps
        (folder / f"{phase}.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")
    choice = {"reason": "loss_reduction", "before": 1.8, "after": 1.2, "reduction": 0.6, "rank": 8}
    small = {"reason": "loss_reduction", "before": 1.8, "after": 1.65, "reduction": 0.15, "rank": 2}
    ranks = {"departments": {"brain": choice, "abdomen": small}, "parameters": {"brain": 54321, "abdomen": 12345}}
    (folder / "ranks.json").write_text(json.dumps(ranks), encoding="utf-8")
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return leave(tmp_path / "run", {"joint": 40})


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of two phases with an overlay."""
    folder = leave(tmp_path_factory.mktemp("two"), {"warmup": 20, "joint": 40})
    return write_report(folder, title="Two departments", overlays=[overlay()])


@pytest.fixture(scope="module")
def read(written: Path) -> Reader:
    return Reader(written)


def overlay() -> Overlay:
    mask = np.zeros((1, 12, 10), dtype=bool)
    mask[:, 3:8, 3:8] = True
    return Overlay("Abdomen, CT", np.arange(120.0).reshape(12, 10), mask, mask, ("liver",))


def test_one_file_that_needs_nothing_else(written: Path, read: Reader) -> None:
    assert written.name == "report.html"
    assert read.tags[0] == ("html", {"lang": "en"})
    assert {own.get("charset") for own in read.all("meta")} >= {"utf-8"}
    assert not {"script", "link", "iframe"} & {tag for tag, _ in read.tags}
    assert all(own["src"].startswith("data:image/") and len(own["alt"]) > 20 for own in read.all("img"))
    assert len(read.all("img")) == 2 + 2 + 1  # losses and pace of two phases, an overlay
    assert len(read.all("caption")) == len(read.all("table")) >= 2 + 1 + 3  # losses, ranks, provenance with settings
    assert "url(" not in written.read_text(encoding="utf-8")
    assert "/there" not in read.text


def test_a_reader_learns_what_was_run_and_how_it_went(read: Reader) -> None:
    for part in ("Warm-up of the base", "Base and experts together", "2 departments (Brain, Abdomen)", "60", "1 min"):
        assert part in read.text
    assert read.rows_of("Abdomen")[:2] == [["10", "1.000", "1.000", "0"], ["20", "1.000", "1.000", "0"]]
    # 40 steps from 2 - 1/40 down to 1: means of two at each end.
    assert read.rows_of("Brain")[1] == ["40", "1.962", "1.012", "\N{MINUS SIGN}48"]
    assert read.rows_of("seed")[0] == ["11"]
    assert read.rows_of("patch") == [["24"]]
    assert read.rows_of("cases") == [["cases.jsonl"]]


def test_ranks_stand_with_their_reductions_as_bars_in_the_departments_colours(read: Reader) -> None:
    assert read.rows_of("Brain")[-1] == ["1.800", "1.200", "0.600", "8", "54,321", "its reduction"]
    assert read.rows_of("Abdomen")[-1] == ["1.800", "1.650", "0.150", "2", "12,345", "its reduction"]
    bars = [own["style"] for own in read.all("span") if own["class"] == "bar"][-4:]
    assert bars == [
        *[f"width: 100.0%; background: {COLORS['brain']}"] * 2,
        *[f"width: 25.0%; background: {COLORS['abdomen']}"] * 2,
    ]


def test_equal_ranks_have_no_reduction(folder: Path) -> None:
    nothing = dict.fromkeys(("before", "after", "reduction"))
    ranks = {"departments": {"brain": {"rank": 4, "reason": "equal", **nothing}}}
    (folder / "ranks.json").write_text(json.dumps(ranks), encoding="utf-8")
    read = Reader(write_report(folder, title="title"))
    assert read.rows_of("Brain")[-1] == ["\N{EN DASH}"] * 3 + ["4", "\N{EN DASH}", "equal for all"]


def test_much_waiting_is_said_with_a_way_out(folder: Path, read: Reader) -> None:
    assert "raise data.workers" not in read.text
    path = folder / "joint.jsonl"
    path.write_text(path.read_text(encoding="utf-8").replace('"waiting": 0.05', '"waiting": 0.4'), encoding="utf-8")
    assert "waited 40 % of the time for samples; raise data.workers" in Reader(write_report(folder, title="title")).text


def test_the_command_makes_it_anew_with_the_overlays_that_were_kept(
    written: Path, read: Reader, capsys: pytest.CaptureFixture[str]
) -> None:
    written.unlink()
    assert main([str(written.parent), "--title", "second"]) == 0
    assert capsys.readouterr().out == f"report {written}\n"
    again = Reader(written)
    assert "second" in again.text
    assert again.all("img") == read.all("img")  # to the byte


def test_a_history_alone_is_enough(folder: Path) -> None:
    for name in ("run.json", "ranks.json"):
        (folder / name).unlink()
    read = Reader(write_report(folder, title="title"))
    assert len(read.all("img")) == 2
    assert "Ranks" not in read.text


def test_whatever_files_say_is_text(folder: Path) -> None:
    for name in ("run.json", "ranks.json", "joint.jsonl"):
        path = folder / name
        text = path.read_text(encoding="utf-8").replace("brain", HOSTILE).replace("AMD", HOSTILE)
        path.write_text(text.replace('"bernoulli"', json.dumps(HOSTILE)), encoding="utf-8")
    (folder / "joint.jsonl").rename(folder / "x<b>.jsonl")
    read = Reader(write_report(folder, title=HOSTILE))
    assert all(own["src"].startswith("data:") for own in read.all("img"))
    assert not any("onerror" in own for _, own in read.tags)
    assert read.all("b") == []
    assert read.text.count(HOSTILE) >= 5


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("run.json", "{", r"run\.json is no JSON .*; remove it"),
        ("ranks.json", "[]", r"ranks\.json is no JSON object; remove it"),
        ("overlays.npz", "nothing", r"overlays\.npz holds no overlays"),
        ("joint.jsonl", None, r"line 41 of .*joint\.jsonl is no step"),
    ],
)
def test_a_damaged_file_is_one_sentence_and_keeps_the_old_report(
    folder: Path, capsys: pytest.CaptureFixture[str], name: str, content: str | None, sentence: str
) -> None:
    (folder / "report.html").write_text("before", encoding="utf-8")
    with (folder / name).open("a" if content is None else "w", encoding="utf-8") as file:
        file.write(content or "nothing\n")
    with pytest.raises(ValueError, match=sentence):
        write_report(folder, title="title")
    assert main([str(folder)]) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert (folder / "report.html").read_text(encoding="utf-8") == "before"


def test_strange_values_in_ranks_and_provenance_are_shown_as_nothing(folder: Path) -> None:
    ranks = {"departments": {"brain": {"rank": "many", "reduction": [1]}, "pelvis": 7}, "parameters": []}
    (folder / "ranks.json").write_text(json.dumps(ranks), encoding="utf-8")
    (folder / "run.json").write_text('{"git": [], "config": 3, "versions": null, "seed": {}}', encoding="utf-8")
    read = Reader(write_report(folder, title="title"))
    assert read.rows_of("Brain")[-1] == ["\N{EN DASH}"] * 6
    assert read.rows_of("revision of the code") == [["not from a checkout"]]


def test_a_folder_without_a_run_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"{tmp_path} has no history of a run (*.jsonl); name the output folder of one\n"


def test_without_matplotlib_it_is_one_sentence(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("train.bench.report.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"matplotlib, which is not installed; pip install"):
        report.write_report(folder, title="title")
