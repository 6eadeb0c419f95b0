"""nnU-Net's raw folders (second form): ``dataset.json``, ``imagesTr/CASE_0000.nii.gz``, ``labelsTr/CASE.nii.gz``."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lorkd_monailabel.case_lists.found import (
    VOLUMES,
    Found,
    channel_index,
    channel_names,
    check_there,
    entry,
    read_json,
    whole_numbers,
)


def nnunet(source: Path, *, channel: str = "") -> list[Found]:
    """Find the labelled cases; those of ``labelsTs``, where there is one, are the split "test".

    Args:
        source: the folder of a data set, such as ``Dataset005_Prostate``.
        channel: to take where a case has several, by its name or number.

    Raises:
        ValueError: ``dataset.json`` is missing or broken, or a label has no image.
    """
    file = source / "dataset.json"
    content = read_json(file)
    if "channel_names" not in content and "modality" in content:
        raise ValueError(f"{file} has 'modality', as the Decathlon's form; use lorkd cases convert decathlon")
    names = channel_names(content, "channel_names", file)
    index = channel_index(names, channel, file)
    ending = entry(content, "file_ending", str, file)
    if ending not in VOLUMES:
        raise ValueError(
            f"file_ending {ending!r} of {file} must be one of {', '.join(VOLUMES)}; convert the files first"
        )
    values = {name: whole_numbers(name, value, file) for name, value in entry(content, "labels", dict, file).items()}
    labels = {name: tuple(value for value in own if value != 0) for name, own in values.items() if any(own)}
    cases = [
        Found(
            image=image,
            label=label,
            subject=subject,
            source=source.resolve().name,
            modality=names[index],
            split=split,
            labels=labels,
        )
        for subject, image, label, split in _pairs(source, content, index, ending)
    ]
    if not cases:
        raise ValueError(f"{source / 'labelsTr'} holds no file that ends in {ending}; name the folder of a data set")
    check_there([path for case in cases for path in (case.label, case.image)], file)
    return cases


def _pairs(source: Path, content: dict[str, Any], index: int, ending: str) -> Iterator[tuple[str, Path, Path, str]]:
    """Yield subject, image, label and split of each case; ``dataset``, where it stands, says where the files are."""
    listed = entry(content, "dataset", dict, source / "dataset.json") if "dataset" in content else {}
    for subject, files in listed.items():
        where = f"case {subject!r} of {source / 'dataset.json'}"
        images = entry(files, "images", list, where)
        if index >= len(images):
            raise ValueError(f"{where} has {len(images)} images, none of them is channel {index}; complete it")
        label = entry(files, "label", str, where)
        yield subject, source / os.path.expandvars(str(images[index])), source / os.path.expandvars(label), ""
    for part, split in (("Ts", "test"),) if listed else (("Tr", ""), ("Ts", "test")):
        for label in sorted((source / f"labels{part}").glob(f"[!.]*{ending}")):
            subject = label.name.removesuffix(ending)
            yield subject, source / f"images{part}" / f"{subject}_{index:04d}{ending}", label, split
