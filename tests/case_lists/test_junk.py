"""Whatever stands in a JSON file: converters and check answer with a list, or with an error that says why not."""

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lorkd_monailabel.case_lists.check import check
from lorkd_monailabel.case_lists.datastore import datastore
from lorkd_monailabel.case_lists.decathlon import decathlon
from lorkd_monailabel.case_lists.nnunet import nnunet
from lorkd_monailabel.case_lists.records import Settings, convert
from lorkd_monailabel.case_lists.sat_ds import sat_ds

JUNK = (None, 5, [], {"a": 1}, "x", [None])

Convert = Callable[[Path], Any]
LAYOUTS: dict[str, tuple[Convert, str, Any]] = {
    "decathlon": (
        decathlon,
        "dataset.json",
        {
            "modality": {"0": "CT"},
            "labels": {"0": "background", "3": "liver"},
            "training": [{"image": "image.nii.gz", "label": "label.nii.gz"}],
        },
    ),
    "nnunet": (
        nnunet,
        "dataset.json",
        {
            "channel_names": {"0": "CT"},
            "labels": {"background": 0, "liver": [3]},
            "file_ending": ".nii.gz",
            "dataset": {"one": {"images": ["image.nii.gz"], "label": "label.nii.gz"}},
        },
    ),
    "sat-ds": (
        lambda folder: sat_ds(folder / "lines.jsonl"),
        "lines.jsonl",
        {
            "label": ["liver", "spleen"],
            "modality": "CT",
            "dataset": "set",
            "patient_id": "one",
            "renorm_image": "image.npy",
            "renorm_segmentation_dir": ".",
            "renorm_y1x1z1_y2x2z2": [[1, 1, 1, 3, 3, 3], False],
        },
    ),
    "monailabel": (
        datastore,
        "datastore_v2.json",
        {
            "images_dir": ".",
            "labels_dir": ".",
            "objects": {
                "image": {
                    "image": {"ext": ".nii.gz", "info": {}},
                    "labels": {
                        "final": {"ext": ".nii.gz", "info": {"label_info": [{"name": "liver", "idx": 3}]}},
                        "original": {"ext": ".nii.gz", "info": {"params": {"label_names": {"liver": 3}}}},
                    },
                }
            },
        },
    ),
    "check": (
        lambda folder: check(folder / "cases.jsonl"),
        "cases.jsonl",
        {
            "image": "image.nii.gz",
            "label": "label.nii.gz",
            "modality": "ct",
            "source": "set",
            "subject": "one",
            "split": "train",
            "structures": {"liver": {"values": [3], "department": "abdomen"}},
        },
    ),
}


def spoiled(content: Any) -> Iterator[Any]:
    """Yield the content with each of its parts replaced by each junk, or taken away."""
    yield from JUNK
    parts = list(content.items()) if isinstance(content, dict) else list(enumerate(content))
    for key, part in parts:
        lacking = copy.copy(content)
        del lacking[key]
        yield lacking
        for other in spoiled(part) if isinstance(part, dict | list) else JUNK:
            changed = copy.copy(content)
            changed[key] = other
            yield changed


@pytest.mark.parametrize("layout", LAYOUTS)
def test_junk_is_answered_in_a_sentence(
    layout: str, tmp_path: Path, write_volume: Any, ct: np.ndarray, labels: np.ndarray
) -> None:
    read, name, content = LAYOUTS[layout]
    write_volume("image.nii.gz", ct)
    for file in ("label.nii.gz", "final/image.nii.gz"):
        write_volume(file, labels * (labels == 3))
    np.save(tmp_path / "image.npy", ct[None])
    np.save(tmp_path / "liver.npy", np.ones((2, 2, 2), dtype=bool))

    def answer(spoilt: Any) -> str:
        (tmp_path / name).write_text(json.dumps(spoilt), encoding="utf-8")
        try:
            found = read(tmp_path)
            if layout == "check":
                return " ".join(map(str, found[1]))
            output = tmp_path / "out.jsonl"
            convert(found, Settings(modality="ct"), output, volumes=tmp_path / "volumes", overwrite=True)
        except (ValueError, OSError) as error:
            return str(error) or "nothing is said"
        return ""

    assert answer(content) == ""
    answers = [answer(spoilt) for spoilt in spoiled(content)]
    assert sum(map(bool, answers)) > 20
    assert "nothing is said" not in answers
