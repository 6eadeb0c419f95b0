"""Tests of lorkd_monailabel.learning.checkpoint."""

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from lorkd_monailabel.learning.checkpoint import load_checkpoint, save_checkpoint


def state() -> dict[str, Any]:
    weight = torch.nn.Parameter(torch.arange(6.0).reshape(2, 3))
    optimizer = torch.optim.AdamW([weight], lr=0.1)
    weight.sum().backward()
    optimizer.step()
    return {"step": 3, "trained": {"w": weight.detach()}, "optimizer": optimizer.state_dict()}


def test_a_state_comes_back_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "run" / "joint.pt"
    saved = state()
    save_checkpoint(saved, path)
    loaded = load_checkpoint(path)
    assert loaded is not None
    assert loaded["step"] == 3
    assert torch.equal(loaded["trained"]["w"], saved["trained"]["w"])
    momentum = loaded["optimizer"]["state"][0]["exp_avg"]
    assert torch.equal(momentum, saved["optimizer"]["state"][0]["exp_avg"])
    assert [entry.name for entry in path.parent.iterdir()] == ["joint.pt"]


def test_nothing_is_there_before_the_first(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path / "joint.pt") is None


@pytest.mark.parametrize("failing", ["save", "fsync", "replace"])
def test_a_failing_write_keeps_the_state_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    path = tmp_path / "joint.pt"
    save_checkpoint({"step": 1}, path)

    def fail(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(torch if failing == "save" else os, failing, fail)
        with pytest.raises(OSError, match="No space left"):
            save_checkpoint({"step": 2}, path)
    assert load_checkpoint(path) == {"step": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["joint.pt"]


def test_damage_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "joint.pt"
    save_checkpoint(state(), path)
    data = path.read_bytes()
    damaged = [
        *(data[:length] for length in (0, 1, 10, 100, len(data) // 2, len(data) - 10)),
        b"\x00" * 100,
        b"not a checkpoint",
        b"\x80\x02}q\x00.",
        *(bytes([value]) * 64 for value in range(0, 256, 5)),
        data.replace(b"trained", b"\xff\xff\xff\xff\xff\xff\xff"),
    ]
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"joint\.pt can't be read \(") as caught:
            load_checkpoint(path)
        assert str(caught.value).endswith("remove it to start this run anew")


def test_nothing_in_a_checkpoint_is_executed(tmp_path: Path) -> None:
    class Attack:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "attacked"),)

    path = tmp_path / "joint.pt"
    torch.save({"step": Attack()}, path)
    with pytest.raises(ValueError, match="can't be read"):
        load_checkpoint(path)
    path.write_bytes(pickle.dumps(Attack()))
    with pytest.raises(ValueError, match="can't be read"):
        load_checkpoint(path)
    assert not (tmp_path / "attacked").exists()


def test_what_is_no_state_is_no_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "joint.pt"
    for content in ([1, 2], torch.zeros(3), 7):
        torch.save(content, path)
        with pytest.raises(ValueError, match="can't be read"):
            load_checkpoint(path)
