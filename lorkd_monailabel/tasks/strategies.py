"""Which image is annotated next: MONAI Label's active learning strategies."""

import random
import re
import time
from typing import Any

from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.strategy import Strategy


class Random(Strategy):
    """Any unlabelled image; the longer ago it was served, the likelier."""

    def __init__(self) -> None:
        super().__init__("Any image without a label, those never served first")

    def __call__(self, request: dict[str, Any], datastore: Datastore) -> dict[str, Any] | None:
        """Picks an image: its id and weight (seconds since it was served); None where every image has a label."""
        images = _unlabelled(request, datastore)
        if not images:
            return None
        now = int(time.time())
        # one second more: images that were all served within this second would have no weight at all
        weights = [1 + max(0, now - _served(image, request, datastore)) for image in images]
        chosen = random.choices(range(len(images)), weights=weights)[0]
        return {"id": images[chosen], "weight": weights[chosen]}


class First(Strategy):
    """The first unlabelled image by its id, numbers in their order: ``case 2`` before ``case 10``."""

    def __init__(self) -> None:
        super().__init__("The first image without a label, by its id")

    def __call__(self, request: dict[str, Any], datastore: Datastore) -> dict[str, Any] | None:
        """Picks an image: its id; None where every image has a label."""
        images = _unlabelled(request, datastore)
        return {"id": min(images, key=_natural)} if images else None


def _unlabelled(request: dict[str, Any], datastore: Datastore) -> list[str]:
    return list(datastore.get_unlabeled_images(request.get("label_tag"), request.get("labels")))


def _served(image: str, request: dict[str, Any], datastore: Datastore) -> int:
    """When this strategy last gave the image out, in seconds of Unix time; 0 for never."""
    info = datastore.get_image_info(image).get("strategy", {})
    return int(info.get(request["strategy"], {}).get("ts", 0))


def _natural(image: str) -> tuple[list[int | str], str]:
    parts = re.split(r"(\d+)", image)  # text and digits by turns, so that numbers meet numbers
    return [int(part) if index % 2 else part for index, part in enumerate(parts)], image
