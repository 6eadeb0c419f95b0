"""Tests of lorkd_monailabel.tasks.last_volume."""

import os
import threading
import weakref
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest

from lorkd_monailabel.tasks import last_volume
from lorkd_monailabel.tasks.last_volume import LastVolume
from lorkd_monailabel.volumes import Volume

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def image(name: str, value: int = 1) -> Path:
        array = np.full((4, 5, 6), value, np.int16)
        array[0] = -1000
        nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), tmp_path / name)
        return tmp_path / name

    return image


def fits() -> None:
    """Memory is enough."""


def test_the_same_image_is_read_once(write: Write) -> None:
    last, path = LastVolume(), write("ct.nii.gz")
    first = last.read(path, "auto", fits)
    assert first.array[1, 0, 0] == 1
    assert last.read(path, "auto", fits) is first


def test_another_modality_is_said_of_the_same_array(write: Write) -> None:
    last, path = LastVolume(), write("ct.nii")
    volumes = [last.read(path, modality, fits) for modality in ("mri", "auto", "ct")]
    assert [volume.modality for volume in volumes] == ["mri", "ct", "ct"]
    assert volumes[0].array is volumes[1].array is volumes[2].array


def test_a_changed_file_is_read_again(write: Write) -> None:
    last, path = LastVolume(), write("ct.nii")
    first = last.read(path, "ct", fits)
    state = path.stat()
    write("ct.nii", 7)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns + 1))  # as long, and in the same moment as clocks go
    again = last.read(path, "ct", fits)
    assert (first.array[1, 0, 0], again.array[1, 0, 0]) == (1, 7)


def test_a_folder_is_read_again_where_one_of_its_files_changed(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Path] = []
    volume = LastVolume().read(write("ct.nii"), "ct", fits)

    def read(path: Path) -> Volume:
        calls.append(path)
        return volume

    monkeypatch.setattr(last_volume, "read_volume", read)
    folder, last = tmp_path / "series", LastVolume()
    folder.mkdir()
    for name in ("1.dcm", "2.dcm"):
        (folder / name).write_bytes(b"slice")
    for _ in range(2):
        last.read(folder, "ct", fits)
    assert len(calls) == 1
    (folder / "2.dcm").write_bytes(b"other slice")
    last.read(folder, "ct", fits)
    assert len(calls) == 2


def test_a_volume_is_given_up_before_another_one_is_read(write: Write) -> None:
    last, one, other = LastVolume(), write("one.nii"), write("other.nii")
    gone = weakref.ref(last.read(one, "auto", fits))
    assert gone() is not None

    def check() -> None:
        assert gone() is None

    last.read(other, "ct", check)
    assert gone() is None


def test_a_volume_is_given_up_where_memory_is_too_little_for_what_is_asked(write: Write) -> None:
    last, path = LastVolume(), write("ct.nii")
    gone = weakref.ref(last.read(path, "auto", fits))

    def check() -> None:
        if gone() is not None:
            raise ValueError("too large")

    again = last.read(path, "auto", check)
    assert gone() is None
    assert last.read(path, "auto", fits) is again

    def never() -> None:
        raise ValueError("too large")

    with pytest.raises(ValueError, match="too large"):
        last.read(path, "ct", never)


def test_a_large_volume_is_not_kept(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(last_volume, "KEPT_BYTES", 4 * 5 * 6 * 2 - 1)
    last, path = LastVolume(), write("ct.nii")
    assert last.read(path, "ct", fits).array is not last.read(path, "ct", fits).array


def test_what_is_missing_is_said_by_the_reader(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="does not exist; check the path"):
        LastVolume().read(tmp_path / "none.nii", "ct", fits)


@pytest.fixture
def readings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of what is read, each by which thread."""
    read, names = last_volume.read_volume, []

    def told(path: Path) -> Volume:
        names.append(f"{path.name} {'here' if threading.current_thread() is threading.main_thread() else 'ahead'}")
        return read(path)

    monkeypatch.setattr(last_volume, "read_volume", told)
    return names


def test_what_is_read_ahead_is_not_read_again(write: Write, readings: list[str]) -> None:
    last, path = LastVolume(), write("ct.nii.gz")
    last.ahead(path, fits)
    assert last.read(path, "mri", fits).modality == "mri"
    assert readings == ["ct.nii.gz ahead"]


def test_one_volume_is_read_ahead_at_a_time_and_another_one_does_not_wait_for_it(
    write: Write, readings: list[str]
) -> None:
    last, one, other = LastVolume(), write("one.nii"), write("other.nii")
    begun, go_on = threading.Event(), threading.Event()

    def slow() -> None:
        begun.set()
        assert go_on.wait(10)

    last.ahead(one, slow)
    assert begun.wait(10)
    last.ahead(other, fits)
    last.read(other, "auto", fits)
    assert readings == ["other.nii here"]
    go_on.set()
    last.read(one, "auto", fits)
    assert readings == ["other.nii here", "one.nii ahead"]


def test_what_can_not_be_read_ahead_is_left_to_the_request(
    write: Write, tmp_path: Path, readings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    last, path = LastVolume(), write("ct.nii")
    damaged = tmp_path / "damaged.nii.gz"
    damaged.write_text("no image")
    last.ahead(damaged, fits)
    with pytest.raises(ValueError, match=r"damaged\.nii\.gz cannot be read as an image"):
        last.read(damaged, "auto", fits)

    def never() -> None:
        raise ValueError("too large")

    last.ahead(path, never)
    assert last.read(path, "auto", fits).array[1, 0, 0] == 1
    monkeypatch.setattr(last_volume, "KEPT_BYTES", 4 * 5 * 6 - 1)
    large = write("large.nii")
    last.ahead(large, fits)
    last.read(large, "auto", fits)
    assert readings == ["damaged.nii.gz ahead", "damaged.nii.gz here", "ct.nii here", "large.nii here"]
