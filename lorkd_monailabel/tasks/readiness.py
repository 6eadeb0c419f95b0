"""What could be trained now: the labels of each department, and what is missing where there are too few."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from monailabel.interfaces.datastore import Datastore

from lorkd_monailabel.tasks.train import FinetuneTask
from lorkd_monailabel.tasks.training.cases import SPLITS, Annotated, Reference, annotated, key_of, shortage
from lorkd_monailabel.tasks.training.options import TrainingOptions

_DEFAULTS = TrainingOptions()


@dataclass(frozen=True)
class Readiness:
    """Whether a department can be trained.

    Attributes:
        department: id.
        labels: images whose submitted label shows one of its structures.
        structures: name -> in how many of them.
        trainable: whether a training would begin.
        reason: one sentence where it would not.
    """

    department: str
    labels: int
    structures: dict[str, int]
    trainable: bool
    reason: str


def readiness(tasks: Iterable[FinetuneTask], datastore: Datastore, reference: Reference) -> list[Readiness]:
    """Look at the submitted labels; what a file shows is remembered until it changes.

    Raises:
        ValueError: what is known of earlier trainings is damaged.
    """
    shown = _shown(datastore, reference)
    found = []
    for task in tasks:
        own = [each for each in shown if each.of(task.department)]
        counts = Counter(name for each in own for name in each.of(task.department))
        reason = _reason(task, own, reference)
        found.append(Readiness(task.department, len(own), dict(counts), not reason, reason))
    return found


def _shown(datastore: Datastore, reference: Reference) -> list[Annotated]:
    found = []
    for image in datastore.get_labeled_images():
        try:
            shown = annotated(datastore, image, _DEFAULTS, reference)
        except (ValueError, OSError):  # a training would leave it out too, and say why
            continue
        found += [shown] if shown else []
    return found


def _reason(task: FinetuneTask, own: Iterable[Annotated], reference: Reference) -> str:
    if not task.is_valid():
        return task.refusal()
    return shortage(
        {each.subject for each in own},
        task.place.store.folder / SPLITS,
        share=_DEFAULTS.validation,
        key=key_of(reference),
        department=task.department,
    )
