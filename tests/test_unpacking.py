"""Tests of lorkd_monailabel.unpacking: a .nii.gz that all cores unpack is read as one core reads it."""

import gzip
from collections.abc import Callable, Iterator
from pathlib import Path

import nibabel
import numpy as np
import pytest
import rapidgzip
import torch

from lorkd_monailabel import unpacking
from lorkd_monailabel.volumes import read_volume


@pytest.fixture
def two_cores() -> Iterator[None]:
    """Torch may use two, whatever the machine has."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch, two_cores: None) -> list[int]:
    """Any file is much to unpack; the cores of each that rapidgzip was asked for."""
    asked: list[int] = []
    known = rapidgzip.open

    def noted(path: str, *, parallelization: int) -> rapidgzip.RapidgzipFile:
        asked.append(parallelization)
        return known(path, parallelization=parallelization)

    monkeypatch.setattr(unpacking, "_MUCH_BYTES", 0)
    monkeypatch.setattr(rapidgzip, "open", noted)
    return asked


def image(path: Path, shape: tuple[int, int, int] = (64, 60, 50)) -> bytes:
    """Write an image that packs to about a third of a megabyte, and give its bytes."""
    array = np.random.default_rng(0).integers(-1000, 1000, shape).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(array, np.diag([1.0, 2.0, 3.0, 1.0])), path)
    return path.read_bytes()


def outcome(path: Path) -> np.ndarray | str:
    try:
        return read_volume(path).array
    except ValueError as error:
        return str(error)


@pytest.mark.parametrize(
    "damage",
    [
        lambda packed: packed,
        lambda packed: packed + bytes(512),  # as tapes leave it behind; rapidgzip alone would refuse it
        lambda packed: packed[: len(packed) // 2],
        lambda packed: packed[:-20],
        lambda packed: packed[:-6],
        lambda packed: packed[:-6] + bytes([packed[-6] ^ 1]) + packed[-5:],  # the checksum
        lambda packed: packed[:200_000] + bytes([packed[200_000] ^ 16]) + packed[200_001:],
    ],
    ids=["whole", "zeros behind", "half", "without its end", "without its length", "other checksum", "other bit"],
)
def test_all_cores_find_what_one_core_finds(
    tmp_path: Path, opened: list[int], damage: Callable[[bytes], bytes]
) -> None:
    path = tmp_path / "image.nii.gz"
    path.write_bytes(damage(image(path)))
    found = outcome(path)
    assert opened == [2]
    torch.set_num_threads(1)
    expected = outcome(path)
    assert opened == [2]  # one core is left to ISA-L
    assert type(found) is type(expected)
    np.testing.assert_array_equal(found, expected)


def test_what_all_cores_unpack_is_in_the_files_order_and_can_be_written_to(tmp_path: Path, opened: list[int]) -> None:
    image(tmp_path / "image.nii.gz")
    array = read_volume(tmp_path / "image.nii.gz").array
    assert opened == [2]
    assert array.dtype == np.int16
    assert array.flags.f_contiguous
    assert array.flags.writeable


def test_a_small_file_is_not_worth_two_cores(
    tmp_path: Path, opened: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = image(tmp_path / "image.nii.gz")
    monkeypatch.setattr(unpacking, "_MUCH_BYTES", len(packed) + 1)
    assert read_volume(tmp_path / "image.nii.gz").array.shape == (64, 60, 50)
    assert opened == []


def test_what_holds_more_than_its_image_is_not_unpacked_ahead(tmp_path: Path, opened: list[int]) -> None:
    image(tmp_path / "small.nii", (8, 8, 8))
    behind = np.random.default_rng(0).bytes(300_000)
    (tmp_path / "image.nii.gz").write_bytes(gzip.compress((tmp_path / "small.nii").read_bytes() + behind))
    assert read_volume(tmp_path / "image.nii.gz").array.shape == (8, 8, 8)
    assert opened == []
