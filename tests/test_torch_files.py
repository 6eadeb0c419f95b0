"""Tests of lorkd_monailabel.torch_files."""

import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch

from lorkd_monailabel import torch_files
from lorkd_monailabel.torch_files import checked_tensors, read_checkpoint


class Command:
    """Runs a command when it is unpickled by who trusts it."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def test_gives_what_was_saved(tmp_path):
    path = tmp_path / "file.pth"
    torch.save({"step": 3, "model_state_dict": {"a": torch.arange(6.0).reshape(2, 3)}}, path)
    content = read_checkpoint(path)
    assert content["step"] == 3
    assert content["model_state_dict"]["a"].tolist() == [[0, 1, 2], [3, 4, 5]]


def test_code_is_named_and_not_run(tmp_path):
    path, mark = tmp_path / "file.pth", tmp_path / "mark"
    torch.save({"model_state_dict": {"a": torch.zeros(3)}, "more": Command(mark)}, path)
    with pytest.raises(ValueError, match=r"file.pth asks to run \w+\.mkdir; nothing of it was run") as caught:
        read_checkpoint(path)
    assert "\n" not in str(caught.value)
    with zipfile.ZipFile(path, "w") as archive:  # as torch's files, but the index is a plain pickle with code
        archive.writestr("file/data.pkl", pickle.dumps(Command(mark)))
        archive.writestr("file/version", "3\n")
    with pytest.raises(ValueError, match=r"asks to run|can't be read"):
        read_checkpoint(path)
    path.write_bytes(pickle.dumps(Command(mark)))
    with pytest.raises(ValueError, match=r"is no checkpoint of torch 1.6 or newer"):
        read_checkpoint(path)
    assert not mark.exists()


def test_refuses_what_is_no_checkpoint(tmp_path):
    path = tmp_path / "file.pth"
    with pytest.raises(ValueError, match=r"file.pth can't be read \(No such file or directory\); check the path"):
        read_checkpoint(path)
    with pytest.raises(ValueError, match="is a folder; name the checkpoint in it"):
        read_checkpoint(tmp_path)
    torch.save({"a": torch.zeros(1000)}, path)
    whole = path.read_bytes()
    for length in (0, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=rf"or not all of it is there \({length:,} bytes\)"):
            read_checkpoint(path)
    torch.save([torch.zeros(3)], path)
    with pytest.raises(ValueError, match="holds a list, a checkpoint holds a dictionary"):
        read_checkpoint(path)
    torch.save({"a": torch.zeros(3)}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(ValueError, match=r"is no checkpoint of torch 1.6 or newer"):
        read_checkpoint(path)


def test_refuses_a_file_that_would_grow(tmp_path, monkeypatch):
    path, packed = tmp_path / "file.pth", tmp_path / "packed.pth"
    torch.save({"a": torch.zeros(100_000)}, path)
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target:
        for entry in source.infolist():
            target.writestr(entry.filename, source.read(entry))
    assert packed.stat().st_size < 10_000
    with pytest.raises(ValueError, match=r"in .*packed.pth is packed, which torch never does"):
        read_checkpoint(packed)
    monkeypatch.setattr(torch_files, "PICKLE_LIMIT_BYTES", 50)
    with pytest.raises(ValueError, match="or has an index too large"):
        read_checkpoint(path)


def test_refuses_an_archive_whose_entries_share_bytes(tmp_path):
    path = tmp_path / "file.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("file/data/0", bytes(5000))
        entry = archive.getinfo("file/data/0")
        for number in range(1, 50):  # all of them the same bytes in the file
            twin = zipfile.ZipInfo(f"file/data/{number}")
            twin.header_offset, twin.CRC = entry.header_offset, entry.CRC
            twin.file_size = twin.compress_size = 5000
            archive.filelist.append(twin)
    with pytest.raises(ValueError, match="larger than it is"):
        read_checkpoint(path)


def test_checked_tensors_are_those_and_no_others(tmp_path):
    path = tmp_path / "x.pth"
    path.write_bytes(bytes(12))
    found = {"b": torch.ones(2).half(), "a": torch.zeros(1, 2)}  # of 4 and 8 bytes
    taken = checked_tensors(found, {"a": (1, 2), "b": [2]}, path, what="thing")
    assert list(taken) == ["a", "b"]
    assert all(tensor is found[name] for name, tensor in taken.items())
    for shapes, message in (
        ({"a": (1, 2), "c": (1,)}, "x.pth is no thing: it lacks c"),
        ({"a": (2, 1), "b": (2,)}, r"a has shape \(1, 2\), not \(2, 1\)"),
        ({"a": (1, 2)}, r"it has 'b' \(2,\), which does not belong there"),
    ):
        with pytest.raises(ValueError, match=message):
            checked_tensors(found, shapes, path, what="thing")
    for tensor in (torch.eye(2).to_sparse(), torch.eye(2, dtype=torch.int32), torch.eye(2, dtype=torch.complex64)):
        with pytest.raises(ValueError, match=r"a is not made of plain floating-point numbers"):
            checked_tensors({"a": tensor}, {"a": (2, 2)}, path, what="thing")
    path.write_bytes(bytes(11))
    with pytest.raises(ValueError, match="b claims more numbers than the file holds"):
        checked_tensors(found, {"a": (1, 2), "b": [2]}, path, what="thing")
