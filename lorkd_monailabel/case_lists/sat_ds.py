"""SAT-DS: JSON lines after its ``convert_to_npy.py``, which keeps one cropped boolean array for each label.

Before that step a line's mask has values whose meaning stands in SAT-DS's loaders only. After it, images are z-scores
(CT clipped to [-500, 1000] HU before) on a grid of 1 x 1 x 3 mm, axes to the right, anterior and superior.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lorkd_monailabel.case_lists.found import Found, check_there, entry, whole_numbers
from lorkd_monailabel.case_lists.writing import Box, file_name, merged, save

AFFINE = np.diag([1.0, 1.0, 3.0, 1.0])
SPLITS = {"train": "train", "test": "test", "val": "validation", "validation": "validation"}

_NOWHERE: Box = (slice(0, 0), slice(0, 0), slice(0, 0))

_Mask = tuple[str, Path | None, Box]


def sat_ds(source: Path) -> list[Found]:
    """Find the cases of a list; image and merged label volume of each have to be written.

    Args:
        source: JSON lines; their relative paths start at its folder or at one above it.

    Raises:
        ValueError: the list is missing or broken, a line is not one after ``convert_to_npy.py``, or files are missing.
    """
    cases, files = [], []
    for number, line in _lines(source):
        where = f"{source} line {number}"
        if "renorm_segmentation_dir" not in line:
            raise ValueError(
                f"{where} has no renorm_segmentation_dir, and what the values of its mask mean stands in SAT-DS's "
                "loaders only; run SAT-DS's convert_to_npy.py on the list first"
            )
        image = _located(entry(line, "renorm_image", str, where), source)
        masks = list(_masks(line, where, source))
        files += [image, *(path for _, path, _ in masks if path)]
        case = Found(
            image=image,
            label=image,
            subject=str(line.get("patient_id") or line.get("sample_id") or image.stem),
            source=entry(line, "dataset", str, where),
            modality=entry(line, "modality", str, where),
            split=SPLITS.get(str(line.get("official_split")), ""),
            labels=dict.fromkeys((name for name, _, _ in masks), ()),
        )
        name = file_name(case.source, f"{number:06d}")
        cases.append(replace(case, write=partial(_write, case, masks, name)))
    check_there(files, source)
    return cases


def _lines(source: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        lines = source.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{source} can't be read ({error}); give the path of SAT-DS's JSON lines") from error
    found = [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    if not found:
        raise ValueError(f"{source} is empty; give the path of SAT-DS's JSON lines")
    for number, text in found:
        try:
            line = json.loads(text)
        except ValueError as error:
            raise ValueError(
                f"{source} line {number} is not JSON ({error}); correct it, or make the list anew"
            ) from error
        if not isinstance(line, dict):
            raise ValueError(
                f"{source} line {number} must be an object in braces; give the path of SAT-DS's JSON lines"
            )
        yield number, line


def _masks(line: dict[str, Any], where: str, source: Path) -> Iterator[_Mask]:
    """Yield name, file and place of each label; a label that is absent has no place and no file."""
    folder = _located(entry(line, "renorm_segmentation_dir", str, where), source)
    labels = [str(label) for label in entry(line, "label", list, where)]
    boxes = entry(line, "renorm_y1x1z1_y2x2z2", list, where)
    if len(labels) != len(boxes):
        raise ValueError(
            f"{where} has {len(labels)} labels and {len(boxes)} boxes; make it anew with convert_to_npy.py"
        )
    for label, box in dict(zip(labels, boxes, strict=True)).items():  # some lists name a label twice
        if box:
            ends = whole_numbers(label, box, where)
            if len(ends) != 6:
                raise ValueError(f"the box {box} of {label!r} in {where} must be six numbers; make it anew")
            x, y, z = (slice(low, high) for low, high in zip(ends[:3], ends[3:], strict=True))
            yield label, folder / f"{label}.npy", (x, y, z)
        else:
            yield label, None, _NOWHERE


def _located(path: str, source: Path) -> Path:
    """The path from the list's folder, or from the nearest above it where it exists."""
    folder = source.resolve().parent
    return next((each / path for each in (folder, *folder.parents) if (each / path).exists()), folder / path)


def _write(case: Found, masks: list[_Mask], name: str, folder: Path) -> Found:
    image = _array(case.image)
    image = image[0] if image.ndim == 4 and len(image) == 1 else image
    if image.ndim != 3:
        raise ValueError(f"{case.image} has shape {image.shape}, not one channel of a volume; make it anew")
    shape = (image.shape[0], image.shape[1], image.shape[2])
    arrays = (
        (label, box, _array(path).astype(bool) if path else np.zeros((0, 0, 0), dtype=bool))
        for label, path, box in masks
    )
    labels, values = merged(arrays, shape)
    paths = folder / f"{name}_image.nii.gz", folder / f"{name}_label.nii.gz"
    save(image.astype(np.float32), AFFINE, paths[0])
    save(labels, AFFINE, paths[1])
    return replace(case, image=paths[0], label=paths[1], labels=values, write=None)


def _array(path: Path) -> np.ndarray:
    try:
        return np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(f"{path} can't be read as a numpy array ({error}); make it anew") from error
