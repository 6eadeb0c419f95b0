"""Tests of lorkd_monailabel.store: what it keeps. What it refuses is in test_store_refusals.py."""

import json
import os
import struct
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lorkd_monailabel import store as store_module
from lorkd_monailabel.experts import Base, Expert
from lorkd_monailabel.store import ExpertStore, base_header, load_base, write_file
from lorkd_monailabel.text_encoder import QueryTable

MakeExpert = Callable[..., Expert]


@pytest.fixture
def store(tmp_path: Path, tiny_base: Base) -> ExpertStore:
    store = ExpertStore(tmp_path / "store")
    store.publish_base(tiny_base)
    return store


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def same(one: Expert, other: Expert) -> bool:
    """Whether all fields are equal, tensors bit for bit."""
    pairs = [(one.norms[name], other.norms[name]) for name in one.norms]
    pairs += [pair for name in one.factors for pair in zip(one.factors[name], other.factors[name], strict=True)]
    return (
        replace(one, factors={}, norms={}) == replace(other, factors={}, norms={})
        and (one.factors.keys(), one.norms.keys()) == (other.factors.keys(), other.norms.keys())
        and all(a.dtype == b.dtype and torch.equal(a, b) for a, b in pairs)
    )


def test_an_expert_comes_back_as_it_was_published(store: ExpertStore, make_expert: MakeExpert) -> None:
    expert = make_expert(
        "head_and_neck",
        rank=2,
        norms={"unet.encoder.0.0.norm.weight": torch.rand(4).half()},
        structures=("left eye", "right eye"),
        spacing_mm=1.5,
        parent=3,
        metrics={"left eye": 0.75},
        about={"sources": ["a", "b"], "steps": 10, "note": "Größe"},
    )
    assert store.publish(expert) == 1
    assert same(store.load("head and neck"), replace(expert, revision=1))


def test_a_base_comes_back_as_it_was_published(store: ExpertStore, tiny_base: Base) -> None:
    base = store.base()
    assert base.revision == 1
    assert base.sha256 == tiny_base.sha256
    assert (base.network, base.window, base.query_space, base.intensities) == (
        json.loads(json.dumps(tiny_base.network)),
        (8, 8, 8),
        tiny_base.query_space,
        "fixed",
    )
    assert all(torch.equal(base.weights[name], tensor) for name, tensor in tiny_base.weights.items())


def test_revisions_are_added_and_never_changed(store: ExpertStore, make_expert: MakeExpert) -> None:
    before: dict[str, bytes] = contents(store.folder)
    for number in (1, 2, 3):
        assert store.publish(make_expert(seed=number)) == number
        now = contents(store.folder)
        assert now.keys() - before.keys() == {f"abdomen/000{number}.safetensors"}
        assert all(now[name] == data for name, data in before.items())
        before = now
    assert store.revisions("abdomen") == (1, 2, 3)
    for number in (1, 2, 3):
        assert same(store.load("abdomen", number), replace(make_expert(seed=number), revision=number))
    assert same(store.load("abdomen"), store.load("abdomen", 3))


def test_rolling_back_publishes_the_old_one_anew(store: ExpertStore, make_expert: MakeExpert) -> None:
    store.publish(make_expert(seed=1))
    store.publish(make_expert(seed=2))
    assert store.publish(store.load("abdomen", 1)) == 3
    assert same(store.load("abdomen"), replace(make_expert(seed=1), revision=3))


def test_newest_is_the_highest_number_whatever_its_time_or_spelling(
    store: ExpertStore, make_expert: MakeExpert
) -> None:
    store.publish(make_expert())
    folder = store.folder / "abdomen"
    for name in ("9999", "10000"):
        (folder / f"{name}.safetensors").write_bytes((folder / "0001.safetensors").read_bytes())
    os.utime(folder / "10000.safetensors", (0, 0))
    for name in (".draft-12345", "10001.safetensors.part", "012.safetensors", "x10002.safetensors"):
        (folder / name).write_bytes(b"")
    assert store.revisions("abdomen") == (1, 9999, 10000)
    assert store.newest("abdomen") == 10000
    assert store.load("abdomen").revision == 10000
    assert store.publish(make_expert()) == 10001


def test_lists_what_there_is(store: ExpertStore, make_expert: MakeExpert, tmp_path: Path) -> None:
    for department in ("pelvis", "brain", "abdomen"):
        store.publish(make_expert(department))
    assert store.departments() == ("brain", "abdomen", "pelvis")
    assert (store.revisions("spine"), store.newest("spine")) == ((), None)
    assert ExpertStore(tmp_path / "nothing").departments() == ()


def test_header_is_read_without_the_tensors(
    store: ExpertStore, make_expert: MakeExpert, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.publish(make_expert(parent=7, metrics={"liver": 0.5}))
    store.publish(make_expert())

    def refuse(path: Path) -> None:
        raise AssertionError(f"{path} was read whole")

    monkeypatch.setattr(store_module, "load_file", refuse)
    header = store.header("abdomen", 1)
    assert header["structures"] == ["liver", "spleen"]
    assert (header["parent"], header["metrics"], header["revision"]) == (7, {"liver": 0.5}, 1)
    assert store.header("abdomen")["revision"] == 2
    with pytest.raises(AssertionError, match="was read whole"):
        store.load("abdomen")


def test_the_same_base_keeps_its_number_and_another_gets_its_own(
    store: ExpertStore, tiny_base: Base, make_expert: MakeExpert
) -> None:
    assert store.publish_base(tiny_base) == 1
    weights = {name: tensor + 1 for name, tensor in tiny_base.weights.items()}
    other = replace(tiny_base, weights=weights)
    assert store.publish_base(other) == 2
    assert store.base().sha256 == other.sha256
    assert store.base(tiny_base.sha256).revision == 1
    store.publish(make_expert())  # of the older base
    assert store.publish(make_expert(base_sha256=other.sha256)) == 2


def test_those_who_publish_at_once_get_different_numbers(store: ExpertStore, make_expert: MakeExpert) -> None:
    together = threading.Barrier(6)
    numbers: dict[int, int] = {}

    def publish(seed: int) -> None:
        own = ExpertStore(store.folder)
        together.wait()
        numbers[seed] = own.publish(make_expert(seed=seed))

    threads = [threading.Thread(target=publish, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(numbers.values()) == [1, 2, 3, 4, 5, 6]
    for seed, number in numbers.items():
        assert same(store.load("abdomen", number), replace(make_expert(seed=seed), revision=number))


def test_a_number_that_another_process_took_meanwhile_is_left_alone(
    store: ExpertStore, make_expert: MakeExpert, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.publish(make_expert(seed=1))
    before = contents(store.folder)
    answers = iter([None, 1])  # the first look was before the other process published
    monkeypatch.setattr(store, "newest", lambda name: next(answers))
    assert store.publish(make_expert(seed=2)) == 2
    after = contents(store.folder)
    assert all(after[name] == data for name, data in before.items())
    assert json.loads(json.dumps(store.header("abdomen", 2)["revision"])) == 2


@pytest.mark.parametrize("failing", ["save_file", "fsync", "link"])
def test_a_failing_write_leaves_nothing_behind(
    store: ExpertStore, make_expert: MakeExpert, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    before = contents(store.folder)

    def fail(*arguments: object) -> None:
        if failing == "save_file":
            Path(str(arguments[1])).write_bytes(b"half of i")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(*((store_module, failing) if failing == "save_file" else (os, failing)), fail)
        with pytest.raises(OSError, match="No space left"):
            store.publish(make_expert())
    assert contents(store.folder) == before
    assert store.publish(make_expert()) == 1


def test_nothing_is_written_over(tmp_path: Path) -> None:
    path = tmp_path / "0001.safetensors"
    path.write_bytes(b"kept")
    with pytest.raises(FileExistsError):
        write_file(path, {}, {"a": torch.zeros(1)})
    assert contents(tmp_path) == {"0001.safetensors": b"kept"}


def test_files_are_readable_for_others(store: ExpertStore) -> None:
    assert store.path("base").stat().st_mode & 0o777 == 0o644


def test_a_foundation_is_a_file_of_its_own_kind(tmp_path: Path, tiny_base: Base) -> None:
    path = tmp_path / "foundation.safetensors"
    write_file(path, base_header(tiny_base, "foundation"), tiny_base.weights)
    assert load_base(path, "foundation").sha256 == tiny_base.sha256
    with pytest.raises(ValueError, match="is of kind foundation, not base; give the right file"):
        load_base(path)


def test_content_of_a_tiny_file_is_golden(store: ExpertStore, make_expert: MakeExpert, tiny_base: Base) -> None:
    factors = {"w": (torch.arange(4.0).reshape(1, 4), torch.tensor([[0.5], [-2.0]]))}
    expert = make_expert(
        factors=factors, scales={"w": 8.0}, ranks={"w": 2}, norms={"n": torch.ones(3, dtype=torch.float16)}
    )
    store.publish(expert)
    data = store.path("abdomen").read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    # safetensors writes the two strings of the metadata in any order, so the bytes are compared without them.
    metadata = header.pop("__metadata__")
    assert metadata == {
        "format": "lorkd/1",
        "header": '{"about": {}, "base_sha256": "' + tiny_base.sha256 + '", "department": "abdomen", '
        '"kind": "expert", "metrics": {}, "parent": 0, "ranks": {"w": 2}, "revision": 1, "scales": {"w": 8.0}, '
        '"spacing_mm": [3.0, 3.0, 3.0], "structures": ["liver", "spleen"]}',
    }
    assert header == {
        "lora_a.w": {"dtype": "F32", "shape": [1, 4], "data_offsets": [0, 16]},
        "lora_b.w": {"dtype": "F32", "shape": [2, 1], "data_offsets": [16, 24]},
        "norms.n": {"dtype": "F16", "shape": [3], "data_offsets": [24, 30]},
    }
    assert data[8 + length :] == struct.pack("<6f", 0, 1, 2, 3, 0.5, -2) + struct.pack("<3e", 1, 1, 1)


def test_files_written_before_have_one_number_for_all_axes_and_fixed_intensities(
    store: ExpertStore, tiny_base: Base, make_expert: MakeExpert
) -> None:
    expert = make_expert(spacing_mm=(1, 1, 3))
    store.publish(expert)
    assert store.load("abdomen").spacing_mm == (1.0, 1.0, 3.0)
    old_base = {**base_header(tiny_base, "base"), "window": 96, "revision": 2}
    del old_base["intensities"]
    write_file(store.folder / "base" / "0002.safetensors", old_base, tiny_base.weights)
    base = store.base()
    assert (base.revision, base.window, base.intensities) == (2, (96, 96, 96), "fixed")
    assert store.header("base")["window"] == [96, 96, 96]
    path = store.path("abdomen")
    header = {**store.header("abdomen"), "spacing_mm": 2, "revision": 2}
    write_file(path.with_name("0002.safetensors"), header, store_module.load_file(path))
    assert store.load("abdomen").spacing_mm == (2.0, 2.0, 2.0)


def test_the_shipped_store_loads_as_before() -> None:
    shipped = ExpertStore(Path(store_module.__file__).parent / "weights" / "store")
    assert shipped.base().window == (40, 40, 40)
    assert shipped.base().intensities == "fixed"
    assert shipped.load("brain").spacing_mm == (1.5, 1.5, 1.5)


def test_settings_of_sat_come_back(store: ExpertStore, tiny_base: Base) -> None:
    weights = {name: tensor + 1 for name, tensor in tiny_base.weights.items()}
    store.publish_base(replace(tiny_base, weights=weights, window=(288, 288, 96), intensities="sat"))
    assert (store.base().window, store.base().intensities) == ((288, 288, 96), "sat")


def test_query_tables_are_kept_by_their_space(store: ExpertStore, table: QueryTable) -> None:
    other = replace(table, space="ab" * 32)
    path = store.publish_queries(other)
    assert path == store.folder / "queries" / "abababababababab.safetensors"
    assert path.stat().st_mode & 0o777 == 0o644
    assert torch.equal(store.queries(other.space).vectors, table.vectors)
    assert store.queries(table.space).space == table.space  # the package's own, which the store lacks
    longer = replace(other, names=(*other.names, "tail"), vectors=torch.cat((other.vectors, other.vectors[:1])))
    store.publish_queries(longer)
    assert "tail" in store.queries(other.space)
    before = contents(store.folder)
    with pytest.raises(ValueError, match="has a query of 'tail', which the new table lacks; extend the one there"):
        store.publish_queries(other)
    # Equal beginnings do not make equal spaces, and a space is no path.
    for space in ("ab" * 31 + "cd", "../../queries/abababababababab", "cd" * 32, ""):
        with pytest.raises(ValueError, match=r"of a base is neither that of the package's own table nor"):
            store.queries(space)
    assert contents(store.folder) == before
    assert store.departments() == ()
