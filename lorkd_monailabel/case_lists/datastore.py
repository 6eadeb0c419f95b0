"""A datastore of MONAI Label: ``datastore_v2.json``, images beside it, label volumes in ``labels/<tag>``.

What a label's values mean stands in the catalogue: ``label_info`` of a label that a client submitted, ``label_names``
of one that a model made. Both name structures that nobody drew: Slicer's plugin adds an empty segment for each label of
a model. So what has no voxel is taken as not annotated, never as absent.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from lorkd_monailabel.case_lists.found import Found, check_there, entry, gathered, read_json, whole_numbers
from lorkd_monailabel.volumes import read_labels

CATALOGUE = "datastore_v2.json"

Told = dict[str, tuple[int, ...]]
"""Name -> values."""


def datastore(
    source: Path, *, tag: str = "final", labels: Mapping[str, tuple[int, ...]] | None = None, by: str = ""
) -> list[Found]:
    """Find the images that have a label of a tag.

    Args:
        source: the folder of studies.
        tag: ``final`` for what annotators submitted, ``original`` for what a model made.
        labels: name -> values, for labels of which the catalogue doesn't say it.
        by: whether a submitted segment's value is its ``idx`` or its position in the list. Slicer's own plugin counts
            a background segment in ``idx`` but doesn't write it, so the two may differ; empty decides by the values
            that the volume has.

    Raises:
        ValueError: the catalogue is missing or broken, a file is missing, or it is open what the values mean.
    """
    file = source / CATALOGUE
    content = read_json(file)
    images = source / str(content.get("images_dir") or ".")
    folder = source / str(content.get("labels_dir") or "labels") / tag
    cases, unnamed, tags = [], [], set()
    for name, item in sorted(entry(content, "objects", dict, file).items()):
        where = f"image {name!r} of {file}"
        kept = entry(item, "labels", dict, where)
        tags |= set(kept)
        if tag not in kept:
            continue
        own = entry(kept, tag, dict, where)
        label = folder / f"{name}{entry(own, 'ext', str, where)}"
        image = images / f"{name}{entry(entry(item, 'image', dict, where), 'ext', str, where)}"
        check_there((image, label), where)
        present = {int(value) for value in np.unique(read_labels(label)[0]) if value}
        told = told_values(_object(own, "info"), present, where, by) or labels
        if told:
            drawn = {each: values for each, values in told.items() if present.intersection(values)}
            cases.append(Found(image, label, name, source.resolve().name, "", "", drawn))
        else:
            unnamed.append(name)
    if unnamed:
        raise ValueError(
            f"{file} doesn't say what the values of {len(unnamed)} labels mean, the first is that of {unnamed[0]!r}; "
            'say it with --label "NAME=VALUE" for each value'
        )
    if not cases:
        have = ", ".join(sorted(tags)) or "none at all"
        raise ValueError(f"no image of {file} has a label tagged {tag!r} (tags: {have}); choose another with --tag")
    return cases


def told_values(info: dict[str, Any], present: set[int], where: str, by: str = "") -> Told:
    """Read what the catalogue says of a label's values; empty where it says nothing.

    Args:
        info: of the label.
        present: values that its volume has.
        where: what the label is called, for messages.
        by: see ``datastore``.

    Raises:
        ValueError: it is not of the form that clients write, or it is open which value a name stands for.
    """
    listed = info.get("label_info")
    if not isinstance(listed, list) or not listed:
        told = _object(_object(info, "params"), "label_names")
        return {name: whole_numbers(name, value, where) for name, value in told.items()}
    names = [str(entry(each, "name", str, where)) for each in listed]
    positions = range(1, len(names) + 1)
    idx = [
        whole_numbers(name, each.get("idx", position), where)[0]
        for name, each, position in zip(names, listed, positions, strict=True)
    ]
    by_position, by_idx = (gathered(zip(names, values, strict=True)) for values in (positions, idx))
    if by_idx == by_position or by:
        return by_position if by == "position" else by_idx
    fits = [told for told in (by_idx, by_position) if present <= set(chain(*told.values()))]
    if len(fits) != 1:
        raise ValueError(
            f"the segments of {where} have idx {idx}, its volume has the values "
            f"{sorted(present)}, so it is open whether idx or position is the value; say it with --values-by"
        )
    return fits[0]


def _object(content: dict[str, Any], key: str) -> dict[str, Any]:
    """The object under a key that may lack it; clients write there what they like."""
    value = content.get(key)
    return value if isinstance(value, dict) else {}
