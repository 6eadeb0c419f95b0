"""An archive that speaks DICOMweb: what it holds, asked anew every few seconds, and the way there and back."""

import itertools
import logging
import os
import shutil
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests
from dicomweb_client import DICOMwebClient
from fastapi import HTTPException
from pydicom import Dataset, dcmread

from lorkd_monailabel.sources.series import is_uid

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Entry:
    """A series in the archive: its study, modality, and number of instances (None where the archive does not say)."""

    study: str
    modality: str
    instances: int | None


@dataclass(frozen=True)
class Listing:
    """What the archive holds: image series by UID, and of each labelled one the newest DICOM SEG (study, series)."""

    images: Mapping[str, Entry]
    labels: Mapping[str, tuple[str, str]]


class Archive:
    """An archive behind a client.

    Args:
        client: of the archive.
        search_filter: attributes that an image series must have; a list stands for any of its values.
        expiry_s: seconds that what it holds may have been asked for ago.
    """

    def __init__(self, client: DICOMwebClient, search_filter: Mapping[str, Any], expiry_s: float) -> None:
        client.set_http_retry_params(max_attempts=2, wait_exponential_multiplier=100)  # not 30 s for one that is down
        self.client = client
        self.search_filter = dict(search_filter)
        self._expiry_s = expiry_s
        self._listed: tuple[float, Listing | HTTPException] | None = None
        self._lock = threading.Lock()
        self._references: dict[str, tuple[str, str]] = {}  # DICOM SEG -> image, time: neither ever changes

    def listing(self) -> Listing:
        """Asks the archive what it holds, unless that was done a moment ago.

        Raises:
            HTTPException: 502 where the archive gives no answer.
        """
        with self._lock:
            if self._listed is None or time.monotonic() - self._listed[0] > self._expiry_s:
                listed: Listing | HTTPException
                try:
                    with _answering():
                        listed = self._list()
                except HTTPException as error:  # kept too: who asks next shall not wait for the same silence
                    listed = error
                self._listed = time.monotonic(), listed
            found = self._listed[1]
        if isinstance(found, HTTPException):
            raise HTTPException(found.status_code, found.detail)
        return found

    def _list(self) -> Listing:
        images: dict[str, Entry] = {}
        for attributes in _alternatives(self.search_filter):
            for found in self._search(attributes):
                if is_uid(str(found.SeriesInstanceUID)):
                    images[str(found.SeriesInstanceUID)] = _entry(found)
        newest: dict[str, tuple[str, str, str]] = {}
        for found in self._search({"Modality": "SEG"}):
            study, series = str(found.StudyInstanceUID), str(found.SeriesInstanceUID)
            if series not in self._references:
                try:
                    self._references[series] = self._reference(study, series)
                except (requests.HTTPError, LookupError, ValueError) as error:  # it was just removed, or is damaged
                    _LOG.warning("DICOM SEG %s is left out: %s", series, error)
                    continue
            image, when = self._references[series]
            if image in images and is_uid(series):
                newest[image] = max(newest.get(image, ("", "", "")), (when, study, series))
        return Listing(images, {image: (study, series) for image, (_, study, series) in newest.items()})

    def _search(self, attributes: Mapping[str, Any]) -> list[Dataset]:
        # some archives return these only where they are asked for
        fields = ["StudyInstanceUID", "Modality", "NumberOfSeriesRelatedInstances"]
        found = self.client.search_for_series(search_filters=dict(attributes), fields=fields)
        return [Dataset.from_json(each) for each in found]

    def _reference(self, study: str, series: str) -> tuple[str, str]:
        # its voxels are not fetched for this
        about = Dataset.from_json(self.client.retrieve_series_metadata(study, series)[0], lambda address: None)
        referenced = about.get("ReferencedSeriesSequence")
        image = str(referenced[0].get("SeriesInstanceUID", "")) if referenced else ""
        return image, f"{about.get('ContentDate', '')}{about.get('ContentTime', '')}"

    def find(self, image_id: str) -> Entry | None:
        """Gives an image series, also one that the filter leaves out but that a viewer may show; None if there is none.

        Raises:
            HTTPException: 502 where the archive gives no answer.
        """
        if image_id in (images := self.listing().images):
            return images[image_id]
        if not is_uid(image_id):
            return None
        with _answering():
            found = [each for each in self._search({"SeriesInstanceUID": image_id}) if each.get("Modality") != "SEG"]
        return next((_entry(each) for each in found if each.SeriesInstanceUID == image_id), None)

    def fetch(self, study: str, series: str, folder: Path) -> None:
        """Makes a folder of the files of a series, the whole of it or none.

        Raises:
            HTTPException: 502 where the archive gives no answer.
        """
        draft = folder.with_name(f".{uuid.uuid4().hex}")
        draft.mkdir()
        try:
            with _answering():
                for number, instance in enumerate(self.client.iter_series(study, series)):
                    instance.save_as(draft / f"{number:05d}.dcm")
            os.rename(draft, folder)
        finally:
            shutil.rmtree(draft, ignore_errors=True)

    def store(self, path: Path) -> str:
        """Sends a DICOM file and gives the UID of its series.

        Raises:
            HTTPException: 502 where the archive does not take it.
        """
        file = dcmread(path)
        with _answering():
            answer = self.client.store_instances([file])
        with self._lock:
            self._listed = None
        if answer.get("FailedSOPSequence"):
            raise HTTPException(502, "the archive refused the label; look into the archive's log for the reason")
        return str(file.SeriesInstanceUID)


def _entry(found: Dataset) -> Entry:
    count = found.get("NumberOfSeriesRelatedInstances")
    return Entry(str(found.StudyInstanceUID), str(found.get("Modality", "")), None if count is None else int(count))


def _alternatives(search_filter: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
    """``{"Modality": ["CT", "MR"]}`` as the searches that it stands for."""
    choices = [
        [(name, one) for one in (value if isinstance(value, list) else [value])]
        for name, value in search_filter.items()
    ]
    return map(dict, itertools.product(*choices))


@contextmanager
def _answering() -> Iterator[None]:
    """Says in one sentence that the archive gives no answer, or not the one that it should."""
    try:
        yield
    except requests.HTTPError as error:
        status = error.response.status_code if error.response is not None else "an error"
        raise HTTPException(
            502, f"the archive answers {status}; check --studies and MONAI_LABEL_DICOMWEB_USERNAME and _PASSWORD"
        ) from error
    except requests.RequestException as error:
        raise HTTPException(
            502, "the archive gives no answer; check its address in --studies and that it runs"
        ) from error
