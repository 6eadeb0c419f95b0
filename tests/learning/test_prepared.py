"""Tests of lorkd_monailabel.learning.prepared."""

import logging
import math
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from lorkd_monailabel.learning import prepared as prepared_module
from lorkd_monailabel.learning.cases import Case, case_of, read_cases
from lorkd_monailabel.learning.prepared import DRAFT_S, PreparedCase, prepare, sweep_drafts
from lorkd_monailabel.volumes import normalise
from tests.learning.patients import STRUCTURES, labels

WriteCase = Callable[..., dict[str, Any]]


@pytest.fixture
def case(write_case: WriteCase, tmp_path: Path) -> Case:
    return case_of(write_case(labels(), STRUCTURES), folder=tmp_path)


def test_a_case_is_cut_around_the_departments_structures(case: Case, tmp_path: Path) -> None:
    prepared = prepare(case, department="abdomen", spacing_mm=3.0, margin_mm=7.0, cache=tmp_path / "cache")
    # 7 mm are three voxels of 3 mm; the structures span 6..11, 5..7, 4..6.
    cut = (slice(3, 15), slice(2, 11), slice(1, 10))
    assert np.array_equal(prepared.labels, labels()[cut])
    image = prepared_module.read_volume(case.image, "ct").array
    np.testing.assert_allclose(prepared.image, normalise(image, "ct")[cut], atol=2e-3)
    assert (prepared.image.dtype, prepared.labels.dtype) == (np.float16, np.int16)
    assert set(prepared.centres) == {"liver", "spleen"}
    assert len(prepared.centres["liver"]) == 27
    assert len(prepared.centres["spleen"]) == 18
    for name, values in (("liver", {1}), ("spleen", {2, 3})):
        assert {int(prepared.labels[tuple(voxel)]) for voxel in prepared.centres[name]} == values
    assert (prepared.case, prepared.department) == (case, "abdomen")


def test_the_margin_ends_at_the_border(case: Case, tmp_path: Path) -> None:
    prepared = prepare(case, department="thorax", spacing_mm=3.0, margin_mm=12.0, cache=tmp_path / "cache")
    assert np.array_equal(prepared.labels, labels()[13:, 9:, 5:])


def test_a_listed_structure_without_a_voxel_is_absent(write_case: WriteCase, tmp_path: Path) -> None:
    record = write_case(labels(), {**STRUCTURES, "brain": ("brain", [9]), "stomach": ("abdomen", [8])})
    case = case_of(record, folder=tmp_path)
    prepared = prepare(case, department="abdomen", spacing_mm=3.0, margin_mm=3.0, cache=tmp_path / "cache")
    assert prepared.centres["stomach"].shape == (0, 3)


def test_many_voxels_are_thinned(write_case: WriteCase, tmp_path: Path) -> None:
    array = np.zeros((20, 20, 20), dtype=np.int16)
    array[2:18, 2:18, 2:18] = 1
    case = case_of(write_case(array, {"liver": ("abdomen", [1])}), folder=tmp_path)
    centres = prepare(case, department="abdomen", spacing_mm=3.0, margin_mm=0.0, cache=tmp_path / "c").centres["liver"]
    assert centres.shape == (prepared_module.CENTRES, 3)
    assert len(np.unique(centres, axis=0)) == prepared_module.CENTRES


def test_oblique_flipped_volumes_come_to_the_canonical_grid(write_case: WriteCase, tmp_path: Path) -> None:
    # The same labels, stored with x and y exchanged and z from superior to inferior, turned by 15 degrees.
    turn = math.radians(15)
    rotation = np.array([[math.cos(turn), -math.sin(turn), 0], [math.sin(turn), math.cos(turn), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = 3 * rotation @ np.array([[0, 1, 0], [1, 0, 0], [0, 0, -1]])
    affine[:3, 3] = [5, 6, 7]
    array = np.ascontiguousarray(labels().transpose(1, 0, 2)[:, :, ::-1])
    case = case_of(write_case(array, STRUCTURES, affine=affine), folder=tmp_path)
    prepared = prepare(case, department="abdomen", spacing_mm=3.0, margin_mm=7.0, cache=tmp_path / "cache")
    assert np.array_equal(prepared.labels, labels()[3:15, 2:11, 1:10])
    assert np.corrcoef(np.ravel(prepared.image), np.ravel(prepared.labels))[0, 1] > 0.95
    coarse = prepare(case, department="abdomen", spacing_mm=6.0, margin_mm=0.0, cache=tmp_path / "cache")
    assert max(abs(a - b / 2) for a, b in zip(coarse.labels.shape, (6, 3, 3), strict=True)) <= 1


def test_what_is_in_the_cache_is_read_from_there(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings: dict[str, Any] = {"department": "abdomen", "spacing_mm": 3.0, "margin_mm": 7.0}
    first = prepare(case, **settings, cache=tmp_path / "cache")
    entries = sorted((tmp_path / "cache").iterdir())
    assert len(entries) == 1

    def refuse(*arguments: object) -> None:
        raise AssertionError("read anew")

    with monkeypatch.context() as patch:
        patch.setattr(prepared_module, "read_volume", refuse)
        second = prepare(case, **settings, cache=tmp_path / "cache")
        for other in ({"department": "thorax"}, {"spacing_mm": 2.0}, {"margin_mm": 6.0}):
            with pytest.raises(AssertionError, match="read anew"):
                prepare(case, **{**settings, **other}, cache=tmp_path / "cache")
        with pytest.raises(AssertionError, match="read anew"):
            prepare(replace(case, structures={**case.structures, "liver": (4,)}), **settings, cache=tmp_path / "cache")
    assert np.array_equal(first.image, second.image)
    assert all(np.array_equal(first.centres[name], second.centres[name]) for name in first.centres)
    assert sorted((tmp_path / "cache").iterdir()) == entries
    case.label.touch()
    case.image.touch()
    prepare(case, **settings, cache=tmp_path / "cache")
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_image_and_label_must_agree(write_case: WriteCase, tmp_path: Path) -> None:
    record = write_case(labels(), STRUCTURES, image=np.random.default_rng(0).normal(size=(20, 16, 11)))
    case = case_of(record, folder=tmp_path)
    with pytest.raises(ValueError, match=r"has shape \(20, 16, 12\), its image \(20, 16, 11\); they must agree"):
        prepare(case, department="abdomen", spacing_mm=3.0, margin_mm=3.0, cache=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_without_a_structure_the_air_is_cut_off(write_case: WriteCase, tmp_path: Path) -> None:
    image = np.full((20, 16, 12), -1000.0)
    image[5:15, 4:12, :10] = 40.0  # a body in air
    record = write_case(labels(), {"brain": ("brain", [9])}, image=image)
    told: dict[str, Any] = {"department": "brain", "spacing_mm": 3.0, "cache": tmp_path / "cache"}
    case = case_of(record, folder=tmp_path)
    assert prepare(case, **told, margin_mm=0.0).labels.shape == (10, 8, 10)
    near = prepare(case, **told, margin_mm=(6.0, 3.0, 3.0))  # two voxels, one, one; the body begins at the lower border
    assert np.array_equal(near.labels, labels()[3:17, 3:13, :11])
    assert near.centres["brain"].shape == (0, 3)
    mri = case_of({**record, "modality": "mri"}, folder=tmp_path)
    assert prepare(mri, **told, margin_mm=0.0).labels.shape == (10, 8, 10)


SETTINGS: dict[str, Any] = {"department": "abdomen", "spacing_mm": 3.0, "margin_mm": 7.0}


def contents(case: PreparedCase) -> dict[str, bytes]:
    arrays = {"image": case.image, "labels": case.labels, **case.centres}
    return {name: np.asarray(array).tobytes() for name, array in arrays.items()}


def spoil_a_byte(entry: Path) -> None:
    data = bytearray((entry / "image.npy").read_bytes())
    data[-100] ^= 1
    (entry / "image.npy").write_bytes(data)


def cut_short(entry: Path) -> None:
    os.truncate(entry / "labels.npy", 500)


def lose_the_checksums(entry: Path) -> None:
    (entry / "entry.json").unlink()


def cut_the_checksums_short(entry: Path) -> None:
    os.truncate(entry / "entry.json", 40)


def miscount(entry: Path) -> None:
    text = (entry / "entry.json").read_text(encoding="utf-8")
    (entry / "entry.json").write_text(text.replace('"centres": [27,', '"centres": [26,'), encoding="utf-8")


def lose_an_array(entry: Path) -> None:
    (entry / "centres.npy").unlink()


@pytest.mark.parametrize(
    ("spoil", "fault"),
    [
        (spoil_a_byte, "has a damaged image.npy"),
        (cut_short, "has a damaged labels.npy"),
        (lose_the_checksums, "is incomplete"),
        (cut_the_checksums_short, "has a damaged entry.json"),
        (miscount, "has a damaged entry.json"),
        (lose_an_array, "is incomplete"),
    ],
)
def test_a_damaged_entry_is_made_anew(
    case: Case, tmp_path: Path, caplog: pytest.LogCaptureFixture, spoil: Callable[[Path], None], fault: str
) -> None:
    cache = tmp_path / "cache"
    before = contents(prepare(case, **SETTINGS, cache=cache))
    (entry,) = cache.iterdir()
    spoil(entry)
    with caplog.at_level(logging.WARNING):
        again = prepare(case, **SETTINGS, cache=cache)
        assert contents(again) == before
        assert contents(prepare(case, **SETTINGS, cache=cache)) == before
    assert [record.getMessage() for record in caplog.records] == [f"prepared case {entry} {fault}; it is made anew"]
    assert list(cache.iterdir()) == [entry]


def test_an_entry_of_another_case_is_made_anew(case: Case, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = tmp_path / "cache"
    before = contents(prepare(case, **SETTINGS, cache=cache))
    (entry,) = cache.iterdir()
    prepare(case, **{**SETTINGS, "margin_mm": 3.0}, cache=cache)
    (other,) = set(cache.iterdir()) - {entry}
    shutil.rmtree(entry)
    shutil.copytree(other, entry)
    assert contents(prepare(case, **SETTINGS, cache=cache)) == before
    assert "is of another case or format; it is made anew" in caplog.text


def test_four_at_once_make_one_entry(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    together = threading.Barrier(4, timeout=60)
    keep = prepared_module._keep

    def wait_and_keep(*arguments: Any) -> None:
        together.wait()
        keep(*arguments)

    monkeypatch.setattr(prepared_module, "_keep", wait_and_keep)
    with ThreadPoolExecutor(4) as pool:
        made = [pool.submit(prepare, case, **SETTINGS, cache=tmp_path / "cache") for _ in range(4)]
        found = [contents(each.result()) for each in made]
    assert found == [found[0]] * 4
    assert len(list((tmp_path / "cache").iterdir())) == 1


KILLED = """
import sys, time
from pathlib import Path
from lorkd_monailabel.learning import prepared
from lorkd_monailabel.learning.cases import read_cases

def stop(path):
    print("written", path.name, flush=True)
    time.sleep(60)

prepared._checksum = stop
(case,) = read_cases(sys.argv[1])
prepared.prepare(case, department="abdomen", spacing_mm=3.0, margin_mm=7.0, cache=Path(sys.argv[2]))
"""


def test_a_killed_preparation_leaves_no_entry_and_its_draft_is_swept_up(
    write_case: WriteCase, write_list: Callable[[list[Any]], Path], tmp_path: Path
) -> None:
    path, cache = write_list([write_case(labels(), STRUCTURES)]), tmp_path / "cache"
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(path), str(cache)], stdout=subprocess.PIPE, encoding="utf-8"
    )
    assert process.stdout is not None
    with process.stdout as said:
        assert said.readline() == "written image.npy\n"
        process.send_signal(signal.SIGKILL)
        process.wait()
    (draft,) = cache.iterdir()
    assert sorted(file.name for file in draft.iterdir()) == ["centres.npy", "image.npy", "labels.npy"]
    sweep_drafts(cache)
    assert draft.exists()  # it could be another process's, at work
    long_ago = time.time() - DRAFT_S - 10
    os.utime(draft, (long_ago, long_ago))
    (case,) = read_cases(path)
    prepare(case, **SETTINGS, cache=cache)
    sweep_drafts(cache)
    (entry,) = cache.iterdir()
    assert (entry / "entry.json").is_file()


def test_cases_hold_no_file_open_and_pickle_as_their_paths(case: Case, tmp_path: Path) -> None:
    def open_files() -> int:
        return len(os.listdir("/dev/fd"))

    before = open_files()
    cases = [prepare(case, **{**SETTINGS, "margin_mm": 3.0 * n}, cache=tmp_path / "cache") for n in range(4)]
    values = [int(each.labels[0, 0, 0]) for each in cases]
    assert open_files() == before
    sent = pickle.dumps(cases[3])
    assert all(array not in sent for array in contents(cases[3]).values())
    received = pickle.loads(sent)
    assert contents(received) == contents(cases[3])
    assert int(received.labels[0, 0, 0]) == values[3]


def test_labels_that_16_bits_can_not_hold_are_refused(write_case: WriteCase, tmp_path: Path) -> None:
    record = write_case(labels(), STRUCTURES)
    large = nibabel.Nifti1Image(np.where(labels() == 1, 65537, 0).astype(np.int32), np.diag([3.0, 3, 3, 1]))
    nibabel.save(large, tmp_path / record["label"])
    with pytest.raises(ValueError, match=r"holds the value 65537, labels go to 32767; number them anew"):
        prepare(case_of(record, folder=tmp_path), **SETTINGS, cache=tmp_path / "cache")
