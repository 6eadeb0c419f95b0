"""What tests of the lists of cases share: a tiny CT with its labels, and files of it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from lorkd_monailabel.case_lists.check import check
from lorkd_monailabel.case_lists.found import Found
from lorkd_monailabel.case_lists.lines import Finding
from lorkd_monailabel.case_lists.naming import Choices
from lorkd_monailabel.case_lists.records import Settings, convert
from lorkd_monailabel.learning.cases import Case, read_cases

AFFINE = np.diag([3.0, 3.0, 3.0, 1.0])  # the first axis runs to the right

STRUCTURES = {
    "left kidney": {"values": [1], "department": "abdomen"},
    "right kidney": {"values": [2], "department": "abdomen"},
    "liver": {"values": [2, 3], "department": "abdomen"},  # overlaps the right kidney, as it may
}
CASES = 6

WriteVolume = Callable[..., Path]
Listed = Callable[..., list[Case]]


class List:
    """A clean list on the disk, whose third line a test may spoil."""

    def __init__(self, folder: Path, labels: np.ndarray) -> None:
        self.folder = folder
        self.labels = labels
        self.records: list[dict[str, Any]] = []
        for number in range(1, CASES + 1):
            self.records.append(
                {
                    "image": f"{number}_image.nii.gz",
                    "label": f"{number}_label.nii.gz",
                    "modality": "ct",
                    "source": "hospital",
                    "subject": str(number),
                    "split": "train" if number < 5 else "validation",
                    "structures": json.loads(json.dumps(STRUCTURES)),
                }
            )
            self.image(self.noise(number), number=number)
            self.label(labels, number=number)

    @property
    def record(self) -> dict[str, Any]:
        return self.records[2]

    def noise(self, seed: int) -> np.ndarray:
        """Hounsfield units."""
        return np.random.default_rng(seed).normal(0, 300, self.labels.shape).astype(np.float32)

    def image(self, array: np.ndarray, affine: np.ndarray = AFFINE, *, number: int = 3) -> None:
        nibabel.save(nibabel.Nifti1Image(array, affine), self.folder / f"{number}_image.nii.gz")

    def label(self, array: np.ndarray, affine: np.ndarray = AFFINE, *, number: int = 3) -> None:
        nibabel.save(nibabel.Nifti1Image(array, affine), self.folder / f"{number}_label.nii.gz")

    def both(self, affine: np.ndarray) -> None:
        self.image(self.noise(3), affine)
        self.label(self.labels, affine)

    def findings(self) -> list[Finding]:
        path = self.folder / "cases.jsonl"
        path.write_text("\n".join(map(json.dumps, self.records)) + "\n", encoding="utf-8")
        return check(path, workers=2)[1]


@pytest.fixture
def write_volume(tmp_path: Path) -> WriteVolume:
    """Write an array below the temporary folder, folders included."""

    def write(name: str, array: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(array, affine), path)
        return path

    return write


@pytest.fixture
def write_json(tmp_path: Path) -> Callable[[str, Any], Path]:
    """Write JSON below the temporary folder, folders included."""

    def write(name: str, content: Any) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content), encoding="utf-8")
        return path

    return write


@pytest.fixture
def ct() -> np.ndarray:
    """Hounsfield units, 8 x 6 x 5."""
    return np.random.default_rng(0).normal(0, 300, (8, 6, 5)).astype(np.float32)


@pytest.fixture
def labels() -> np.ndarray:
    """Left kidney 1, right kidney 2, liver 3; 8 x 6 x 5."""
    array = np.zeros((8, 6, 5), dtype=np.uint8)
    array[1:3, 1:3, 1:3] = 1
    array[5:7, 1:3, 1:3] = 2
    array[4:7, 4:6, 1:4] = 3
    return array


@pytest.fixture
def listed(tmp_path: Path) -> Listed:
    """Convert what was found to a list of cases, and read the list as a training does."""

    def read(found: list[Found], *, mapped: dict[str, tuple[str, ...]] | None = None, **changed: Any) -> list[Case]:
        settings = Settings(**{"choices": Choices(mapped or {}), **changed})
        convert(found, settings, tmp_path / "cases.jsonl", volumes=tmp_path / "volumes")
        return read_cases(tmp_path / "cases.jsonl")

    return read


@pytest.fixture
def cases(tmp_path: Path, labels: np.ndarray) -> List:
    return List(tmp_path, labels)
