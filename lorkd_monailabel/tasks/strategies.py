"""Which image is annotated next: MONAI Label's active learning strategies."""

import random
import time
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.strategy import Strategy

from lorkd_monailabel.active_learning.ranking import BOTH, DIVERSITY, UNCERTAINTY, natural
from lorkd_monailabel.active_learning.scoring import MEASURES
from lorkd_monailabel.tasks.case_queue import CaseQueue, told
from lorkd_monailabel.tasks.options import Request, choice, client_id, text

Choice = dict[str, Any]
"""``id`` of an image, and why it is that one."""

_DESCRIPTIONS = {
    BOTH: "The image that the expert is least sure of and that is least like the labelled ones (recommended)",
    UNCERTAINTY: "The image that the expert is least sure of",
    DIVERSITY: "The image that is least like the labelled ones",
}


class Reserving(Strategy):
    """What all strategies do: give each annotator a case of his own.

    The answer to a request is the case that its client has already, if it asked for the same and the case is still
    unlabelled; else a new one, which is then reserved. Read from the request: ``client_id``, ``skip`` (true gives the
    case back and takes another one), ``label_tag`` and ``labels``.

    Args:
        queue: of the cases.
        description: for users.
    """

    def __init__(self, queue: CaseQueue, description: str) -> None:
        super().__init__(description)
        self.queue = queue

    @abstractmethod
    def wish(self, request: Request, datastore: Datastore) -> str:
        """Say what the request asks for, in words that stay the same as long as its case shall."""

    @abstractmethod
    def chooser(self, request: Request, datastore: Datastore) -> Callable[[Sequence[str]], Choice]:
        """Give what chooses one of some images, at least one."""

    def __call__(self, request: Request, datastore: Datastore) -> Choice | None:
        """Picks an image; None where every image has a label, or somebody who works on it.

        Raises:
            ValueError: an option is not usable.
        """
        images = list(datastore.get_unlabeled_images(request.get("label_tag"), request.get("labels")))
        asked, choose = self.wish(request, datastore), self.chooser(request, datastore)
        chosen: list[Choice] = []

        def first(free: Sequence[str]) -> str | None:
            if not free:
                return None
            chosen.append(choose(free))
            return str(chosen[-1]["id"])

        found = self.queue.reservations.next(client_id(request), asked, images, first, skip=request.get("skip") is True)
        if found is None:
            return None
        image, reservation = found
        held = {
            "id": image,
            "lorkd": {"strategy": request.get("strategy"), "reason": "this client has the case already"},
        }
        result: Choice = chosen[-1] if chosen else held
        about = {**result.get("lorkd", {}), "reserved_until": reservation.expires if reservation else None}
        return {**result, "lorkd": about}


class Random(Reserving):
    """Any unlabelled image; the longer ago it was served, the likelier."""

    def __init__(self, queue: CaseQueue) -> None:
        super().__init__(queue, "Any image without a label, those never served first")

    def wish(self, request: Request, datastore: Datastore) -> str:
        """Nothing more than that."""
        return "random"

    def chooser(self, request: Request, datastore: Datastore) -> Callable[[Sequence[str]], Choice]:
        """Weighs images by the seconds since they were served."""

        def choose(images: Sequence[str]) -> Choice:
            now = int(time.time())
            # one second more: images that were all served within this second would have no weight at all
            weights = [1 + max(0, now - _served(image, request, datastore)) for image in images]
            index = random.choices(range(len(images)), weights=weights)[0]
            return {"id": images[index], "weight": weights[index]}

        return choose


class First(Reserving):
    """The first unlabelled image by its id, numbers in their order: ``case 2`` before ``case 10``."""

    def __init__(self, queue: CaseQueue) -> None:
        super().__init__(queue, "The first image without a label, by its id")

    def wish(self, request: Request, datastore: Datastore) -> str:
        """Nothing more than that."""
        return "first"

    def chooser(self, request: Request, datastore: Datastore) -> Callable[[Sequence[str]], Choice]:
        """Sorts by id."""
        return lambda images: {"id": min(images, key=natural)}


class ByScores(Reserving):
    """The first of the order that scores give, see ``active_learning.ranking``; it never waits for scores.

    Read from the request, besides what all strategies read: ``department`` and ``measure``.

    Args:
        queue: of the cases.
        strategy: of ``active_learning.ranking``.
    """

    def __init__(self, queue: CaseQueue, strategy: str) -> None:
        super().__init__(queue, _DESCRIPTIONS[strategy])
        self.strategy = strategy

    def wish(self, request: Request, datastore: Datastore) -> str:
        """The strategy, and the department if one is named."""
        measure = "" if self.strategy == DIVERSITY else choice(request, "measure", MEASURES)
        return " ".join(filter(None, (self.strategy, measure, text(request, "department"))))

    def chooser(self, request: Request, datastore: Datastore) -> Callable[[Sequence[str]], Choice]:
        """Begins to score in the background, and ranks by what is known."""
        measure = choice(request, "measure", MEASURES)
        department = self.queue.department(request, datastore)
        self.queue.score(datastore, department, strategy=self.strategy, measure=measure)

        def choose(images: Sequence[str]) -> Choice:
            ranking = self.queue.ranking(
                datastore, department, strategy=self.strategy, measure=measure, images=images, limit=1
            )
            case = ranking.cases[0]
            return {"id": case.image, "lorkd": {"department": department, "measure": measure, **told(ranking, case)}}

        return choose


def _served(image: str, request: Request, datastore: Datastore) -> int:
    """When this strategy last gave the image out, in seconds of Unix time; 0 for never."""
    info = datastore.get_image_info(image).get("strategy", {})
    return int(info.get(request["strategy"], {}).get("ts", 0))
