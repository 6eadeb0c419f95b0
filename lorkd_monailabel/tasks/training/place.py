"""What every training of the server has around it: store, folder, device, and cases that are ready to learn from."""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from monailabel.interfaces.datastore import Datastore

from lorkd_monailabel.devices import has_fast_bf16
from lorkd_monailabel.learning.cases import Case
from lorkd_monailabel.learning.distributed import World
from lorkd_monailabel.learning.engine import Engine
from lorkd_monailabel.learning.losses import Objective
from lorkd_monailabel.learning.prepared import MappedArray, PreparedCase, prepare, sweep_drafts
from lorkd_monailabel.learning.samples import Samples
from lorkd_monailabel.learning.training import Interrupted
from lorkd_monailabel.store import ExpertStore
from lorkd_monailabel.tasks.training.cases import SPLITS, Labelled, Reference, key_of, labelled, parted
from lorkd_monailabel.tasks.training.options import TrainingOptions
from lorkd_monailabel.tasks.training.state import Teller

MAX_QUERIES = 16
OBJECTIVE = Objective(balance=0.5)
MARGIN_MM = 100.0
FOREGROUND = 0.6
"""Share of patches around structures, the others lie anywhere within the margin: what an expert never sees of the body
it may take for anything."""
SAVE_EVERY_S = 30.0
UNUSED_S = 30 * 24 * 3600.0
NOT_OF_A_RUN = ("force", "fresh", "workers", "validation")
"""Options that don't change what is learned, so that a stopped run goes on whatever they are."""

Stop = Callable[[], bool]


@dataclass(frozen=True)
class Place:
    """Where trainings happen.

    Attributes:
        store: of the experts.
        folder: of checkpoints, states and prepared cases; images lie there.
        device: to compute on.
        reference: image or subject -> what stands for it in the store.
        foundation: path of the teacher of a decomposition; None where the server was told none.
        save_every_s: seconds between checkpoints.
    """

    store: ExpertStore
    folder: Path
    device: torch.device
    reference: Reference
    foundation: Path | None = None
    save_every_s: float = SAVE_EVERY_S

    def engine(self) -> Engine:
        """Make the engine of this place's device."""
        return Engine(world=World(device=self.device), bf16=has_fast_bf16(self.device), save_every_s=self.save_every_s)

    def run_folder(self, name: str, options: TrainingOptions, **more: Any) -> Path:
        """Give the folder of a run's checkpoints: the same for the same task, options and start."""
        told = {key: value for key, value in asdict(options).items() if key not in NOT_OF_A_RUN}
        digest = hashlib.sha256(json.dumps({**told, **more}, sort_keys=True).encode()).hexdigest()
        return self.folder / "unfinished" / f"{name}-{digest[:16]}"


@dataclass(frozen=True)
class Parted:
    """Cases of a run: to train on and to validate on."""

    train: list[Case]
    validation: list[Case]
    found: Labelled


def parted_cases(
    place: Place, datastore: Datastore, options: TrainingOptions, teller: Teller, stop: Stop, *, department: str = ""
) -> Parted:
    """Read and part the labelled images.

    Raises:
        Interrupted: ``stop`` said so.
        ValueError: there are too few.
    """
    teller.stage("cases")
    found = labelled(datastore, options, place.reference, department=department, stop=stop)
    check(stop)
    named = department or "all departments"
    train, validation = parted(
        found,
        place.store.folder / SPLITS,
        share=options.validation,
        key=key_of(place.reference),
        department=named,
    )
    counts = {"train": len(train), "validation": len(validation), "left_out": len(found.left_out)}
    teller.tell(cases=counts)
    return Parted(train, validation, found)


def prepared_cases(
    place: Place,
    cases: Sequence[Case],
    department: str,
    *,
    spacing_mm: tuple[float, float, float],
    window: tuple[int, int, int],
    intensities: str,
    progress: Callable[[int, int], None],
    stop: Stop,
) -> list[PreparedCase]:
    """Prepare the cases of a department, or open what is kept of them.

    Raises:
        Interrupted: ``stop`` said so.
        ValueError: a case can't be read.
    """
    cache = place.folder / "prepared"
    sweep_drafts(cache)
    sweep_prepared(cache)
    x, y, z = (max(side * step / 2, MARGIN_MM) for side, step in zip(window, spacing_mm, strict=True))
    made = []
    own = [case for case in cases if case.of(department)]
    for done, case in enumerate(own):
        progress(done, len(own))
        check(stop)
        prepared = prepare(
            case,
            department=department,
            spacing_mm=spacing_mm,
            margin_mm=(x, y, z),
            cache=cache,
            intensities=intensities,
        )
        assert isinstance(prepared.image, MappedArray)
        os.utime(prepared.image.path)
        made.append(prepared)
    return made


def sweep_prepared(cache: Path) -> None:
    """Remove prepared cases that no training used for long: their labels changed, or the images are gone."""
    for image in cache.glob("*/image.npy"):
        if time.time() - image.stat().st_mtime > UNUSED_S:
            shutil.rmtree(image.parent, ignore_errors=True)


def samples_of(
    prepared: Mapping[str, Sequence[PreparedCase]],
    options: TrainingOptions,
    *,
    window: tuple[int, int, int],
    stride: int,
    all_structures: bool = False,
) -> Samples:
    """Make the stream of samples of prepared cases."""
    return Samples(
        prepared,
        weights=dict.fromkeys(prepared, 1.0),
        patch=window,
        stride=stride,
        max_queries=MAX_QUERIES,
        foreground=FOREGROUND,
        augment=options.augment,
        seed=options.seed,
        all_structures=all_structures,
    )


def structures_of(prepared: Sequence[PreparedCase]) -> tuple[str, ...]:
    """Name the structures that have a voxel in one of the cases, in the order they are met."""
    return tuple(dict.fromkeys(name for case in prepared for name, voxels in case.centres.items() if len(voxels)))


def told_cases(train: Sequence[Case], validation: Sequence[Case]) -> dict[str, Any]:
    """Give what an expert says of its cases: how many, and the references of their subjects."""
    return {
        "sources": ["studies"],
        "cases": len(train),
        "trained_on": sorted({case.subject for case in train}),
        "validated_on": sorted({case.subject for case in validation}),
    }


def check(stop: Stop) -> None:
    """Stop here if that is asked for.

    Raises:
        Interrupted: it is.
    """
    if stop():
        raise Interrupted("stopped before the training began; run again to begin")
