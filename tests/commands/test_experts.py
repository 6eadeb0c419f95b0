"""Tests of `lorkd experts`."""

import re
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest
import torch

from lorkd_monailabel import shipped
from lorkd_monailabel.commands import experts
from lorkd_monailabel.commands.experts import described
from lorkd_monailabel.experts import Base
from lorkd_monailabel.networks.low_rank import factor_shapes
from lorkd_monailabel.store import ExpertStore


def test_the_list(lorkd: Callable, store: ExpertStore) -> None:
    outcome = lorkd("experts", "--store", store.folder)
    assert (outcome.status, outcome.err) == (0, "")
    header, thorax, abdomen, where = outcome.out.splitlines()
    assert header.split() == list(experts.HEADER)
    date = datetime.fromtimestamp(store.path("abdomen").stat().st_mtime).strftime("%Y-%m-%d %H:%M")
    assert thorax.split()[:6] == ["thorax", "1", "1", "2", "1", "-"]
    assert abdomen.split() == ["abdomen", "2", "2", "3", "2", "-", *date.split()]
    assert where == f"in {store.folder}"


def test_sources_and_ranks(lorkd: Callable, store: ExpertStore, make_expert: Callable) -> None:
    ranks = make_expert().ranks
    mixed = {name: 1 + index % 3 for index, name in enumerate(ranks)}
    store.publish(make_expert("brain", structures=("brain",), ranks=mixed, about={"sources": ["one", "t\x1bwo"]}))
    line = lorkd("experts", "--store", store.folder).out.splitlines()[1]
    assert "1 to 3  one, t?wo" in line


def test_a_damaged_expert_does_not_hide_the_others(lorkd: Callable, store: ExpertStore) -> None:
    store.path("thorax").write_bytes(b"nothing")
    outcome = lorkd("experts", "--store", store.folder)
    assert outcome.status == 1
    assert outcome.table()["thorax"] == ["1", "1", "-", "damaged"]
    assert outcome.table()["abdomen"][0] == "2"
    (line,) = outcome.err.splitlines()
    assert line.startswith(f"lorkd: {store.path('thorax')} is damaged")


def test_no_store_and_no_expert(lorkd: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert lorkd("experts", "--store", tmp_path / "no").err.endswith("is not a folder that exists; check --store\n")
    outcome = lorkd("experts", "--store", tmp_path)
    assert outcome.status == 2
    assert outcome.err.startswith(f"lorkd: store {tmp_path} holds no expert; train one")
    monkeypatch.setattr(shipped, "STORE", tmp_path / "shipped")
    assert lorkd("experts").err == (
        f"lorkd: no store is shipped at {tmp_path / 'shipped'}; name one with --store FOLDER\n"
    )


def test_the_shipped_store_is_the_default(lorkd: Callable, store: ExpertStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shipped, "STORE", store.folder)
    assert lorkd("experts").out == lorkd("experts", "--store", store.folder).out


def test_show(lorkd: Callable, store: ExpertStore) -> None:
    newest = lorkd("experts", "show", "abdomen", "--store", store.folder)
    assert (newest.status, newest.err) == (0, "")
    lines = newest.out.splitlines()
    assert lines[0].startswith(f"{store.path('abdomen', 2)} (")
    assert "structures: liver, spleen, pancreas" in lines
    assert "parent: 1" in lines
    assert f"ranks: 2 ({len(store.header('abdomen')['ranks'])} weights)" in lines
    assert "metrics: none" in lines
    old = lorkd("experts", "--store", store.folder, "show", "abdomen", "--revision", 1).out.splitlines()
    assert old[old.index("metrics:") + 1] == "  liver: 0.9"
    assert old[old.index("about:") + 1 : old.index("about:") + 3] == ["  cases: 7", '  sources: ["set one", "set two"]']
    assert "window: 8, 8, 8" in lorkd("experts", "show", "base", "--store", store.folder).out.splitlines()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("show", "spine"), "department 'spine' has no expert in "),
        (("show", "belly"), "department 'belly' is unknown"),
        (("show", "abdomen", "--revision", "9"), "abdomen has no revision 9; it has 1 to 2"),
        (("show", "abdomen", "--revision", "x"), "argument --revision: invalid int value: 'x'"),
        (("rollback", "abdomen", "2"), "abdomen revision 2 is the newest already; name an older one"),
        (("rollback", "abdomen", "0"), "abdomen has no revision 0; it has 1 to 2"),
        (("rollback", "base", "1"), "department 'base' is unknown"),
        (("pin", "abdomen", "3"), "abdomen has no revision 3; it has 1 to 2"),
        (("pin", "spine", "1"), "spine has no expert (experts exist for: thorax, abdomen); train one first"),
        (("unpin", "belly"), "department 'belly' is unknown"),
        (("diff", "abdomen", "1", "7"), "abdomen has no revision 7; it has 1 to 2"),
        (("candidates", "abdomen", "--publish", "x"), "abdomen has no candidate 'x'; there are: none"),
        (("candidates", "abdomen", "--discard", "../0001"), "abdomen has no candidate '../0001'; there are: none"),
        (("truncate", "abdomen", "2"), "abdomen revision 2 is of rank 2 already; name a smaller one"),
        (("truncate", "abdomen", "3"), "rank 3 of abdomen/0002 must be a whole number in 1..2; ranks grow by training"),
        (("truncate", "abdomen", "0"), "rank 0 of abdomen/0002 must be a whole number in 1..2"),
        (("truncate", "abdomen", "9", "--dry-run"), "rank 9 of abdomen/0002 must be a whole number in 1..2"),
        (("truncate", "abdomen", "half"), "argument RANK: invalid int value: 'half'"),
        (("truncate", "abdomen"), "name the RANK to truncate to; --dry-run shows what each would keep"),
        (("truncate", "abdomen", "1", "--revision", "3"), "abdomen has no revision 3; it has 1 to 2"),
        (("truncate", "spine", "1"), "department 'spine' has no expert in "),
        (("truncate", "belly", "1"), "department 'belly' is unknown"),
        (("truncate", "base", "1"), "is of kind base, not expert"),
    ],
)
def test_what_can_not_be(lorkd: Callable, store: ExpertStore, words: tuple[str, ...], message: str) -> None:
    before = sorted(store.folder.rglob("*"))
    outcome = lorkd("experts", "--store", store.folder, *words)
    assert (outcome.status, outcome.out) == (2, "")
    (line,) = outcome.err.splitlines()
    assert message in line
    assert sorted(store.folder.rglob("*")) == before


def test_rollback_publishes_the_old_one_anew(lorkd: Callable, store: ExpertStore) -> None:
    kept = {path: path.read_bytes() for path in store.folder.rglob("*.safetensors")}
    outcome = lorkd("experts", "rollback", "abdomen", 1, "--store", store.folder)
    assert (outcome.status, outcome.err) == (0, "")
    assert outcome.out.startswith("abdomen: revision 1 is published anew as revision 3, which is the newest now")
    assert {path: path.read_bytes() for path in kept} == kept
    old, new = store.load("abdomen", 1), store.load("abdomen")
    assert (new.revision, new.structures, new.metrics, new.parent) == (3, old.structures, old.metrics, old.parent)
    assert new.about == {**old.about, "copy_of": 1}
    assert all(
        torch.equal(a, b) for name in old.factors for a, b in zip(old.factors[name], new.factors[name], strict=True)
    )


def test_rollback_from_a_damaged_revision(lorkd: Callable, store: ExpertStore) -> None:
    store.path("abdomen").write_bytes(b"")
    assert lorkd("experts", "rollback", "abdomen", 1, "--store", store.folder).status == 0
    assert store.load("abdomen").structures == ("liver", "spleen")


def test_rollback_wants_its_store_named(lorkd: Callable, store: ExpertStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shipped, "STORE", store.folder)
    outcome = lorkd("experts", "rollback", "abdomen", 1)
    assert outcome.status == 2
    assert outcome.err.startswith("lorkd: name the store to change with --store; a server that was told none uses ")
    assert store.newest("abdomen") == 2


def test_truncate_publishes_a_smaller_expert_and_changes_no_other_byte(
    lorkd: Callable, store: ExpertStore, make_expert: Callable
) -> None:
    store.publish(make_expert(seed=3, rank=4, metrics={"liver": 0.9}, about={"cases": 7}))
    kept = {path: path.read_bytes() for path in store.folder.rglob("*.safetensors")}
    assert len(kept) == 5
    outcome = lorkd("experts", "truncate", "abdomen", 1, "--store", store.folder)
    assert (outcome.status, outcome.err) == (0, "")
    after = {path: path.read_bytes() for path in store.folder.rglob("*.safetensors")}
    assert after.keys() - kept.keys() == {store.folder / "abdomen" / "0004.safetensors"}
    assert {path: after[path] for path in kept} == kept
    old, new = store.load("abdomen", 3), store.load("abdomen")
    assert (new.revision, new.rank, new.parent, new.metrics) == (4, 1, 3, {})
    assert new.about == {"cases": 7, "truncated_from": {"rank": 4, "revision": 3}}

    first, parameters, energy, last = outcome.out.splitlines()
    assert first == "abdomen: revision 3 of rank 4 is published as revision 4 of rank 1, which is the newest now"
    count = sum(a.numel() + b.numel() for a, b in new.factors.values())
    assert parameters == f"parameters: {count:,}, before {4 * count:,}"
    before, left = ({name: float((b @ a).square().sum()) for name, (a, b) in e.factors.items()} for e in (old, new))
    shares = {name: 100 * left[name] / before[name] for name in before}
    worst = min(shares, key=shares.__getitem__)
    overall = 100 * sum(left.values()) / sum(before.values())
    assert energy == f"energy of the delta kept: {overall:.2f} %, in the worst layer {shares[worst]:.2f} % ({worst})"
    assert last.startswith("its metrics must be measured anew")
    way_back = re.search("`lorkd (.*)`", last)
    assert way_back
    assert lorkd(*way_back[1].split()).status == 0
    assert store.load("abdomen").rank == 4


def test_truncate_an_older_revision_with_unequal_layers(
    lorkd: Callable, store: ExpertStore, tiny_base: Base, make_expert: Callable
) -> None:
    names = make_expert().ranks
    ranks = {name: 4 if "decoder" in name else 2 for name in names}
    factors = {
        name: tuple(torch.randn(shape) for shape in factor_shapes(tiny_base.weights[name].shape, rank))
        for name, rank in ranks.items()
    }
    norms = {"unet.encoder.0.0.norm.weight": torch.rand(4)}
    store.publish(make_expert(factors=factors, ranks=ranks, norms=norms))
    store.publish(make_expert())
    outcome = lorkd("experts", "truncate", "abdomen", 1, "--revision", 3, "--store", store.folder)
    first, parameters, *_ = outcome.out.splitlines()
    assert first.startswith(
        "abdomen: revision 3 of rank 2 (2 to 4 by layer) is published as revision 5 of rank 1 (1 to 2"
    )
    count = sum(a.numel() + b.numel() for a, b in factors.values())
    assert parameters == f"parameters: {count // 2 + 4:,}, before {count + 4:,}"
    assert store.load("abdomen").parent == 3


def test_the_curve_of_every_rank_publishes_nothing(lorkd: Callable, store: ExpertStore, make_expert: Callable) -> None:
    store.publish(make_expert(seed=3, rank=3))
    before = {path: path.read_bytes() for path in store.folder.rglob("*") if path.is_file()}
    outcome = lorkd("experts", "truncate", "abdomen", "--dry-run", "--store", store.folder)
    assert (outcome.status, outcome.err) == (0, "")
    assert {path: path.read_bytes() for path in store.folder.rglob("*") if path.is_file()} == before
    header, *rows, last = outcome.out.splitlines()
    assert header.split() == " ".join(experts.CURVE).split()
    assert last == f"of abdomen revision 3 in {store.folder}; nothing is published"
    cells = [row.split() for row in rows]
    assert [row[:2] for row in cells] == [["3", "3"], ["2", "2"], ["1", "1"]]
    count = sum(a.numel() + b.numel() for a, b in store.load("abdomen").factors.values())
    assert [int(row[2]) for row in cells] == [count, count * 2 // 3, count // 3]
    assert cells[0][3:] == ["100.0", "100.0", "-"]
    energies = [float(row[3]) for row in cells]
    assert 0 < energies[2] < energies[1] < energies[0]
    assert all(float(row[4]) < float(row[3]) for row in cells[1:])
    one = lorkd("experts", "truncate", "abdomen", 2, "--dry-run", "--store", store.folder).out.splitlines()
    assert one == [header, rows[1], last]


def test_a_new_expert_loses_nothing(lorkd: Callable, store: ExpertStore, make_expert: Callable) -> None:
    new = make_expert(rank=2)
    store.publish(replace(new, factors={name: (a, torch.zeros_like(b)) for name, (a, b) in new.factors.items()}))
    outcome = lorkd("experts", "truncate", "abdomen", "--dry-run", "--store", store.folder)
    assert [row.split()[3:] for row in outcome.out.splitlines()[1:3]] == [["100.0", "100.0", "-"]] * 2


def test_truncate_wants_its_store_named_but_the_curve_does_not(
    lorkd: Callable, store: ExpertStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shipped, "STORE", store.folder)
    outcome = lorkd("experts", "truncate", "abdomen", 1)
    assert (outcome.status, outcome.out) == (2, "")
    assert outcome.err.startswith("lorkd: name the store to change with --store; a server that was told none uses ")
    assert store.newest("abdomen") == 2
    assert lorkd("experts", "truncate", "abdomen", "--dry-run").status == 0


def test_truncating_damaged_factors_is_one_sentence(lorkd: Callable, store: ExpertStore, make_expert: Callable) -> None:
    whole = make_expert(rank=2)
    name = next(iter(whole.factors))
    for bad in (torch.nan, torch.inf):
        lora_a, lora_b = whole.factors[name]
        store.publish(replace(whole, factors={**whole.factors, name: (lora_a, lora_b * bad)}))
        outcome = lorkd("experts", "truncate", "abdomen", 1, "--store", store.folder)
        assert (outcome.status, outcome.out) == (2, "")
        (line,) = outcome.err.splitlines()
        assert f" of {name} are not finite ones of rank 2; restore abdomen/" in line


def test_a_header_in_lines() -> None:
    header = {
        "scales": {},
        "structures": ["long name"] * 20,
        "about": {"a": {"b": [1, None]}},
        "parent": 0,
        "x": "a\nb",
    }
    lines = list(described(header))
    assert lines[0] == "scales: - (0 weights)"
    assert lines[2].startswith("    ")
    assert max(map(len, lines)) <= experts.WIDTH
    assert lines[-4:] == ["about:", '  a: {"b": [1, null]}', "parent: 0", "x: a?b"]
