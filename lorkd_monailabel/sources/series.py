"""DICOM series in a tree of folders: which there are, and a folder of links for each, beside it the volume file.

A series is what has one SeriesInstanceUID, in however many folders its slices lie and whatever lies beside them. Its
UID is its only name: names of files and patients stay where they are.
"""

import json
import logging
import os
import re
import shutil
import threading
import time
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from lorkd_monailabel.drafts import write_whole
from lorkd_monailabel.volume_files import read_volume_file, write_nifti

LINKS = ".series"
"""Folder in the studies that holds what is made here."""

_INDEX = "index.json"
_SETTLED_NS = 60 * 10**9
"""A file may have come after the folder was listed, or have been half there: what changed lately is read again."""
_UNSETTLED = -1
_IMAGES = ("CT", "MR")
_SKIPPED = {"labels"}
_HEADER = ("SOPInstanceUID", "SeriesInstanceUID", "Modality", "ImageType", "NumberOfFrames", "Rows")
_UID = re.compile(r"[0-9]+(\.[0-9]+)+")
_LOG = logging.getLogger(__name__)
_converting: dict[Path, threading.Lock] = {}


@dataclass(frozen=True)
class Series:
    """One series: its modality, CT or MR, and the file of each SOPInstanceUID."""

    modality: str
    files: Mapping[str, Path]


class _Slice(NamedTuple):
    file: str
    instance: str
    series: str
    modality: str
    frames: int


def is_uid(text: str) -> bool:
    """Says whether a text is a DICOM UID, so that it may be the name of a file."""
    return len(text) <= 64 and _UID.fullmatch(text) is not None


class SeriesIndex:
    """Knows the CT and MR series of a tree of folders; a folder is read again when something was added or removed.

    What was read is kept in a file, so that the next process need not read it again. Scouts and single images are left
    out.

    Args:
        root: of the tree; links are made in its folder ``LINKS``.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folder = root / LINKS
        self._seen = _read_index(self.folder / _INDEX)

    def update(self) -> dict[str, Series]:
        """Reads what has changed and gives all series by UID; their folders of links are as they should be."""
        seen: dict[str, tuple[int, list[_Slice]]] = {}
        for name, folders, files in os.walk(self.root):
            top = Path(name) == self.root
            folders[:] = [each for each in folders if not each.startswith(".") and not (top and each in _SKIPPED)]
            place, changed = os.path.relpath(name, self.root), os.stat(name).st_mtime_ns
            if place in self._seen and self._seen[place][0] == changed:
                seen[place] = self._seen[place]
            else:
                slices = [found for file in sorted(files) if (found := _read_slice(Path(name, file)))]
                settled = time.time_ns() - changed > _SETTLED_NS
                seen[place] = changed if settled else _UNSETTLED, slices
        series = _by_uid(self.root, ((place, slices) for place, (_, slices) in seen.items()))
        if series or self.folder.exists():
            self._link(series)
        if seen != self._seen and self.folder.exists():
            _write_index(seen, self.folder / _INDEX)
        self._seen = seen
        return series

    def _link(self, series: Mapping[str, Series]) -> None:
        self.folder.mkdir(mode=0o700, exist_ok=True)
        for entry in list(os.scandir(self.folder)):
            if is_uid(entry.name) and entry.name not in series:
                shutil.rmtree(entry.path, ignore_errors=True)
                volume_of(Path(entry.path)).unlink(missing_ok=True)
        for uid, each in series.items():
            folder = self.folder / uid
            wanted = {f"{instance}.dcm": str(file) for instance, file in each.files.items()}
            if folder.is_dir() and {name: os.readlink(folder / name) for name in os.listdir(folder)} == wanted:
                continue
            draft = self.folder / f".{uuid.uuid4().hex}"
            draft.mkdir()
            for name, file in wanted.items():
                os.symlink(file, draft / name)
            volume_of(folder).unlink(missing_ok=True)
            shutil.rmtree(folder, ignore_errors=True)
            try:
                os.rename(draft, folder)
            except OSError:  # another process was first
                shutil.rmtree(draft)


def volume_of(folder: Path) -> Path:
    """Gives the path of the volume file that belongs to the folder of a series."""
    return folder.with_name(f"{folder.name}.nii.gz")


def converted(folder: Path) -> Path:
    """Gives the volume file of a folder of one series, made now if there is none or the series is newer.

    Raises:
        ValueError: the series is no volume; the message names it by its UID.
    """
    volume = volume_of(folder)
    with _converting.setdefault(folder, threading.Lock()):
        if volume.exists() and volume.stat().st_mtime_ns >= folder.stat().st_mtime_ns:
            return volume
        try:
            file = read_volume_file(folder)
        except ValueError as error:
            raise ValueError(str(error).replace(str(folder), f"series {folder.name}")) from error
        write_nifti(file, volume)
    return volume


def _by_uid(root: Path, folders: Iterable[tuple[str, list[_Slice]]]) -> dict[str, Series]:
    files: dict[str, dict[str, Path]] = {}
    modalities: dict[str, str] = {}
    frames: dict[str, int] = {}
    for place, slices in sorted(folders):
        for each in slices:
            own = files.setdefault(each.series, {})
            if each.instance not in own:  # the same image twice is one image
                own[each.instance] = Path(os.path.abspath(root / place / each.file))
                frames[each.series] = frames.get(each.series, 0) + each.frames
            modalities[each.series] = each.modality
    return {uid: Series(modalities[uid], own) for uid, own in sorted(files.items()) if frames[uid] > 1}


def _read_slice(path: Path) -> _Slice | None:
    """What a file is of a series; None where it is no image of one."""
    import pydicom
    from pydicom.errors import InvalidDicomError

    try:
        with path.open("rb") as file:
            if file.read(132)[128:] != b"DICM":
                return None
        header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(_HEADER))
        uids = str(header.SOPInstanceUID), str(header.SeriesInstanceUID)
        if header.Modality not in _IMAGES or "Rows" not in header or "LOCALIZER" in (header.get("ImageType") or ()):
            return None
        if not all(map(is_uid, uids)):
            return None
        return _Slice(path.name, *uids, str(header.Modality), int(header.get("NumberOfFrames") or 1))
    except (OSError, AttributeError, ValueError, InvalidDicomError):
        _LOG.info("a file of the studies begins like DICOM but cannot be read; it is left out")
        return None


def _read_index(path: Path) -> dict[str, tuple[int, list[_Slice]]]:
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        return {place: (changed, [_Slice(*each) for each in slices]) for place, (changed, slices) in stored.items()}
    except (OSError, ValueError, TypeError, AttributeError):  # absent, or of another version: all is read again
        return {}


def _write_index(seen: Mapping[str, tuple[int, list[_Slice]]], path: Path) -> None:
    write_whole(path, json.dumps(seen), flush=False)
