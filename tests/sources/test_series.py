"""DICOM series in folders: which there are, and the volume file of each."""

import os
import shutil

import numpy as np
import pytest

from lorkd_monailabel.sources.series import SeriesIndex, converted, is_uid
from lorkd_monailabel.volumes import read_volume

ONE, TWO, THREE = "1.2.3.10", "1.2.3.11", "1.2.3.12"


def folder_of(root, uid):
    SeriesIndex(root).update()
    return root / ".series" / uid


def test_series_mixed_in_one_folder_and_split_over_two(tmp_path, make_series):
    first = make_series(tmp_path / "Doe^Jane" / "CT", uid=ONE)
    second = make_series(tmp_path / "Doe^Jane" / "CT", uid=TWO, modality="MR")
    (tmp_path / "Doe^Jane" / "CT" / "notes.txt").write_text("not DICOM")
    (tmp_path / "more").mkdir()
    for file in sorted((tmp_path / "Doe^Jane" / "CT").glob(f"{ONE}_*"))[:3]:
        shutil.move(file, tmp_path / "more")
    shutil.copy(next((tmp_path / "more").iterdir()), tmp_path / "more" / "the same again")
    found = SeriesIndex(tmp_path).update()
    assert {uid: (each.modality, len(each.files)) for uid, each in found.items()} == {ONE: ("CT", 6), TWO: ("MR", 6)}
    for uid, values, modality in ((ONE, first, "ct"), (TWO, second, "mri")):
        volume = read_volume(converted(tmp_path / ".series" / uid))
        np.testing.assert_array_equal(volume.array, values)
        assert volume.modality == modality


def test_volume_file_lies_as_the_series_does(tmp_path, make_series, series_affine):
    values = make_series(tmp_path / "a", uid=ONE)
    volume = read_volume(converted(folder_of(tmp_path, ONE)))
    np.testing.assert_array_equal(volume.array, values)
    np.testing.assert_allclose(volume.grid.affine, series_affine(), atol=1e-4)


def test_every_slice_has_its_own_slope(tmp_path, make_series):
    values = make_series(tmp_path / "a", uid=ONE, modality="MR", slopes=(1.0, 0.5, 2.25))
    np.testing.assert_allclose(read_volume(converted(folder_of(tmp_path, ONE))).array, values)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"missing": (2,)}, "are 2.50 to 5.00 mm apart"),
        ({"shear_mm": 0.5}, r"are sheared by 11\.3 degrees \(gantry tilt\)"),
    ],
)
def test_refused_in_a_sentence_that_names_the_series_alone(tmp_path, make_series, wrong, message):
    make_series(tmp_path / "Doe^Jane", uid=ONE, **wrong)
    folder = folder_of(tmp_path, ONE)
    with pytest.raises(ValueError, match=message) as caught:
        converted(folder)
    assert f"series {ONE}" in str(caught.value)
    assert str(tmp_path) not in str(caught.value)
    assert "Doe" not in str(caught.value)


def test_scouts_single_images_and_hidden_folders_are_no_images(tmp_path, make_series):
    make_series(tmp_path / "scout", uid=ONE, image_type="DERIVED")
    make_series(tmp_path / "single", uid=TWO, shape=(5, 4, 1))
    make_series(tmp_path / ".hidden", uid=THREE)
    make_series(tmp_path / "labels" / "final", uid="1.2.3.13")
    (tmp_path / "cut").write_bytes(bytes(128) + b"DICM" + b"garbage")
    assert SeriesIndex(tmp_path).update() == {}
    assert not (tmp_path / ".series").exists()


def test_index_is_kept_and_read_again_only_where_something_changed(tmp_path, make_series, monkeypatch):
    make_series(tmp_path / "a", uid=ONE)
    make_series(tmp_path / "b", uid=TWO)
    os.utime(tmp_path / "a", (0, 0))
    SeriesIndex(tmp_path).update()
    from lorkd_monailabel.sources import series

    read, real = [], series._read_slice
    monkeypatch.setattr(series, "_read_slice", lambda path: (read.append(path.parent.name), real(path))[1])
    make_series(tmp_path / "b", uid=THREE)
    index = SeriesIndex(tmp_path)
    assert set(index.update()) == {ONE, TWO, THREE}
    assert "b" in read
    assert "a" not in read
    (tmp_path / ".series" / "index.json").write_text("{")
    assert set(SeriesIndex(tmp_path).update()) == {ONE, TWO, THREE}


def test_file_that_came_while_its_folder_was_read_is_not_lost(tmp_path, make_series):
    make_series(tmp_path / "a", uid=ONE, missing=(5,))
    late = tmp_path / "a" / "late.dcm"
    late.touch()  # it is there, but nothing in it yet
    index = SeriesIndex(tmp_path)
    assert len(index.update()[ONE].files) == 5
    make_series(tmp_path / "whole", uid=ONE)
    late.write_bytes((tmp_path / "whole" / sorted(os.listdir(tmp_path / "whole"))[0]).read_bytes())
    shutil.rmtree(tmp_path / "whole")
    assert len(SeriesIndex(tmp_path).update()[ONE].files) == len(index.update()[ONE].files) == 6


def test_series_that_grows_or_goes(tmp_path, make_series):
    values = make_series(tmp_path / "a", uid=ONE, missing=(5,))
    index = SeriesIndex(tmp_path)
    index.update()
    folder = tmp_path / ".series" / ONE
    assert read_volume(converted(folder)).array.shape == (11, 9, 5)
    make_series(tmp_path / "a", uid=ONE)
    index.update()
    np.testing.assert_array_equal(read_volume(converted(folder)).array, values)
    shutil.rmtree(tmp_path / "a")
    assert index.update() == {}
    assert [name for name in os.listdir(tmp_path / ".series") if name.startswith(ONE)] == []


def test_volume_is_made_once(tmp_path, make_series):
    make_series(tmp_path / "a", uid=ONE)
    folder = folder_of(tmp_path, ONE)
    made = converted(folder).stat().st_mtime_ns
    assert converted(folder).stat().st_mtime_ns == made


@pytest.mark.parametrize("text", ["1.2.3", "1.2.826.0.1.3680043.8.498.1"])
def test_uid(text):
    assert is_uid(text)


@pytest.mark.parametrize("text", ["", "..", "1", "1..2", "../1.2", "1.2/3", "1.2.3\n", "a.b", "1." * 40 + "1"])
def test_no_uid(text):
    assert not is_uid(text)
