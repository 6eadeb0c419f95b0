"""Medical Segmentation Decathlon: a folder with ``dataset.json``, ``imagesTr`` and ``labelsTr``.

Its images of several sequences are 4D files; the sequence that is wanted is written as a file of its own.
"""

from __future__ import annotations

import zlib
from dataclasses import replace
from functools import partial
from pathlib import Path

import nibabel
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError

from lorkd_monailabel.case_lists.found import (
    Found,
    channel_index,
    channel_names,
    check_there,
    entry,
    read_json,
    stem,
    whole_numbers,
)
from lorkd_monailabel.case_lists.writing import save


def decathlon(source: Path, *, channel: str = "") -> list[Found]:
    """Find the training cases; those of the test set have no labels.

    Args:
        source: the folder of a task.
        channel: sequence to take where an image has several, by its name or number.

    Raises:
        ValueError: ``dataset.json`` is missing or broken, or files that it names are missing.
    """
    file = source / "dataset.json"
    content = read_json(file)
    if "channel_names" in content:
        raise ValueError(f"{file} has 'channel_names', as nnU-Net's second form; use lorkd cases convert nnunet")
    values = {
        str(name): whole_numbers(str(name), value, file) for value, name in entry(content, "labels", dict, file).items()
    }
    labels = {name: own for name, own in values.items() if own != (0,)}
    names = channel_names(content, "modality", file)
    index = channel_index(names, channel, file)
    cases = []
    for number, pair in enumerate(entry(content, "training", list, file), start=1):
        where = f"training case {number} of {file}"
        case = Found(
            image=source / entry(pair, "image", str, where),
            label=source / entry(pair, "label", str, where),
            subject=stem(Path(pair["label"])),
            source=str(content.get("name") or source.resolve().name),
            modality=names[index],
            split="",
            labels=labels,
        )
        cases.append(replace(case, write=partial(_one_channel, case, index)) if len(names) > 1 else case)
    check_there([path for case in cases for path in (case.image, case.label)], file)
    return cases


def _one_channel(case: Found, index: int, folder: Path) -> Found:
    try:
        image = nibabel.Nifti1Image.from_filename(case.image)
        if len(image.shape) != 4 or image.shape[3] <= index:
            raise ImageFileError(f"its shape is {image.shape}, where the sequences should lie along a fourth axis")
        sequence = np.asarray(image.dataobj[..., index], dtype=np.float32)
    except (ImageFileError, HeaderDataError, EOFError, zlib.error, OSError) as error:
        raise ValueError(f"{case.image} can't be read ({error}); take the original file again") from error
    path = folder / f"{case.subject}_{index:04d}.nii.gz"
    save(sequence, np.asarray(image.affine), path)
    return replace(case, image=path, write=None)
