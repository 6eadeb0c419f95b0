"""BIDS: segmentations under ``derivatives`` (``*_dseg`` with a ``dseg.tsv``, or ``*_mask``) and their images."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path

from lorkd_monailabel.case_lists.found import Found, gathered, modality_of, whole_numbers
from lorkd_monailabel.case_lists.writing import Box, file_name, merged, save
from lorkd_monailabel.volumes import read_labels, same_grid

SEGMENTATIONS = ("dseg", "mask")
NOT_IMAGES = {*SEGMENTATIONS, "probseg", "xfm"}
NOT_ANATOMY = {"func", "dwi", "perf", "fmap"}
"""Folders of images with more axes than a case may have."""
NAMES_ONLY = {"desc", "label", "seg", "atlas", "res", "den", "hemi"}
"""Entities that tell files of one image apart without making it another image."""
SAME_SPACE = {"orig", "individual", "scanner"}
ENDINGS = (".nii.gz", ".nii")

_ENTITY = re.compile(r"([a-zA-Z0-9]+)-([a-zA-Z0-9+]+)")
_WHOLE: Box = (slice(None), slice(None), slice(None))


@dataclass(frozen=True)
class _File:
    path: Path
    entities: Mapping[str, str]
    suffix: str

    @property
    def space(self) -> str:
        space = self.entities.get("space", "")
        return "" if space in SAME_SPACE or modality_of(space) else space

    @property
    def image(self) -> dict[str, str]:
        """What names the image that it is, or is of."""
        return {key: value for key, value in self.entities.items() if key not in NAMES_ONLY | {"space"}}


def bids(
    source: Path, *, channel: str = "", only: str = "*", labels: Mapping[str, tuple[int, ...]] | None = None
) -> list[Found]:
    """Find segmentations and their images: the raw image, or one in the segmentation's own folder.

    The masks of one image are merged into one label volume, which has to be written.

    Args:
        source: a data set, or the folder of one pipeline under its ``derivatives``.
        channel: suffix of the images to take where there are several, such as T1w.
        only: pattern of file names of the segmentations to take, such as ``*desc-manual*``.
        labels: name -> values, for segmentations without a ``dseg.tsv``.

    Raises:
        ValueError: there is no segmentation, or one without an image, with several, or without names.
    """
    below = source / "derivatives" if (source / "derivatives").is_dir() else source
    raw = next((each.parent for each in (below, *below.resolve().parents) if each.name == "derivatives"), source)
    found = [
        each
        for each in _files(below)
        if each.suffix in SEGMENTATIONS
        and each.path.parent.name not in NOT_ANATOMY
        and fnmatchcase(each.path.relative_to(below).as_posix(), f"*{only}")
    ]
    if not found:
        raise ValueError(f"{below} holds no *_dseg.nii.gz or *_mask.nii.gz that fits {only!r}; name a BIDS data set")
    nobodys = next((each.path for each in found if "sub" not in each.entities), None)
    if nobodys is not None:
        raise ValueError(f"{nobodys} does not say whose it is; name it sub-LABEL_…, LABEL of letters and digits alone")
    names = _name(source)
    images: dict[Path, list[_File]] = {}
    cases = []
    for each in found:
        image = _image(each, raw, channel)
        case = _case(each, image, names)
        if each.suffix == "mask":
            images.setdefault(image.path, []).append(each)
        else:
            cases.append(replace(case, labels=_table(each, below) or labels or _no_names(each)))
    for path, masks in images.items():
        case = _case(masks[0], _file(path), names)
        own = {_mask_name(each): each.path for each in masks}
        if len(own) < len(masks):
            raise ValueError(f"several masks of {path} are named {sorted(own)}; choose among them with --only")
        if len(own) == 1:
            cases.append(replace(case, labels=dict.fromkeys(own, (1,))))
        else:
            unwritten = replace(case, labels=dict.fromkeys(own, ()))
            cases.append(replace(unwritten, write=partial(_merge, unwritten, own)))
    return cases


def _files(folder: Path) -> Iterator[_File]:
    for path in sorted(folder.rglob("sub-*")):
        if path.name.endswith(ENDINGS) and path.is_file():
            yield _file(path)


def _file(path: Path) -> _File:
    name = path.name.removesuffix(".gz").removesuffix(".nii").removesuffix(".tsv")
    *entities, suffix = name.split("_")
    matches = filter(None, map(_ENTITY.fullmatch, entities))
    return _File(path, {match[1]: match[2] for match in matches}, suffix)


def _image(of: _File, raw: Path, channel: str) -> _File:
    """Find the image of a segmentation: same entities, same space; a raw one before one that a pipeline made."""
    wanted = of.entities.get("space", "") if modality_of(of.entities.get("space", "")) else ""
    for folder in (raw / f"sub-{of.entities['sub']}", of.path.parent):
        fits = [
            each
            for each in _files(folder)
            if each.suffix not in NOT_IMAGES
            and each.path.parent.name not in NOT_ANATOMY
            and (each.image, each.space) == (of.image, of.space)
        ]
        fits = [each for each in fits if each.suffix == (channel or wanted or each.suffix)]
        if len(fits) > 1:
            listed = ", ".join(each.path.name for each in fits)
            raise ValueError(f"{of.path} may be of {listed}; choose one by its suffix with --channel, such as T1w")
        if fits:
            return fits[0]
    raise ValueError(f"no image of {of.path} is in {raw} with the same entities; complete the data set or use --only")


def _case(of: _File, image: _File, source: str) -> Found:
    return Found(
        image=image.path,
        label=of.path,
        subject=of.entities["sub"],
        source=source,
        modality=image.suffix,
        split="",
        labels={},
    )


def _name(source: Path) -> str:
    """The data set's name, else that of its folder."""
    try:
        content = json.loads((source / "dataset_description.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        content = {}
    return str(content.get("Name") or source.resolve().name) if isinstance(content, dict) else source.resolve().name


def _table(of: _File, below: Path) -> dict[str, tuple[int, ...]]:
    """Read the names of a segmentation's values from the nearest ``dseg.tsv`` that applies to it; empty for none."""
    folder = of.path.parent
    while True:
        tables = [_file(path) for path in sorted(folder.glob("*dseg.tsv"))]
        fits = [each for each in tables if each.entities.items() <= of.entities.items()]
        if fits:
            return _rows(max(fits, key=lambda each: len(each.entities)).path)
        if folder in (below, folder.parent):
            return {}
        folder = folder.parent


def _rows(path: Path) -> dict[str, tuple[int, ...]]:
    with open(path, encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    if not rows or not {"index", "name"} <= set(rows[0]):
        raise ValueError(f"{path} must have the columns index and name, parted by tabs; correct it")
    values = [(row["name"], whole_numbers(row["name"], row["index"], path)[0]) for row in rows]
    return gathered((name, value) for name, value in values if value != 0)


def _mask_name(of: _File) -> str:
    """What a mask is of: its label, else the type in its sidecar, else its description."""
    if "label" in of.entities:
        return of.entities["label"]
    sidecar = of.path.with_name(of.path.name.removesuffix(".gz").removesuffix(".nii") + ".json")
    try:
        told = str(json.loads(sidecar.read_text(encoding="utf-8")).get("Type") or "")
    except FileNotFoundError:
        told = ""
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{sidecar} is not a JSON object ({error}); correct it") from error
    return told if told and told not in ("ROI", "Lesion", "Face") else of.entities.get("desc", told or of.suffix)


def _no_names(of: _File) -> Mapping[str, tuple[int, ...]]:
    raise ValueError(f'{of.path} has no dseg.tsv that names its values; add one, or say --label "NAME=VALUE"')


def _merge(case: Found, masks: Mapping[str, Path], folder: Path) -> Found:
    arrays, grids = zip(*(read_labels(path) for path in masks.values()), strict=True)
    for path, grid in zip(masks.values(), grids, strict=True):
        if not same_grid(grid, grids[0]):
            raise ValueError(f"{path} is on another grid than the other masks of {case.image}; export it on theirs")
    named = ((name, _WHOLE, array != 0) for name, array in zip(masks, arrays, strict=True))
    labels, values = merged(named, grids[0].shape)
    path = folder / f"{file_name(case.image.name.partition('.')[0])}_label.nii.gz"
    save(labels, grids[0].affine, path)
    return replace(case, label=path, labels=values, write=None)
