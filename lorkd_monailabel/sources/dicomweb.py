"""An archive behind DICOMweb: images are its CT and MR series, labels are DICOM SEG that it stores.

MONAI Label's own datastore crops labels that it reads back, lists what was there hours ago, asks the archive anew about
each label, and needs a program that it downloads. What it keeps is the layout of its cache: a folder of files for each
series, and a volume file of that name beside it.
"""

import logging
import os
import shutil
import tempfile
import threading
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import nibabel
from fastapi import HTTPException
from monailabel.datastore.dicom import DICOMWebDatastore
from monailabel.datastore.utils.convert import binary_to_image
from monailabel.interfaces.exception import ImageNotFoundException
from pydicom import dcmread

from lorkd_monailabel import __version__, dicom_seg
from lorkd_monailabel.dicom_grids import source_series
from lorkd_monailabel.label_maps import LabelMap
from lorkd_monailabel.sources.archive import Archive, Entry
from lorkd_monailabel.sources.catalogue import Catalogue
from lorkd_monailabel.sources.named_labels import named_segments
from lorkd_monailabel.sources.series import converted, volume_of
from lorkd_monailabel.volume_files import VolumeFile, write_nifti
from lorkd_monailabel.volumes import Grid, read_labels

FINAL = "final"
_LOG = logging.getLogger(__name__)


class ArchiveStudies(Catalogue, DICOMWebDatastore):
    """MONAI Label's DICOMweb datastore, mended.

    Args:
        archive: with the images.
        cache_path: folder for what was fetched; None for the one in the home folder.
    """

    def __init__(self, archive: Archive, cache_path: str | None = None) -> None:
        self.archive = archive
        self._fetching: dict[str, AbstractContextManager[Any]] = {}
        self._sizes: dict[str, int | None] = {}  # what the archive said of a series when it was fetched
        super().__init__(client=archive.client, search_filter=archive.search_filter, cache_path=cache_path)
        os.chmod(self._datastore_path, 0o700)  # patients' images

    def status(self) -> dict[str, Any]:
        """Numbers of images and of final labels; where the archive gives no answer, none, and why."""
        try:
            return dict(Catalogue.status(self))
        except HTTPException as error:
            return {"total": 0, "completed": 0, "label_tags": {}, "problem": error.detail}

    def list_images(self) -> list[str]:
        """UIDs of the image series."""
        return list(self.archive.listing().images)

    def get_labeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        """UIDs of the image series that a DICOM SEG refers to."""
        return list(self.archive.listing().labels)

    def get_unlabeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        """UIDs of the other image series."""
        listing = self.archive.listing()
        return [uid for uid in listing.images if uid not in listing.labels]

    def get_image_info(self, image_id: str) -> dict[str, Any]:
        """What is known of an image: where it is in the archive, but nothing of the patient."""
        entry = self.archive.listing().images.get(image_id)
        about = {"SeriesInstanceUID": image_id, **_described(entry)} if entry else {}
        return {**about, **Catalogue.get_image_info(self, image_id)}

    def get_image_uri(self, image_id: str) -> str:
        """The path of an image's volume file, fetched and made now where that is needed; empty for an unknown id.

        Raises:
            HTTPException: 502 where the archive gives no answer.
            ValueError: the series is no volume.
        """
        entry = self.archive.find(image_id)
        if entry is None:
            return ""
        folder = Path(self._datastore.image_path(), image_id)
        with self._alone_with(image_id):
            same = (None, self._sizes.get(image_id), len(os.listdir(folder)) if folder.is_dir() else 0)
            if not folder.is_dir() or entry.instances not in same:
                shutil.rmtree(folder, ignore_errors=True)
                volume_of(folder).unlink(missing_ok=True)
                self.archive.fetch(entry.study, image_id, folder)
                self._sizes[image_id] = entry.instances
            volume = os.path.realpath(converted(folder))
            if image_id not in self._datastore.objects:
                self._reconcile_datastore()
                self.update_image_info(image_id, {"SeriesInstanceUID": image_id, **_described(entry)})
        return volume

    def _alone_with(self, image_id: str) -> AbstractContextManager[Any]:
        """Held while an image or its label is fetched; requests for others don't wait."""
        return self._fetching.setdefault(image_id, threading.RLock())

    def update_image_info(self, image_id: str, info: dict[str, Any]) -> None:
        """Notes something about an image, which is fetched if it was not yet.

        Raises:
            ImageNotFoundException: the archive has no such image.
        """
        if image_id not in self._datastore.objects:
            self.get_image_uri(image_id)
        Catalogue.update_image_info(self, image_id, info)

    def add_image(self, image_id: str, image_filename: str, image_info: dict[str, Any] | None) -> str:
        """Refuses an image, as an archive takes DICOM series from where they are made.

        Raises:
            ValueError: always.
        """
        raise ValueError("images come from the archive; send the series there, or segment a file without storing it")

    def save_label(
        self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any] | None, label_id: str = ""
    ) -> str:
        """Keeps a label; a final one goes to the archive as DICOM SEG, also an empty one.

        Raises:
            ImageNotFoundException: the archive has no such image.
            HTTPException: 502 where the archive does not take it.
            ValueError: the file is no label volume, or the series is not one that DICOM SEG can refer to.
        """
        image = self.get_image_uri(image_id)
        if not image:
            raise ImageNotFoundException(f"Image {image_id} not found")
        info = dict(label_info or {})
        with tempfile.TemporaryDirectory() as folder:
            if label_filename.endswith(".bin"):  # of a viewer: voxels alone, in the image's order
                label_filename = shutil.move(binary_to_image(image, label_filename), folder)
            if label_tag == FINAL:
                info["SeriesInstanceUID"] = self._send(Path(image), Path(label_filename), info, Path(folder))
            return str(Catalogue.save_label(self, image_id, label_filename, label_tag, info))

    def _send(self, image: Path, label: Path, info: Mapping[str, Any], folder: Path) -> str:
        array, grid = read_labels(label)
        label_map = LabelMap(array, grid, tuple(named_segments(array, info)), ())
        model = info.get("model")  # of a prediction that is stored as it is; else a person stands for it
        algorithm = dicom_seg.Algorithm(str(model), __version__, {}) if model else None
        path = folder / "label.dcm"
        dicom_seg.write(label_map, source_series(image), path, algorithm=algorithm)
        return self.archive.store(path)

    def get_label_uri(self, label_id: str, label_tag: str, image_id: str = "") -> str:
        """The path of a label, a final one fetched now where the archive has a newer one; empty where there is none.

        Args:
            label_id: of the label, which is its image's, or with an image id the UID of a DICOM SEG.
            label_tag: of the label.
            image_id: of its image.

        Raises:
            HTTPException: 502 where the archive gives no answer.
            ValueError: the DICOM SEG cannot be read.
        """
        image_id = image_id or label_id
        if label_tag != FINAL:
            return str(Catalogue.get_label_uri(self, image_id, label_tag))
        newest = self.archive.listing().labels.get(image_id)
        if newest is None:
            return ""
        with self._alone_with(image_id):
            if Catalogue.get_label_info(self, image_id, FINAL).get("SeriesInstanceUID") != newest[1]:
                self._fetch_label(image_id, *newest)
        return str(Catalogue.get_label_uri(self, image_id, FINAL))

    def _fetch_label(self, image_id: str, study: str, series: str) -> None:
        image = Path(self.get_image_uri(image_id))
        target = _grid(image)
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name, series)
            self.archive.fetch(study, series, folder)
            label = dicom_seg.read(max(folder.iterdir(), key=_written), target)
            path = Path(name, "label.nii.gz")
            write_nifti(VolumeFile(label.array, target.affine, None), path)
            named = [{"name": name, "idx": value} for value, name in sorted(label.names.items())]
            Catalogue.save_label(self, image_id, str(path), FINAL, {"SeriesInstanceUID": series, "label_info": named})
        if label.overlaps:
            _LOG.warning("label %s: %d voxels belong to more than one segment", series, label.overlaps)

    def get_label_info(self, label_id: str, label_tag: str) -> dict[str, Any]:
        """What is known of a label: the names of its values, and its DICOM SEG."""
        if label_tag == FINAL:
            self.get_label_uri(label_id, label_tag)
        return dict(Catalogue.get_label_info(self, label_id, label_tag))

    def get_labels_by_image_id(self, image_id: str) -> dict[str, str]:
        """The tags of an image's labels, each with the label's id."""
        own = {tag: each for tag, each in Catalogue.get_labels_by_image_id(self, image_id).items() if tag != FINAL}
        return {**own, **({FINAL: image_id} if image_id in self.archive.listing().labels else {})}

    def remove_label(self, label_id: str, label_tag: str) -> None:
        """Removes a label that is not in the archive.

        Raises:
            ValueError: it is in the archive.
        """
        if label_tag == FINAL and label_id in self.archive.listing().labels:
            series = self.archive.listing().labels[label_id][1]
            raise ValueError(f"the label is series {series} of the archive, which keeps what it has; remove it there")
        Catalogue.remove_label(self, label_id, label_tag)

    def datalist(self, full_path: bool = True) -> list[dict[str, Any]]:
        """Pairs of paths, image and final label on its grid; what cannot be read is left out and named in the log."""
        pairs = []
        for image_id in self.get_labeled_images():
            try:
                pairs.append({"image": self.get_image_uri(image_id), "label": self.get_label_uri(image_id, FINAL)})
            except ValueError as error:
                _LOG.warning("image %s with a label is left out: %s", image_id, error)
        return pairs


def _grid(image: Path) -> Grid:
    """The grid of a volume file, without its voxels."""
    header = nibabel.Nifti1Image.from_filename(image)
    x, y, z = header.shape
    return Grid((x, y, z), header.affine)


def _written(path: Path) -> str:
    file = dcmread(path, stop_before_pixels=True)
    return f"{file.get('ContentDate', '')}{file.get('ContentTime', '')}"


def _described(entry: Entry) -> dict[str, Any]:
    return {"StudyInstanceUID": entry.study, "Modality": entry.modality}
