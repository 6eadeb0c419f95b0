"""The MONAI Label app: ``--conf`` -> store, predictor, tasks; ``/info/`` tells what there is.

The server makes one instance, and each process that it starts for training makes another: nothing heavy happens here.
"""

import logging
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fastapi import HTTPException
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.exception import MONAILabelException
from monailabel.interfaces.tasks.infer_v2 import InferTask
from monailabel.interfaces.tasks.strategy import Strategy

from lorkd_monailabel import __version__
from lorkd_monailabel.departments import Department, departments
from lorkd_monailabel.devices import checked_device
from lorkd_monailabel.predictor import Predictor
from lorkd_monailabel.store import ExpertStore
from lorkd_monailabel.tasks.infer import DepartmentTask, TextTask
from lorkd_monailabel.tasks.strategies import First, Random

CONF = {
    "store": "folder of bases and experts; model/store in the app directory, at first a copy of the shipped one",
    "device": "torch device of the networks; cuda where there is one, else cpu",
}
_SHIPPED_STORE = Path(__file__).parent / "weights" / "store"
_MONAI_LABELS_OWN = {"server_mode"}
_LOG = logging.getLogger(__name__)


class LoRKDApp(MONAILabelApp):
    """One model for each department that has an expert, and ``lorkd`` for free text.

    Args:
        app_dir: of the app; its ``model`` holds the store where none is named.
        studies: folder or DICOMweb address of the images.
        conf: see ``CONF``.

    Raises:
        ValueError: the device is unknown or not there.
    """

    def __init__(self, app_dir: str, studies: str, conf: Mapping[str, str] | None) -> None:
        conf = dict(conf or {})
        for key in sorted(set(conf) - set(CONF) - _MONAI_LABELS_OWN):
            _LOG.warning("--conf %s is unknown and has no effect; known are %s", key, ", ".join(CONF))
        if Path(app_dir).resolve() != Path(__file__).resolve().parent:
            _LOG.warning("--app names %s, but what runs is %s: it comes first on the import path", app_dir, __file__)
        self.store = ExpertStore(conf.get("store") or default_store(Path(app_dir)))
        if not self.store.departments():
            _LOG.warning(
                "the store %s holds no expert; train one, or name another with --conf store", self.store.folder
            )
        self.predictor = Predictor(self.store, device=checked_device(conf.get("device"), option="--conf device"))
        super().__init__(
            app_dir=app_dir,
            studies=studies,
            conf=conf,
            name="LoRKD",
            description="Department experts for text-prompted 3D segmentation",
            version=__version__,
        )

    def init_infers(self) -> dict[str, InferTask]:
        """Makes the tasks of all departments; MONAI Label shows those that have an expert when it is asked."""
        turn = threading.Lock()
        tasks: dict[str, InferTask] = {each.id: DepartmentTask(each, self.predictor, turn) for each in departments()}
        return {**tasks, "lorkd": TextTask(self.predictor, turn)}

    def init_strategies(self) -> dict[str, Strategy]:
        """Makes what chooses the next image to annotate."""
        return {"random": Random(), "first": First()}

    def info(self) -> dict[str, Any]:
        """Tells clients what there is: MONAI Label's own entries, and ours under ``lorkd``."""
        ours = {
            "version": __version__,
            "device": str(self.predictor.device),
            "departments": [self._about(each) for each in departments()],
        }
        return {**super().info(), "lorkd": ours}

    def _about(self, department: Department) -> dict[str, Any]:
        revision = self.store.newest(department.id)
        structures: tuple[str, ...] = ()
        problem = None
        try:
            structures = self.predictor.structures(department.id)
        except ValueError as error:  # a damaged file of one department must not hide the others
            problem = str(error)
        return {
            "id": department.id,
            "name": department.name,
            "expert": revision is not None,
            "revision": revision,
            "structures": list(structures),
            "problem": problem,
        }

    def infer(self, request: dict[str, Any], datastore: Datastore | None = None) -> dict[str, Any]:
        """Runs a model on an image of the studies, or on a file that was uploaded.

        Raises:
            HTTPException: 404 for an unknown model or image; 400 for a request that cannot be met.
        """
        with client_errors():
            model, image = request.get("model"), request.get("image")
            if model not in self._infers:
                known = ", ".join(name for name, task in self._infers.items() if task.is_valid())
                raise HTTPException(404, f"model {model!r} is unknown; choose one of {known}")
            if not isinstance(image, str):
                raise ValueError(f"image {image!r} must be the id of an image; name one of the studies")
            if not os.path.exists(image) and not (datastore or self.datastore()).get_image_uri(image):
                raise FileNotFoundError(f"image {image!r} is not among the studies; choose one of them or upload it")
            return super().infer(request, datastore)

    def next_sample(self, request: dict[str, Any]) -> dict[str, Any]:
        """Chooses the next image to annotate; empty where every image has a label.

        Raises:
            HTTPException: 404 for an unknown strategy.
        """
        strategy = request.get("strategy")
        if strategy and strategy not in self._strategies:
            raise HTTPException(404, f"strategy {strategy!r} is unknown; choose one of {', '.join(self._strategies)}")
        return super().next_sample(request)


@contextmanager
def client_errors() -> Iterator[None]:
    """Says what is wrong with a request in a way that MONAI Label passes on; it hides other exceptions."""
    try:
        yield
    except FileNotFoundError as error:
        raise HTTPException(404, str(error)) from error
    except ValueError as error:
        raise HTTPException(400, str(error)) from error
    except MONAILabelException as error:
        raise HTTPException(400, error.msg) from error


def default_store(app_dir: Path) -> Path:
    """Gives the store in the app directory; the first time, the one that is shipped is copied there, whole or not."""
    folder = app_dir / "model" / "store"
    if folder.exists() or not _SHIPPED_STORE.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".store-"))
    try:
        shutil.copytree(_SHIPPED_STORE, draft / "store")
        os.rename(draft / "store", folder)
    except OSError:
        if not folder.is_dir():  # else another process was first
            raise
    finally:
        shutil.rmtree(draft)
    return folder
