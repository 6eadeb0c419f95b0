"""MONAI Label's local datastore as many threads and a sudden end need it: one change at a time, whole files only."""

import functools
import json
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock
from monailabel.datastore.local import DataModel, ImageLabelModel, LocalDatastore
from monailabel.interfaces.exception import ImageNotFoundException

from lorkd_monailabel.drafts import draft_of

_LOG = logging.getLogger(__name__)


def _in_turn(name: str) -> Callable[..., Any]:
    """A method of MONAI Label's datastore, run by one thread at a time."""
    method = getattr(LocalDatastore, name)

    @functools.wraps(method)
    def call(self: "Catalogue", *arguments: Any, **options: Any) -> Any:
        with self.turn:
            return method(self, *arguments, **options)

    return call


class Catalogue(LocalDatastore):
    """MONAI Label's local datastore, mended.

    Its endpoints run in threads here, between which it may be half read; a process that is killed would leave half a
    catalogue, with which no server starts, or half a label.

    Args:
        arguments: of the class beside or above it.
        options: likewise.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self.turn = threading.RLock()
        super().__init__(*arguments, **options)

    get_image_uri = _in_turn("get_image_uri")
    get_image_info = _in_turn("get_image_info")
    get_label_uri = _in_turn("get_label_uri")
    get_label_info = _in_turn("get_label_info")
    get_labels_by_image_id = _in_turn("get_labels_by_image_id")
    get_labeled_images = _in_turn("get_labeled_images")
    get_unlabeled_images = _in_turn("get_unlabeled_images")
    list_images = _in_turn("list_images")
    datalist = _in_turn("datalist")
    status = _in_turn("status")
    json = _in_turn("json")
    update_image_info = _in_turn("update_image_info")
    update_label_info = _in_turn("update_label_info")
    remove_image = _in_turn("remove_image")
    remove_label = _in_turn("remove_label")
    _reconcile_datastore = _in_turn("_reconcile_datastore")

    def add_image(self, image_id: str, image_filename: str, image_info: dict[str, Any] | None) -> str:
        """Copies an image into the studies, whole or not at all, and gives its id; what it replaces keeps its labels.

        Raises:
            ValueError: the id is no name, or the file is of no kind that images have here.
        """
        name, extension = self._to_id(os.path.basename(image_filename))
        image_id = checked_name(image_id or name, "image")
        if f"*{extension}" not in self._extensions:
            raise ValueError(f"an image {extension or 'without extension'} is not taken; send {self._extensions[0]}")
        with self.turn, FileLock(self._lock_file):
            file = self._filename(image_id, extension)
            copy_whole(Path(image_filename), Path(self._datastore.image_path(), file))
            info = {**(image_info or {}), "ts": int(time.time()), "name": file}
            before = self._datastore.objects.get(image_id)
            self._datastore.objects[image_id] = ImageLabelModel(
                image=DataModel(info=info, ext=extension), labels=before.labels if before else {}
            )
            self._update_datastore_file(lock=False)
        return image_id

    def save_label(self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any] | None) -> str:
        """Copies a label beside an image's others, whole or not at all, and gives its id, which is the image's.

        Raises:
            ImageNotFoundException: there is no such image.
            ValueError: the tag is no name.
        """
        folder = Path(self._datastore.label_path(checked_name(label_tag, "tag")))
        _, extension = self._to_id(os.path.basename(label_filename))
        with self.turn, FileLock(self._lock_file):
            known = self._datastore.objects.get(image_id)
            if not known:
                raise ImageNotFoundException(f"Image {image_id} not found")
            folder.mkdir(parents=True, exist_ok=True)
            name = f"{image_id}{extension}"
            copy_whole(Path(label_filename), folder / name)
            info = {**(label_info or {}), "ts": int(time.time()), "name": name}
            known.labels[label_tag] = DataModel(info=info, ext=extension)
            self._update_datastore_file(lock=False)
        return image_id

    def _update_datastore_file(self, lock: bool = True) -> None:
        if lock:
            with self.turn, FileLock(self._lock_file):
                return self._update_datastore_file(lock=False)
        path = Path(self._datastore_config_path)
        with draft_of(path) as draft:
            with draft.open("w", encoding="utf-8") as file:
                json.dump(self._datastore.model_dump(exclude={"base_path"}), file, indent=2, default=str)
            self._ignore_event_config = True
        self._config_ts = os.stat(path).st_mtime

    def _init_from_datastore_file(self, throw_exception: bool = False) -> None:
        with self.turn:
            try:
                LocalDatastore._init_from_datastore_file(self, throw_exception)
            except ValueError:
                aside = f"{self._datastore_config_path}.damaged"
                _LOG.error("the catalogue of the studies is damaged; it is kept as %s and made anew", aside)
                os.replace(self._datastore_config_path, aside)


def checked_name(name: str, what: str) -> str:
    """Gives a name that is to be a file's or a folder's.

    Raises:
        ValueError: it is a path, hidden or empty.
    """
    if not name or name.startswith(".") or any(part in name for part in ("/", "\\", "\0")):
        raise ValueError(f"{what} {name!r} must be a name, not a path; use letters and digits")
    return name


def copy_whole(source: Path, target: Path) -> None:
    """Copies a file so that at the target there is the whole of it or what was there before."""
    with draft_of(target) as draft:
        shutil.copyfile(source, draft)
