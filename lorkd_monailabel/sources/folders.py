"""A folder of studies: volume files as MONAI Label has them, and every DICOM series in its sub-folders."""

import logging
import os
import time
from pathlib import Path
from typing import Any

from monailabel.datastore.local import DataModel, ImageLabelModel
from watchdog.events import FileSystemEvent, FileSystemEventHandler

from lorkd_monailabel.sources.catalogue import Catalogue
from lorkd_monailabel.sources.series import LINKS, Series, SeriesIndex, converted, volume_of

QUIET_SECONDS = 1.0
"""Without a change in the folders, so that a series that is still being copied is not taken for a whole one."""

_SERIES = "DICOM series"  # what the catalogue has in place of a file's extension
_CHANGES = {"created", "deleted", "moved", "closed"}
_LOG = logging.getLogger(__name__)


class FolderStudies(Catalogue):
    """MONAI Label's local datastore, in which a DICOM series is an image whose id is its SeriesInstanceUID.

    Clients get a series as a NIfTI file, made when it is first asked for.

    Args:
        folder: of the studies.
        options: see MONAI Label's ``LocalDatastore``.
    """

    def __init__(self, folder: str, **options: Any) -> None:
        self._index = SeriesIndex(Path(folder))
        self._found: dict[str, Series] = {}
        self._changed: float | None = None
        super().__init__(folder, **options)
        if hasattr(self, "_observer"):
            self._observer.schedule(_Watch(self), path=folder, recursive=True)

    def note_change(self, path: str) -> None:
        """Remembers that something may have changed, unless it was made by a datastore itself."""
        parts = Path(os.path.relpath(path, self._datastore_path)).parts
        if parts and parts[0] not in (LINKS, "labels", ".lock", os.path.basename(self._datastore_config_path)):
            self._changed = time.monotonic()

    def list_images(self) -> list[str]:
        """Ids of all images."""
        self._catch_up()
        return super().list_images()

    def get_unlabeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        """Ids of the images without a final label."""
        self._catch_up()
        return super().get_unlabeled_images(label_tag, labels)

    def get_image_uri(self, image_id: str) -> str:
        """The path of an image's volume file; empty for an unknown id.

        Raises:
            ValueError: a series is no volume.
        """
        self._catch_up()
        path = super().get_image_uri(image_id)
        return str(converted(Path(path))) if self._is_series(image_id) else path

    def get_image_info(self, image_id: str) -> dict[str, Any]:
        """What the catalogue knows of an image; the path of a series' volume file may not be there yet."""
        info = super().get_image_info(image_id)
        if self._is_series(image_id):
            info["path"] = str(volume_of(Path(info["path"])))
        return info

    def datalist(self, full_path: bool = True) -> list[dict[str, Any]]:
        """Pairs of paths, image and final label; a series that is no volume is left out and named in the log."""
        pairs = []
        for each in super().datalist(full_path=True):
            image = Path(each["image"])
            try:
                pairs.append({**each, "image": str(converted(image) if image.is_dir() else image)})
            except ValueError as error:
                _LOG.warning("an image with a label is left out: %s", error)
        return pairs

    def remove_image(self, image_id: str) -> None:
        """Removes an image and its labels, but no DICOM files.

        Raises:
            ValueError: it is a DICOM series.
        """
        if self._is_series(image_id):
            raise ValueError(f"image {image_id} is a DICOM series, which is not removed from here; remove its files")
        super().remove_image(image_id)

    def _is_series(self, image_id: str) -> bool:
        known = self._datastore.objects.get(image_id)
        return known is not None and known.image.ext == _SERIES

    def _catch_up(self) -> None:
        if self._changed is None or time.monotonic() - self._changed < QUIET_SECONDS:
            return
        with self.turn:
            if self._changed is not None:
                self._changed = None
                self.refresh()

    def _filename(self, id: str, ext: str) -> str:
        return os.path.join(LINKS, id) if ext == _SERIES else f"{id}{ext}"

    def _reconcile_datastore(self) -> None:
        with self.turn:
            self._found = self._index.update()
            super()._reconcile_datastore()

    def _add_non_existing_images(self) -> int:
        added: int = super()._add_non_existing_images()
        for uid, series in self._found.items():
            if uid not in self._datastore.objects:
                about = {"ts": int(time.time()), "name": uid, "SeriesInstanceUID": uid, "Modality": series.modality}
                self._datastore.objects[uid] = ImageLabelModel(image=DataModel(info=about, ext=_SERIES))
                added += 1
        return added


class _Watch(FileSystemEventHandler):
    def __init__(self, studies: FolderStudies) -> None:
        self._studies = studies

    def on_any_event(self, event: FileSystemEvent) -> None:
        if event.event_type in _CHANGES:
            self._studies.note_change(os.fsdecode(event.src_path))
