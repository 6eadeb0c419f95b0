"""Tests of train.data."""

import os
import pickle
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lorkd_monailabel.learning.prepared import DRAFT, DRAFT_S
from train.data import _Preparations, prepared_cases, samples_of
from train.settings import DataConfig


@pytest.fixture
def data(
    write_case: Callable[..., dict[str, Any]], write_list: Callable[[list[Any]], Path], tmp_path: Path
) -> DataConfig:
    """Five cases of two departments and two sources; settings that differ from all defaults."""
    labels = np.zeros((14, 12, 12), dtype=np.int16)
    labels[2:5, 2:8, 3:6], labels[6:9, 4:8, 3:8] = 1, 2
    lines = [
        write_case(
            np.roll(labels, number, axis=1),
            {"liver": ("abdomen", [1]), "heart": ("thorax", [2])},
            name=f"patient{number}",
            source="small" if number == 4 else "large",
        )
        for number in range(5)
    ]
    return DataConfig(
        cases=str(write_list(lines)),
        splits=[],
        weights={"thorax": 3.0},
        source_weights={"large": 0.5},
        patch=8,
        foreground=0.5,
        negatives=0.25,
        variations=["gamma"],
        cache=str(tmp_path / "cache"),
    )


def told(prepared: dict[str, Any]) -> list[tuple[str, str, bytes]]:
    return [
        (department, each.case.subject, np.asarray(each.labels).tobytes())
        for department, own in prepared.items()
        for each in own
    ]


def test_what_is_kept_of_the_body_is_half_a_patch_or_the_margin(data: DataConfig) -> None:
    # the liver is 3 x 6 x 3 voxels of 3 mm at the border of 14 x 12 x 12, the spacing of the grid 3 mm, the patch 8
    narrow, wide = (
        prepared_cases(replace(data, margin_mm=margin_mm), ["abdomen"])["abdomen"][0].image.shape
        for margin_mm in (0.0, 15.0)
    )
    assert narrow == (2 + 3 + 4, 2 + 6 + 4, 3 + 3 + 4)
    assert wide == (2 + 3 + 5, 12, 3 + 3 + 5)


def test_cases_are_prepared_side_by_side(data: DataConfig, tmp_path: Path) -> None:
    torch.manual_seed(5)
    several = prepared_cases(replace(data, workers=2))
    drawn = torch.rand(1)
    alone = prepared_cases(replace(data, workers=0, cache=str(tmp_path / "other")))
    torch.manual_seed(5)
    assert torch.equal(torch.rand(1), drawn)  # the loader's seed is not one of the run's numbers
    assert told(several) == told(alone)
    assert [subject for _, subject, _ in told(several)] == [f"patient{number}" for number in range(5)] * 2
    assert list(several) == ["abdomen", "thorax"]
    assert len(list((tmp_path / "cache").iterdir())) == len(list((tmp_path / "other").iterdir())) == 10


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_of_a_case_is_the_sentence_that_it_is(data: DataConfig, tmp_path: Path, workers: int) -> None:
    (tmp_path / "patient2_label.nii.gz").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"^\S+patient2_label\.nii\.gz cannot be read as an image .*check that it is"):
        prepared_cases(replace(data, workers=workers))


def test_what_is_prepared_elsewhere_travels_as_paths(data: DataConfig) -> None:
    prepared = prepared_cases(replace(data, workers=0))
    samples = samples_of(data, prepared, stride=4, seed=3)
    received = pickle.loads(pickle.dumps(samples))  # as processes that are spawned receive it
    for index in range(4):
        assert torch.equal(received[index].image, samples[index].image)
    wanted = pickle.loads(pickle.dumps(_Preparations([lambda_free])))
    assert str(wanted[0]) == "as it is"


def lambda_free() -> Any:
    raise ValueError("as it is")


def test_old_drafts_are_swept_up(data: DataConfig, tmp_path: Path) -> None:
    draft = tmp_path / "cache" / f"{DRAFT}of a killed run"
    draft.mkdir(parents=True)
    long_ago = time.time() - DRAFT_S - 10
    os.utime(draft, (long_ago, long_ago))
    prepared_cases(replace(data, workers=0))
    assert not draft.exists()


def test_the_stream_is_as_the_config_says(data: DataConfig) -> None:
    samples = samples_of(data, prepared_cases(replace(data, workers=0)), stride=4, seed=3)
    assert samples.weights == {"abdomen": 1.0, "thorax": 3.0}
    assert (samples.foreground, samples.negatives, samples.patch) == (0.5, 0.25, (8, 8, 8))
    # roots of four and one, the four at half weight: as often as the fifth
    assert samples._chances["abdomen"] == pytest.approx([0.125, 0.25, 0.375, 0.5, 1.0])
    kinds = [type(each).__name__ for each in samples.augmentation._intensities]
    assert "RandAdjustContrast" in kinds
    assert samples_of(replace(data, augment=False), samples.cases, stride=4, seed=3).augmentation is None
