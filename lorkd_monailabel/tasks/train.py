"""Training: a MONAI Label request -> cases of its datastore -> a revision of an expert, or a candidate.

MONAI Label runs these in a process of their own. What they have learned is saved on the way and when they are asked to
stop; the same request goes on from there.
"""

import os
import threading
import time
import uuid
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import Any

from filelock import FileLock, Timeout
from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.train import TrainTask

from lorkd_monailabel.audit import Audit
from lorkd_monailabel.departments import Department
from lorkd_monailabel.learning.training import Interrupted, stop_on_signal
from lorkd_monailabel.revisions import sweep_drafts
from lorkd_monailabel.tasks.training.decompose import decompose_foundation
from lorkd_monailabel.tasks.training.finetune import finetune_department
from lorkd_monailabel.tasks.training.options import DECOMPOSITION, TrainingOptions, options_of
from lorkd_monailabel.tasks.training.place import Place, Stop
from lorkd_monailabel.tasks.training.state import RunState, Teller, private_folder, read_state, train_stats

STOPPED = 130
"""Exit status of a training that was asked to stop."""

Request = dict[str, Any]
_DEFAULTS = {field.name: field.default for field in fields(TrainingOptions)}


class Training(TrainTask):
    """What all trainings do: check the request, tell how far they are, stop in good order.

    Args:
        name: of the task, by which MONAI Label knows it.
        place: of the training.
        audit: where publications are noted.
        description: for users.
        department: whose expert learns; empty for all.
    """

    def __init__(self, name: str, place: Place, audit: Audit, description: str, *, department: str = "") -> None:
        super().__init__(description)
        self.name = name
        self.place = place
        self.audit = audit
        self.department = department

    @abstractmethod
    def is_valid(self) -> bool:
        """Whether there is something to train now."""

    @abstractmethod
    def learn(
        self, options: TrainingOptions, datastore: Datastore, *, teller: Teller, stop: Stop
    ) -> dict[str, dict[str, Any]]:
        """Train; gives department -> what became of it."""

    @abstractmethod
    def refusal(self) -> str:
        """Say why it is not valid."""

    def known(self) -> dict[str, Any]:
        """Options and their defaults."""
        return {name: value for name, value in _DEFAULTS.items() if name not in DECOMPOSITION}

    def config(self) -> dict[str, Any]:
        """Options for users: MONAI Label's clients show them as a table and send them as they stand there."""
        return self.known()

    def stats(self) -> dict[str, Any]:
        """How the latest training of this task stands; empty before the first."""
        return train_stats(read_state(self.place.folder / f"{self.name}.json"))

    def check(self, request: Mapping[str, Any]) -> TrainingOptions:
        """Check a request.

        Raises:
            ValueError: there is nothing to train, or an option is not usable.
        """
        if not self.is_valid():
            raise ValueError(self.refusal())
        return options_of(request, known=self.known())

    def __call__(self, request: Request, datastore: Datastore) -> dict[str, Any]:
        """Trains on the labelled images of the datastore.

        Returns:
            The statistics, with what became of it.

        Raises:
            SystemExit: it was asked to stop, in a process of its own; what was learned is saved.
            ValueError: an option is not usable, there are too few cases, or this task is being trained already.
        """
        now = time.time()
        asked = RunState(str(request.get("run") or uuid.uuid4()), self.name, created=now)
        state = replace(
            asked,
            department=self.department,
            client=str(request.get("client_id") or "")[:100],
            state="running",
            began=now,
            pid=os.getpid(),
        )
        private_folder(self.place.folder)
        teller = Teller(self.place.folder, state)
        alone = threading.current_thread() is threading.main_thread()
        try:
            options = self.check(request)
            teller.tell()
            with self._lock(), stops() if alone else _never() as stop:
                sweep_drafts(self.place.store)
                # loaders of other processes would be forked off a server with all its threads
                own = options if alone else replace(options, workers=0)
                results = self.learn(own, datastore, teller=teller, stop=stop)
        except Interrupted as error:
            teller.tell(state="stopped", message=str(error), ended=time.time())
            raise SystemExit(STOPPED) from error
        except BaseException as error:
            teller.tell(state="failed", message=_sentence(error), ended=time.time())
            raise
        message = "; ".join(each["message"] for each in results.values())
        teller.tell(state="done", result=results, message=message, ended=time.time(), seconds_left=0.0)
        for department, result in results.items():
            self._note(teller.state, department, result)
        return self.stats()

    def _note(self, state: RunState, department: str, result: Mapping[str, Any]) -> None:
        action = "publish" if result["published"] else "keep candidate"
        told = {key: result[key] for key in ("revision", "candidate")}
        self.audit.record(action, client=state.client, department=department, training=state.id, **told)

    @contextmanager
    def _lock(self) -> Iterator[None]:
        lock = FileLock(self.place.folder / f".{self.name}.lock", timeout=0)
        try:
            lock.acquire()
        except Timeout as error:
            raise ValueError(f"{self.name} is being trained by another process; wait for its end") from error
        try:
            yield
        finally:
            lock.release()


class FinetuneTask(Training):
    """Retrains one department's expert; base and all other experts stay as they are.

    Args:
        department: whose expert.
        place: see ``Training``.
        audit: see ``Training``.
    """

    def __init__(self, department: Department, place: Place, audit: Audit) -> None:
        description = f"Retrain the expert of the department {department.name} on the labelled images"
        super().__init__(task_name(department.id), place, audit, description, department=department.id)

    def is_valid(self) -> bool:
        """Whether the department has an expert now."""
        return self.place.store.newest(self.department) is not None

    def refusal(self) -> str:
        """Name the departments that have one."""
        have = ", ".join(self.place.store.departments()) or "none"
        return f"{self.department} has no expert to retrain (experts exist for: {have}); run decompose first"

    def learn(
        self, options: TrainingOptions, datastore: Datastore, *, teller: Teller, stop: Stop
    ) -> dict[str, dict[str, Any]]:
        """See ``finetune_department``."""
        result = finetune_department(self.place, datastore, self.department, options, teller=teller, stop=stop)
        return {self.department: result}


class DecomposeTask(Training):
    """Makes a base and experts of the foundation that the server was told of.

    Args:
        place: see ``Training``.
        audit: see ``Training``.
    """

    def __init__(self, place: Place, audit: Audit) -> None:
        super().__init__("decompose", place, audit, "Make a base and experts of the foundation and the labelled images")

    def is_valid(self) -> bool:
        """Whether there is a foundation."""
        return self.place.foundation is not None and self.place.foundation.is_file()

    def refusal(self) -> str:
        """Say how to give one."""
        return f"there is no foundation at {self.place.foundation}; start the server with --conf foundation FILE"

    def known(self) -> dict[str, Any]:
        """Options and their defaults."""
        return dict(_DEFAULTS)

    def learn(
        self, options: TrainingOptions, datastore: Datastore, *, teller: Teller, stop: Stop
    ) -> dict[str, dict[str, Any]]:
        """See ``decompose_foundation``."""
        return decompose_foundation(self.place, datastore, options, teller=teller, stop=stop)


def task_name(department: str) -> str:
    """Give the name of the task that retrains a department's expert."""
    return f"finetune_{department}"


@contextmanager
def stops() -> Iterator[Callable[[], bool]]:
    """Turn SIGTERM, Ctrl+C and the end of the server into a question that is asked all the time."""
    server = os.getppid()
    with stop_on_signal() as asked:
        yield lambda: asked() or os.getppid() != server


@contextmanager
def _never() -> Iterator[Callable[[], bool]]:
    yield lambda: False


def _sentence(error: BaseException) -> str:
    if isinstance(error, ValueError | OSError):
        return str(error)
    return f"{type(error).__name__}: {error}".partition("\n")[0]
