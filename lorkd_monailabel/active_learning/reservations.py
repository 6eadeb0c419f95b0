"""Who annotates which case: one for each annotator, for a while, so that no two get the same.

They stand in a file, so that a server that starts again knows them. The file names no image: a reference stands there.
"""

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from lorkd_monailabel.json_files import read_json, write_json

MINUTES = 30.0
MOST_MINUTES = 7 * 24 * 60.0

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reservation:
    """That an annotator has a case.

    Attributes:
        client: who has it.
        asked: for what, such as a strategy and a department; another wish gives it up.
        expires: in seconds of Unix time.
    """

    client: str
    asked: str
    expires: float


class Reservations:
    """All reservations of a server's studies.

    Args:
        path: of the file.
        reference: image id -> what stands for it in the file.
        seconds: how long a reservation lasts after it was last asked for.
        clock: gives seconds of Unix time.
    """

    def __init__(
        self,
        path: Path,
        *,
        reference: Callable[[str], str],
        seconds: float = MINUTES * 60,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.path = path
        self.reference = reference
        self.seconds = seconds
        self._clock = clock

    def of(self, images: Iterable[str]) -> dict[str, Reservation]:
        """Give the images that somebody has, and who."""
        known = self._read()
        found = {image: known.get(self.reference(image)) for image in images} if known else {}
        return {image: each for image, each in found.items() if each}

    def next(
        self,
        client: str,
        asked: str,
        images: Sequence[str],
        choose: Callable[[Sequence[str]], str | None],
        *,
        skip: bool = False,
    ) -> tuple[str, Reservation | None] | None:
        """Give an annotator a case that nobody else has: the one that he has already, or a new one.

        Args:
            client: the annotator; nobody can tell apart those who give no name, so they get what nobody has reserved,
                but no reservation.
            asked: see ``Reservation``.
            images: that are not labelled yet.
            choose: given those that nobody has, chooses one of them; None for none.
            skip: give up the case that he has, and do not choose it now.

        Returns:
            The image, and its reservation; None where nothing is left.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(self._lock):
            before = self._read()
            keys = {image: self.reference(image) for image in images}
            own = {image for image, key in keys.items() if client and key in before and before[key].client == client}
            held = next((image for image in own if before[keys[image]].asked == asked), None)
            taken = None if skip else held
            if taken is None:
                free = [each for each in images if keys[each] not in before or each in own]
                taken = choose([each for each in free if each not in own] if skip else free)
            if not client:
                return None if taken is None else (taken, None)
            after = {key: each for key, each in before.items() if each.client != client}
            reserved = Reservation(client, asked, self._clock() + self.seconds)
            self._write(after if taken is None else {**after, keys[taken]: reserved})
            return None if taken is None else (taken, reserved)

    def release(self, image: str) -> Reservation | None:
        """End the reservation of an image, and give it; None where there was none."""
        if not self.path.exists():
            return None
        with FileLock(self._lock):
            known = self._read()
            released = known.pop(self.reference(image), None)
            if released:
                self._write(known)
            return released

    @property
    def _lock(self) -> Path:
        return self.path.with_name(f".{self.path.name}.lock")

    def _read(self) -> dict[str, Reservation]:
        """Read those that have not expired. A file that can't be read is worth no more than what is asked for anew."""
        try:
            known = {key: _reservation(value) for key, value in read_json(self.path).items()}
        except ValueError as error:
            _LOG.warning("reservations are forgotten: %s", error)
            return {}
        return {key: each for key, each in known.items() if each.expires > self._clock()}

    def _write(self, known: dict[str, Reservation]) -> None:
        write_json(self.path, {key: asdict(each) for key, each in known.items()})


def reservation_minutes(value: str | None) -> float:
    """Read ``--conf reservation_minutes``.

    Raises:
        ValueError: it is no number of minutes.
    """
    try:
        minutes = MINUTES if value is None else float(value)
    except ValueError:
        minutes = 0.0
    if not 0 < minutes <= MOST_MINUTES:
        raise ValueError(f"--conf reservation_minutes {value} must be over 0 and at most {MOST_MINUTES:g}, a week")
    return minutes


def _reservation(value: Any) -> Reservation:
    try:
        return Reservation(str(value["client"]), str(value["asked"]), float(value["expires"]))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{str(value)[:60]} is no reservation") from error
