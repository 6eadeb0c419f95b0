"""Tests of lorkd_monailabel.exports.program: what torch.export.load gives, as a plain program and as a teacher."""

import json
import re

import pytest
import torch

from lorkd_monailabel.experts import fused_network
from lorkd_monailabel.teachers.program import ProgramTeacher


def test_program_is_run_as_its_card_says(write, tiny_base, expert, table, monkeypatch) -> None:
    folder, found = write("program")
    assert [path.name for path in found.files] == ["README.md", "abdomen.pt2", "abdomen.pt2.json", "settings.json"]
    assert found.difference <= 1e-5
    monkeypatch.chdir(folder)
    names: dict = {}
    exec(re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(encoding="utf-8"), re.S)[0], names)
    assert names["probabilities"].shape == (1, 2, 8, 8, 8)
    network, queries = fused_network(tiny_base, expert), table.queries(("liver", "spleen"), "ct")
    for batch, *shape in ((1, 8, 8, 8), (3, 2, 12, 4), (1, 18, 4, 6)):
        image = torch.randn(batch, 1, *shape)
        torch.testing.assert_close(names["network"](image), network(image, queries).sigmoid(), atol=1e-5, rtol=0)
    with pytest.raises(Exception, match=r"(?i)guard|divisible|expected"):
        names["network"](torch.zeros(1, 1, 7, 8, 8))


def test_program_teaches(write, tiny_base, expert, table) -> None:
    folder, _ = write("program")
    told = json.loads((folder / "abdomen.pt2.json").read_text(encoding="utf-8"))
    assert told == {
        "channels": ["liver", "spleen"],
        "activation": "none",
        "modality": "ct",
        "intensities": "normalised",
        "spacing_mm": [2.0, 3.0, 4.0],
        "multiple_of": 2,
    }
    image = torch.randn(1, 6, 8, 4)
    found = ProgramTeacher(folder / "abdomen.pt2")(image, ["spleen", "heart", "liver"], "ct")
    queries = table.queries(("spleen", "liver"), "ct")
    expected = fused_network(tiny_base, expert)(image[None], queries)[0].sigmoid()
    torch.testing.assert_close(found[[0, 2]], expected, atol=1e-5, rtol=0)
    assert found[1].isnan().all()


def test_program_in_int8_is_smaller_and_near(write) -> None:
    (_, whole), (small, found) = write("program"), write("program", "int8")
    assert 1e-5 < found.difference < 0.05
    assert whole.difference < found.difference
    dtypes = {each.dtype for each in torch.export.load(small / "abdomen.pt2").state_dict.values()}
    assert dtypes == {torch.int8, torch.float32}
    assert f"{found.difference:.1e} at most" in (small / "README.md").read_text(encoding="utf-8")
