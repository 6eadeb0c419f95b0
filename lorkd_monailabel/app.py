"""The MONAI Label app: ``--conf`` -> store, predictor, tasks; ``/info/`` tells what there is.

The server makes one instance, and each process that it starts for training makes another: nothing heavy happens here.
"""

import hashlib
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from fastapi import HTTPException
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.exception import MONAILabelException
from monailabel.interfaces.tasks.infer_v2 import InferTask
from monailabel.interfaces.tasks.scoring import ScoringMethod
from monailabel.interfaces.tasks.strategy import Strategy
from monailabel.interfaces.tasks.train import TrainTask

from lorkd_monailabel import __version__
from lorkd_monailabel.active_learning.ranking import STRATEGIES
from lorkd_monailabel.active_learning.reservations import reservation_minutes
from lorkd_monailabel.active_learning.scoring import Scoring
from lorkd_monailabel.audit import Audit
from lorkd_monailabel.departments import Department, departments
from lorkd_monailabel.devices import checked_device
from lorkd_monailabel.jobs import Jobs
from lorkd_monailabel.memory import announced
from lorkd_monailabel.predictor import Predictor
from lorkd_monailabel.process import tune
from lorkd_monailabel.shipped import store_of_app
from lorkd_monailabel.sliding_window import Cancelled
from lorkd_monailabel.sources.opening import open_studies
from lorkd_monailabel.sources.uploads import with_volume
from lorkd_monailabel.store import ExpertStore
from lorkd_monailabel.tasks.aliases import aliases_of, with_aliases
from lorkd_monailabel.tasks.case_queue import CaseQueue
from lorkd_monailabel.tasks.infer import DepartmentTask, TextTask
from lorkd_monailabel.tasks.last_volume import LastVolume
from lorkd_monailabel.tasks.scoring import Agreement, Uncertainty
from lorkd_monailabel.tasks.strategies import ByScores, First, Random
from lorkd_monailabel.tasks.train import DecomposeTask, FinetuneTask, Training
from lorkd_monailabel.tasks.training.place import Place
from lorkd_monailabel.tasks.training.runs import Runs, take_over

CONF = {
    "store": "folder of bases and experts; model/store in the app directory, at first a copy of the shipped one",
    "device": "torch device of the networks; cuda where there is one, else cpu",
    "training": "folder of unfinished trainings and prepared cases; model/training in the app directory",
    "foundation": "file of the foundation that the task decompose takes apart; without it there is no such task",
    "reservation_minutes": "how long an annotator has a case that was given out, unless it is asked for again; 30",
    "aliases": "other names of models, train tasks, strategies and scoring methods: NAME=TASK, …",
    "tokens": "file of the tokens that requests need; without it this machine alone is served",
    "open": "true serves other machines without tokens",
    "allow": "parts of MONAI Label that are off by default: proxy, models, reload",
    "origins": "web pages that may use the server from a browser",
    "max_upload_mib": "most MiB of an upload",
    "max_params_kib": "most KiB of the options of a request",
}
_MONAI_LABELS_OWN = {"server_mode"}
_LOG = logging.getLogger(__name__)


class LoRKDApp(MONAILabelApp):
    """One model for each department that has an expert, and ``lorkd`` for free text.

    Args:
        app_dir: of the app; its ``model`` holds the store where none is named.
        studies: folder or DICOMweb address of the images.
        conf: see ``CONF``.

    Raises:
        ValueError: the device is unknown or not there, or the aliases are none.
    """

    queue: CaseQueue | None = None  # where the operator switched active learning off

    def __init__(self, app_dir: str, studies: str, conf: Mapping[str, str] | None) -> None:
        tune()
        conf = dict(conf or {})
        for key in sorted(set(conf) - set(CONF) - _MONAI_LABELS_OWN):
            _LOG.warning("--conf %s is unknown and has no effect; known are %s", key, ", ".join(CONF))
        if (Path(app_dir) / "app.py").exists() and Path(app_dir).resolve() != Path(__file__).resolve().parent:
            _LOG.warning("--app names %s, but what runs is %s: it comes first on the import path", app_dir, __file__)
        self.store = ExpertStore(conf.get("store") or store_of_app(Path(app_dir)))
        if not self.store.departments():
            _LOG.warning("the store %s holds no expert; train one, or name another (--conf store)", self.store.folder)
        self.audit = Audit(self.store.folder / "audit.jsonl")
        self.predictor = Predictor(self.store, device=checked_device(conf.get("device"), option="--conf device"))
        self.jobs = Jobs()
        self.last = LastVolume()
        self.aliases = aliases_of(conf.get("aliases", ""))
        super().__init__(
            app_dir=app_dir,
            studies=studies,
            conf=conf,
            name="LoRKD",
            description="Department experts for text-prompted 3D segmentation",
            version=__version__,
        )
        self._auto_update_scoring = False  # what our strategies need is scored when somebody asks for it

    def init_datastore(self) -> Datastore:
        """Opens the studies: our own form of folders and of DICOMweb archives, MONAI Label's of XNAT and DSA."""
        return open_studies(self.studies) or super().init_datastore()

    def init_infers(self) -> dict[str, InferTask]:
        """Makes the tasks of all departments; MONAI Label shows those that have an expert when it is asked."""
        tasks: dict[str, InferTask] = {
            each.id: DepartmentTask(each, self.predictor, self.jobs, self.last) for each in departments()
        }
        return with_aliases({**tasks, "lorkd": TextTask(self.predictor, self.jobs, self.last)}, self.aliases)

    def init_trainers(self) -> dict[str, TrainTask]:
        """Makes the train tasks; MONAI Label shows those that have something to train when it is asked."""
        folder = Path(self.conf.get("training") or Path(self.app_dir) / "model" / "training").resolve()
        place = Place(
            store=self.store,
            folder=folder,
            device=torch.device(self.predictor.device),
            reference=self.audit.reference,
            foundation=Path(self.conf["foundation"]).resolve() if self.conf.get("foundation") else None,
        )
        tasks = [*(FinetuneTask(each, place, self.audit) for each in departments()), DecomposeTask(place, self.audit)]
        self.runs = Runs(folder, app_dir=self.app_dir, studies=self.studies, conf=self.conf, check=self.check_training)
        take_over(self.runs)
        return with_aliases({task.name: task for task in tasks}, self.aliases)

    def check_training(self, request: Mapping[str, Any]) -> None:
        """Refuses a training before a process is started for it.

        Raises:
            ValueError: there is no such task, nothing to train, an option is not usable, or there are too few labels.
        """
        task = self._trainers.get(request.get("model"))
        if not isinstance(task, Training):
            raise ValueError(
                f"there is no train task {request.get('model')!r}; choose one of {', '.join(self._trainers)}"
            )
        tags = task.check(request).tag_list
        labelled = len(self.datastore().get_labeled_images()) if tags == ("final",) else 2
        if labelled < 2:
            raise ValueError(
                f"{labelled} of the images {'has' if labelled == 1 else 'have'} a submitted label, but one to train on "
                "and one to validate on are needed; label and submit more"
            )

    def init_strategies(self) -> dict[str, Strategy]:
        """Makes what chooses the next image to annotate, and knows who has which."""
        self.queue = queue = CaseQueue(
            Scoring(self.predictor, foundation=Path(self.conf["foundation"]) if self.conf.get("foundation") else None),
            self.jobs,
            # one store may serve several studies
            self.store.folder / "active_learning" / hashlib.sha256(self.studies.encode()).hexdigest()[:16],
            reference=self.audit.reference,
            seconds=60 * reservation_minutes(self.conf.get("reservation_minutes")),
        )
        by_scores = {name: ByScores(queue, name) for name in STRATEGIES}
        return with_aliases({"random": Random(queue), "first": First(queue), **by_scores}, self.aliases)

    def init_scoring_methods(self) -> dict[str, ScoringMethod]:
        """Makes what a client may ask to be scored."""
        methods: dict[str, ScoringMethod] = {"dice": Agreement(self.audit.reference)}
        if self.queue:
            methods["uncertainty"] = Uncertainty(self.queue)
        return with_aliases(methods, self.aliases)

    def on_save_label(self, image_id: str, label_id: str) -> None:
        """Ends the reservation of an image that has its final label now."""
        if self.queue:
            self.queue.saved(image_id, self.datastore())

    def info(self) -> dict[str, Any]:
        """Tells clients what there is: MONAI Label's own entries, and ours under ``lorkd``."""
        ours = {
            "version": __version__,
            "device": str(self.predictor.device),
            "departments": [self._about(each) for each in departments()],
        }
        told = super().info()
        trainers = {name: about for name, about in told["trainers"].items() if self._trainers[name].is_valid()}
        # the stock plug-in shows the first one's, so the latest comes first
        stats = {name: each for name, each in told["train_stats"].items() if each}
        latest = dict(sorted(stats.items(), key=lambda item: item[1]["lorkd"]["created"], reverse=True))
        return {**told, "trainers": trainers, "train_stats": latest, "lorkd": ours}

    def _about(self, department: Department) -> dict[str, Any]:
        revision = self.store.newest(department.id)
        structures: tuple[str, ...] = ()
        problem = None
        try:
            revision = self.store.served(department.id)
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
            HTTPException: 404 for an unknown model or image; 400 for a request that cannot be met; 409 for a job that
                was cancelled.
        """
        with client_errors():
            request = with_volume(request)
            model, image = request.get("model"), request.get("image")
            if model not in self._infers:
                known = ", ".join(name for name, task in self._infers.items() if task.is_valid())
                raise HTTPException(404, f"model {model!r} is unknown; choose one of {known}")
            if not isinstance(image, str):
                raise ValueError(f"image {image!r} must be the id of an image; name one of the studies")
            if not os.path.exists(image) and not (datastore or self.datastore()).get_image_uri(image):
                raise FileNotFoundError(f"image {image!r} is not among the studies; choose one of them or upload it")
            return super().infer(request, datastore)

    def train(self, request: dict[str, Any]) -> dict[str, Any]:
        """Trains in this process; MONAI Label starts one for it unless a client asks for none.

        Raises:
            HTTPException: 400 for a request that cannot be met.
        """
        with client_errors():
            return super().train(request)

    def scoring(self, request: dict[str, Any], datastore: Datastore | None = None) -> dict[str, Any]:
        """Runs a scoring method.

        Raises:
            HTTPException: 400 for a request that cannot be met.
        """
        with client_errors():
            return super().scoring(request, datastore)

    def foresee(self, image: str | Path) -> None:
        """Read an image ahead that a client was given, or has sent: it will ask about it."""
        path = Path(image)
        self.last.ahead(path, lambda: self.predictor.check_memory(announced(path), ()))

    def next_sample(self, request: dict[str, Any]) -> dict[str, Any]:
        """Chooses the next image to annotate; empty where every image has a label.

        Raises:
            HTTPException: 404 for an unknown strategy, 400 for a request that cannot be met.
        """
        strategy = request.get("strategy")
        if strategy and strategy not in self._strategies:
            raise HTTPException(404, f"strategy {strategy!r} is unknown; choose one of {', '.join(self._strategies)}")
        with client_errors():
            chosen = super().next_sample(request)
        if chosen.get("path"):
            self.foresee(chosen["path"])
        return chosen


@contextmanager
def client_errors() -> Iterator[None]:
    """Says what is wrong with a request in a way that MONAI Label passes on; it hides other exceptions."""
    try:
        yield
    except FileNotFoundError as error:
        raise HTTPException(404, str(error)) from error
    except ValueError as error:
        raise HTTPException(400, str(error)) from error
    except Cancelled as error:
        raise HTTPException(409, str(error)) from error
    except MONAILabelException as error:
        raise HTTPException(400, error.msg) from error
