"""Scoring methods of MONAI Label: what is asked for by ``POST /scoring/{method}``, and by nobody else.

MONAI Label runs all of them after each image that it gives out and after each training, in processes of their own. Ours
answer at once: what takes long is done in the background, where it gives way to requests.
"""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.scoring import ScoringMethod

from lorkd_monailabel.active_learning.ranking import BOTH
from lorkd_monailabel.active_learning.scoring import MEASURES
from lorkd_monailabel.case_lists.datastore import told_values
from lorkd_monailabel.learning.metrics import dice
from lorkd_monailabel.tasks.case_queue import CaseQueue
from lorkd_monailabel.tasks.options import Request, choice, text
from lorkd_monailabel.volumes import read_labels

_LOG = logging.getLogger(__name__)


class Uncertainty(ScoringMethod):
    """Begins to find out the scores by which cases are given out.

    Args:
        queue: of the cases.
    """

    def __init__(self, queue: CaseQueue) -> None:
        super().__init__("Find out how sure the expert is of each unlabelled image, in the background")
        self.queue = queue

    def __call__(self, request: Request, datastore: Datastore) -> dict[str, Any]:
        """Says how many cases are scored by now. Read from the request: ``department`` and ``measure``."""
        measure = choice(request, "measure", MEASURES)
        department = self.queue.department(request, datastore)
        self.queue.score(datastore, department, strategy=BOTH, measure=measure)
        ranking = self.queue.ranking(datastore, department, strategy=BOTH, measure=measure, limit=1)
        return {
            "department": department,
            "measure": measure,
            "reason": ranking.reason,
            "scored": ranking.scored,
            "pool": ranking.pool,
        }


class Agreement(ScoringMethod):
    """How much annotators changed: Dice of two labels of each image, structure by structure, and its mean.

    Args:
        reference: image -> what stands for it in the log.
    """

    def __init__(self, reference: Callable[[str], str]) -> None:
        super().__init__("Dice of the submitted label and the one that the annotator began with")
        self.reference = reference

    def __call__(self, request: Request, datastore: Datastore) -> dict[str, float]:
        """Gives image -> mean Dice, and notes it in the image's information.

        Read from the request: the tags ``y`` (final) and ``y_pred`` (original). An image is left out that lacks one of
        the labels, or whose labels don't say what their values mean.
        """
        tags = text(request, "y") or "final", text(request, "y_pred") or "original"
        found = {}
        for image in datastore.list_images():
            if not set(tags) <= set(datastore.get_labels_by_image_id(image)):
                continue
            try:
                found[image] = _agreement(*(_masks(datastore, image, tag) for tag in tags))
            except (ValueError, OSError) as error:
                reference = self.reference(image)  # as the name of a file may be a patient's
                _LOG.warning("the labels of %s are not compared: %s", reference, str(error).replace(image, reference))
                continue
            datastore.update_image_info(image, {"dice": found[image]})
        return found


def _masks(datastore: Datastore, image: str, tag: str) -> dict[str, np.ndarray]:
    array, _ = read_labels(Path(datastore.get_label_uri(image, tag)))
    present = {int(value) for value in np.unique(array) if value}
    told = told_values(datastore.get_label_info(image, tag), present, f"image {image!r}")
    return {name: np.isin(array, values) for name, values in told.items() if present.intersection(values)}


def _agreement(drawn: Mapping[str, np.ndarray], predicted: Mapping[str, np.ndarray]) -> float:
    """Give the mean over the structures that one of them has.

    Raises:
        ValueError: there is none, or the labels are of different shapes.
    """
    masks = [*drawn.values(), *predicted.values()]
    if not masks or len({mask.shape for mask in masks}) > 1:
        raise ValueError("the labels name no structure that they show, or are of different shapes")
    nothing = np.zeros_like(masks[0])
    return fmean(dice(drawn.get(name, nothing), predicted.get(name, nothing)) for name in {**drawn, **predicted})
