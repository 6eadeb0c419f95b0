"""Tests of lorkd_monailabel.teachers.masks."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from lorkd_monailabel.teachers.masks import StoredMasks, TeacherMasks, read_masks, teacher_masks
from lorkd_monailabel.volumes import Grid, canonical_grid

AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])
GRID = Grid((8, 6, 4), AFFINE)
ALL = (slice(None),) * 3


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def write(name: str, array: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(array, affine), path)
        return path

    return write


Write = Callable[..., Path]


def labels() -> np.ndarray:
    array = np.zeros((8, 6, 4), dtype=np.int16)
    array[:3], array[5:, 2:], array[4, 0] = 1, 2, 3
    return array


def test_one_label_volume_and_a_folder_say_the_same(write: Write, tmp_path: Path) -> None:
    path = write("all.nii.gz", labels())
    for name, values in {"liver": [1], "kidney_left": [2, 3], "Spleen": [9], "face": [1]}.items():
        write(f"folder/{name}.nii.gz", np.isin(labels(), values).astype(np.uint8))
    (tmp_path / "folder/notes.txt").write_text("no mask")
    values = {"liver": [1], "left kidney": [2, 3], "spleen": [9]}
    told = {"path": path.name, "values": values}, {"folder": "folder"}
    found = []
    for record in told:
        masks = teacher_masks(record, folder=tmp_path, known=["liver"])
        files = masks.files(["liver"])
        assert set(files) == set(values)
        for spacing in (2.0, (4.0, 2.0, 3.0)):
            found.append(read_masks(masks, files, source=GRID, target=canonical_grid(GRID, spacing)))
    for one, other in zip(found[:2], found[2:], strict=True):
        assert all(np.array_equal(one[name], other[name]) and one[name].dtype == bool for name in values)
    assert np.array_equal(found[0]["left kidney"], labels() > 1)
    assert not found[0]["spleen"].any()
    assert found[1]["liver"].shape == (4, 6, 3)


def test_soft_masks_are_interpolated_and_hard_ones_are_not(write: Write, tmp_path: Path) -> None:
    ramp = np.broadcast_to(np.linspace(0, 1, 8)[:, None, None], (8, 6, 4)).astype(np.float32)
    write("folder/liver.nii.gz", ramp)
    write("folder/spleen.nii.gz", (ramp > 0.5).astype(np.float32))
    masks = TeacherMasks(tmp_path / "folder", None)
    found = read_masks(masks, masks.files([]), source=GRID, target=canonical_grid(GRID, 4.0))
    assert (found["liver"].dtype, found["spleen"].dtype) == (np.float16, bool)
    # a new voxel lies in the middle of two old ones
    np.testing.assert_allclose(found["liver"][:, 0, 0], (np.arange(4) * 2 + 0.5) / 7, atol=1e-3)
    assert found["spleen"][:, 0, 0].tolist() == [False, False, True, True]


def test_stored_masks_come_back(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    hard = {f"s{number}": rng.random((5, 4, 3)) > 0.5 for number in range(11)}
    stored = StoredMasks.of(hard)
    assert (stored.hard, stored.array.shape) == (True, (2, 5, 4, 3))
    np.save(tmp_path / "a.npy", stored.array)
    mapped = StoredMasks(stored.names, np.load(tmp_path / "a.npy", mmap_mode="r"))
    cut = (slice(1, 4), slice(0, 2), slice(2, 3))
    for name, mask in hard.items():
        assert np.array_equal(mapped.part(name, cut), mask[cut].astype(np.float32))
    soft = StoredMasks.of({**hard, "soft": rng.random((5, 4, 3)).astype(np.float16)})
    assert not soft.hard
    assert np.array_equal(soft.part("s3", cut), hard["s3"][cut].astype(np.float32))


@pytest.mark.parametrize(
    "record",
    [
        "preds/",
        {},
        {"path": "a.nii.gz"},
        {"folder": 3},
        {"folder": "a", "path": "b"},
        {"path": "a.nii.gz", "values": ["liver"]},
        {"path": "a.nii.gz", "values": {"liver": 5}},
        {"path": "a.nii.gz", "values": {"liver": []}},
        {"path": "a.nii.gz", "values": {"liver": [1.5]}},
        {"path": "a.nii.gz", "values": {"soup": [1]}},
        {"path": "a.nii.gz", "values": {"kidney_left": [1], "left kidney": [2]}},
    ],
)
def test_what_a_line_must_not_say(record: Any) -> None:
    with pytest.raises(ValueError, match=r"has another form|no structure of the case|must be a list of whole numbers"):
        teacher_masks(record, folder=Path(), known=[])


def test_masks_that_do_not_fit_are_named(write: Write, tmp_path: Path) -> None:
    moved = AFFINE.copy()
    moved[0, 3] = 5
    small = np.zeros((8, 6, 3), dtype=np.float32)
    for name, array, affine, sentence in (
        ("small", small, AFFINE, r"has shape \(8, 6, 3\), the image \(8, 6, 4\)"),
        ("moved", labels() * 0.1, moved, "lies elsewhere in space than the image"),
        ("large", labels() * 85.0, AFFINE, r"values from 0 to 255, a mask holds 0\.\.1"),
        ("below", labels() * -0.1, AFFINE, r"holds values from -0\.3 to -?0, a mask"),
        ("nan", np.where(labels() > 1, np.nan, 0.5), AFFINE, "holds values from nan to nan"),
    ):
        file = write(f"{name}/liver.nii.gz", array.astype(np.float32), affine)
        masks = TeacherMasks(tmp_path / name, None)
        with pytest.raises(ValueError, match=sentence) as caught:
            read_masks(masks, masks.files([]), source=GRID, target=GRID)
        assert str(caught.value).startswith(str(file))
    file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(ValueError, match=r"liver\.nii\.gz cannot be read as an image"):
        read_masks(masks, masks.files([]), source=GRID, target=GRID)
    volume = TeacherMasks(write("volume.nii.gz", small.astype(np.int16)), {"liver": (1,)})
    with pytest.raises(ValueError, match=r"volume\.nii\.gz has shape"):
        read_masks(volume, volume.files([]), source=GRID, target=GRID)
    write("small/Liver.nii.gz", small)
    with pytest.raises(ValueError, match="are both the teacher's liver; remove one"):
        TeacherMasks(tmp_path / "small", None).files([])
    (tmp_path / "empty").mkdir()
    for path, values, sentence in (
        ("none", None, "folder .*none is not there"),
        ("none.nii.gz", {"liver": (1,)}, r"masks .*none\.nii\.gz are not there"),
        ("empty", None, "has no file named as a structure"),
    ):
        with pytest.raises(ValueError, match=sentence):
            TeacherMasks(tmp_path / path, values).files([])
