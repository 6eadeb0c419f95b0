"""The queue of cases to annotate: what is unlabelled, in which order, and who has what; of one server's studies."""

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from fastapi import HTTPException
from monailabel.interfaces.datastore import Datastore

from lorkd_monailabel.active_learning.background import Background
from lorkd_monailabel.active_learning.ranking import DIVERSITY, ORDER, Known, Ranked, ranked
from lorkd_monailabel.active_learning.reservations import Reservations
from lorkd_monailabel.active_learning.scores import Scored, ScoreFiles
from lorkd_monailabel.active_learning.scoring import FEATURE, Scoring
from lorkd_monailabel.departments import department as find_department
from lorkd_monailabel.departments import departments
from lorkd_monailabel.jobs import Jobs
from lorkd_monailabel.memory import announced
from lorkd_monailabel.tasks.options import Request, text
from lorkd_monailabel.volumes import read_volume

POOL = 200
"""Images at a time that are scored for a department, of the unlabelled and of the labelled ones: an archive may have a
hundred thousand, and each is fetched and read. Which ones is as good as chance, and stays the same."""

FINAL = "final"

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Ranking:
    """The unlabelled cases in their order.

    Attributes:
        strategy: that was followed; another one than was asked for where its scores are missing.
        reason: one sentence.
        scored: how many of the cases that are to be scored are.
        pool: how many are to be scored.
        cases: in their order.
    """

    strategy: str
    reason: str
    scored: int
    pool: int
    cases: tuple[Ranked, ...]


class CaseQueue:
    """Chooses cases, scores them when nobody else needs the device, and knows who has which.

    Args:
        scoring: of volumes.
        jobs: of the server.
        folder: of the scores and reservations; made when it is needed.
        reference: image -> what stands for it in files and in the log.
        seconds: that a reservation lasts.
    """

    def __init__(
        self, scoring: Scoring, jobs: Jobs, folder: Path, *, reference: Callable[[str], str], seconds: float
    ) -> None:
        self.scoring = scoring
        self.reference = reference
        self.reservations = Reservations(folder / "reservations.json", reference=reference, seconds=seconds)
        self.files = ScoreFiles(folder / "scores")
        self.background = Background(jobs, str(scoring.predictor.device))
        self._failed: dict[tuple[str, str], str] = {}

    def department(self, request: Request, datastore: Datastore) -> str:
        """Give the department that is asked for; else the one with an expert that the fewest labels show.

        An image is labelled or not, whatever on it is; so the department with most left to do is the one whose
        structures are named in the fewest labels. Empty where there is no expert at all.

        Raises:
            ValueError: the department is unknown.
        """
        asked = text(request, "department")
        if asked:
            return find_department(asked).id
        known = self.scoring.store.departments()
        if len(known) < 2:
            return known[0] if known else ""
        drawn = dict.fromkeys(known, 0)
        for image in datastore.get_labeled_images():
            names = {str(each.get("name", "")) for each in _label_info(datastore, image)}
            for department in departments():
                if department.id in drawn and any(each.name in names for each in department.structures):
                    drawn[department.id] += 1
        return min(known, key=drawn.__getitem__)

    def ranking(
        self,
        datastore: Datastore,
        department: str,
        *,
        strategy: str,
        measure: str,
        images: Sequence[str] | None = None,
        limit: int | None = None,
    ) -> Ranking:
        """Put unlabelled images into order, by what is known now.

        Args:
            datastore: of the images.
            department: for whose expert; empty for none.
            strategy: see ``active_learning.ranking``.
            measure: of uncertainty.
            images: that nobody works on; all other unlabelled ones are centres. None for all that nobody has.
            limit: most cases.

        Raises:
            ValueError: the measure needs what is not there.
        """
        unlabelled = datastore.get_unlabeled_images()
        free = set(unlabelled) - set(self.reservations.of(unlabelled)) if images is None else set(images)
        lacking = self.lacking(department)
        if lacking:
            order = [Known(image) for image in sorted(free)]
            return Ranking(ORDER, lacking, 0, 0, tuple(ranked(order, [], strategy=ORDER, limit=limit)[1]))
        made = {name: self.scoring.made_of(name, department) for name in {measure, FEATURE}}
        known = {image: self._known(datastore, department, image, measure, made) for image in unlabelled}
        labelled = [
            self._known(datastore, department, image, measure, made) for image in datastore.get_labeled_images()
        ]
        centres = [each.feature for each in (*labelled, *known.values()) if each.feature and each.image not in free]
        followed, cases = ranked(
            [known.get(each, Known(each)) for each in free], centres, strategy=strategy, limit=limit
        )
        pool = self._pool(unlabelled)
        scored = sum(
            each.feature is not None and (strategy == DIVERSITY or each.uncertainty is not None)
            for each in map(known.__getitem__, pool)
        )
        reason = _reason(followed, strategy, measure, scored, len(pool))
        return Ranking(followed, reason, scored, len(pool), tuple(cases))

    def lacking(self, department: str) -> str:
        """Say why cases can't be scored; nothing where they can."""
        if not department:
            return "there is no expert yet, so cases come in the order of their names"
        if self.scoring.store.newest(department) is None:
            return f"{department} has no expert yet, so cases come in the order of their names"
        return ""

    def score(self, datastore: Datastore, department: str, *, strategy: str, measure: str) -> None:
        """Let the scores that are missing be found out while nothing else is to be done; returns at once."""
        if self.lacking(department):
            return
        names = (FEATURE,) if strategy == DIVERSITY else (FEATURE, measure)
        made = {name: self.scoring.made_of(name, department) for name in names}
        labelled = set(datastore.get_labeled_images())
        works = []
        for image in self._pool(datastore.get_unlabeled_images()) + self._pool(sorted(labelled)):
            wanted = {FEATURE: made[FEATURE]} if image in labelled else made
            missing = self._missing(datastore, department, image, wanted)
            if missing:
                works.append(partial(self._score, datastore, department, image, missing))
        self.background.want(self.title(department, measure), works)

    def title(self, department: str, measure: str) -> str:
        """Name the job that scores."""
        return f"scores of cases for {department}, {measure}"

    def saved(self, image: str, datastore: Datastore) -> None:
        """End the reservation of an image that has its final label now."""
        if FINAL in datastore.get_labels_by_image_id(image):
            self.reservations.release(image)

    def _known(self, datastore: Datastore, department: str, image: str, measure: str, made: Mapping[str, str]) -> Known:
        scores = self.files.get(department, self.reference(image))
        stamp = _stamp(datastore.get_image_info(image)) if scores.values else ""
        uncertainty = scores.get(measure, f"{made[measure]} {stamp}")
        feature = scores.get(FEATURE, f"{made[FEATURE]} {stamp}")
        return Known(
            image,
            uncertainty if isinstance(uncertainty, float) else None,
            feature if isinstance(feature, tuple) else None,
        )

    def _missing(self, datastore: Datastore, department: str, image: str, wanted: Mapping[str, str]) -> dict[str, str]:
        scores, stamp = self.files.get(department, self.reference(image)), _stamp(datastore.get_image_info(image))
        return {
            name: made
            for name, made in wanted.items()
            if scores.get(name, f"{made} {stamp}") is None and self._failed.get((image, department)) != stamp
        }

    def _score(
        self,
        datastore: Datastore,
        department: str,
        image: str,
        missing: Mapping[str, str],
        go_on: Callable[[int, int], bool],
    ) -> None:
        """Score an image; where that fails it is left out, for as long as its file and the server stay the same."""
        stamp = ""
        try:
            stamp = _stamp(datastore.get_image_info(image))
            path = Path(datastore.get_image_uri(image))
            self.scoring.predictor.check_memory(announced(path), self.scoring.targets(department))
            volume = read_volume(path)
            found: dict[str, float | tuple[float, ...]] = {}
            for name in missing:
                if name == FEATURE:
                    found[name] = self.scoring.feature(volume, department, go_on)
                else:
                    found[name] = self.scoring.measure(name, volume, department, go_on)
            stamp = _stamp(datastore.get_image_info(image))
            scored = {name: Scored(f"{missing[name]} {stamp}", value) for name, value in found.items()}
            self.files.put(department, self.reference(image), scored)
        except (ValueError, OSError, RuntimeError, MemoryError, HTTPException) as error:
            self._failed[image, department] = stamp
            reference = self.reference(image)  # as the name of a file may be a patient's
            _LOG.warning("image %s is not scored: %s", reference, str(error).replace(image, reference))

    def _pool(self, images: Sequence[str]) -> list[str]:
        return sorted(images, key=self.reference)[:POOL]


def told(ranking: Ranking, case: Ranked) -> dict[str, Any]:
    """Describe the choice of a case for its answer."""
    return {
        **{name: value for name, value in asdict(case).items() if name != "image"},
        "strategy": ranking.strategy,
        "reason": ranking.reason,
        "scored": ranking.scored,
        "pool": ranking.pool,
    }


def _reason(followed: str, asked: str, measure: str, scored: int, pool: int) -> str:
    progress = f"{scored} of {pool} cases are scored"
    if followed == asked:
        return progress
    instead = "the order of their names" if followed == ORDER else followed
    return f"{progress}, which is not enough for {asked} by {measure}, so {instead} stands in"


def _stamp(info: Mapping[str, Any]) -> str:
    """Tell one content of an image from another: by its file's time and size, before it is there by the catalogue's."""
    try:
        status = os.stat(str(info.get("path", "")))
    except OSError:
        return f"added {info.get('ts', 0)}"
    return f"file {status.st_mtime_ns} {status.st_size}"


def _label_info(datastore: Datastore, image: str) -> list[dict[str, Any]]:
    found = datastore.get_label_info(image, FINAL).get("label_info", [])
    return [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []
