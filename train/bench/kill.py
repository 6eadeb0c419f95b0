"""Kill -9 at random moments of publish, save-label and training, and look at what is left.

    python -m train.bench.kill [--moments 50] [--seed 0]

A process does the work over and over and says after each turn what it has done; it is killed without a warning. Then
the store and the datastore are opened as after a restart: everything that was said to be done must be there, byte for
byte, everything must be readable, and the work must go on. The exit status is 1 where anything is not so.
"""

import argparse
import hashlib
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import nibabel
import numpy as np
import torch

from lorkd_monailabel import revisions
from lorkd_monailabel.audit import Audit
from lorkd_monailabel.candidates import candidate_header, candidate_ids, keep
from lorkd_monailabel.json_files import read_json
from lorkd_monailabel.learning.checkpoint import load_checkpoint
from lorkd_monailabel.pins import pinned
from lorkd_monailabel.sources.catalogue import Catalogue
from lorkd_monailabel.store import ExpertStore
from lorkd_monailabel.tasks.training.cases import SPLITS
from lorkd_monailabel.tasks.training.finetune import finetune_department
from lorkd_monailabel.tasks.training.options import TrainingOptions
from lorkd_monailabel.tasks.training.place import Place
from lorkd_monailabel.tasks.training.state import RunState, Teller
from lorkd_monailabel.volumes import read_labels
from train.bench.switching import make_store

DEPARTMENT = "brain"
IMAGES = ("one", "two", "three")
AFFINE = np.diag([3.0, 3.0, 3.0, 1.0])

Say = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Ground:
    """Where the work is done.

    Attributes:
        folder: with ``store``, ``studies``, ``training`` and the label volumes that are submitted.
        structures: two that the expert knows.
    """

    folder: Path
    structures: tuple[str, str]

    @property
    def store(self) -> ExpertStore:
        """The store, opened anew."""
        return ExpertStore(self.folder / "store")

    def studies(self) -> Catalogue:
        """Open the datastore anew, as a restart does."""
        return Catalogue(str(self.folder / "studies"), extensions=("*.nii.gz",))

    def label(self, number: int) -> Path:
        """One of two label volumes."""
        return self.folder / f"label{number % 2}.nii.gz"

    def info(self) -> dict[str, Any]:
        """What a client says of them."""
        return {"label_info": [{"name": name, "idx": value} for value, name in enumerate(self.structures, start=1)]}


def make_ground(folder: Path) -> Ground:
    """Make a store of tiny random experts, and three labelled images."""
    store = make_store(folder / "store", "tiny")
    names = store.header(DEPARTMENT)["structures"]
    ground = Ground(folder, (names[0], names[1]))
    numbers = np.random.default_rng(0)
    (folder / "studies").mkdir()
    for number in range(2):
        labels = np.zeros((10, 10, 10), np.int16)
        labels[2:5, 2 : 7 + number, 3:6], labels[6:9, 4:8, 3:8] = 1, 2
        nibabel.save(nibabel.Nifti1Image(labels, AFFINE), ground.label(number))
    for name in IMAGES:
        image = (labels * 200 + numbers.normal(0, 30, labels.shape)).astype(np.int16)
        nibabel.save(nibabel.Nifti1Image(image, AFFINE), folder / "studies" / f"{name}.nii.gz")
    studies = ground.studies()
    for name in IMAGES:
        studies.save_label(name, str(ground.label(0)), "final", ground.info())
    return ground


def publish(ground: Ground, say: Say) -> None:
    """Publish, keep candidates, pin and unpin, over and over."""
    store = ground.store
    expert = store.load(DEPARTMENT, 1)
    while True:
        number = store.publish(replace(expert, about={"turn": time.time()}))
        say({"revision": number, "sha256": sha256(store.path(DEPARTMENT, number))})
        keep(store, expert)
        revisions.pin(store, DEPARTMENT, number)
        say({"pinned": number})
        revisions.pin(store, DEPARTMENT, None)


def save_label(ground: Ground, say: Say) -> None:
    """Submit labels of all images in turn."""
    studies = ground.studies()
    for turn in iter(int, 1):
        for number, name in enumerate(IMAGES):
            studies.save_label(name, str(ground.label(turn + number)), "final", ground.info())
            say({"label": name})


def train(ground: Ground, say: Say) -> None:
    """Retrain the expert and publish it, over and over, saving after every step."""
    audit = Audit(ground.folder / "store" / "audit.jsonl")
    place = Place(ground.store, ground.folder / "training", torch.device("cpu"), audit.reference, save_every_s=0.0)
    options = TrainingOptions(steps=4, batch_size=2, workers=0, force=True)
    while True:
        state = RunState(f"{time.time_ns()}", f"finetune_{DEPARTMENT}", state="running", began=time.time())
        teller = Teller(place.folder, state)
        made = finetune_department(place, ground.studies(), DEPARTMENT, options, teller=teller, stop=lambda: False)
        say({"revision": made["revision"], "sha256": sha256(place.store.path(DEPARTMENT, made["revision"]))})


WORKS = {"publish": (publish, 0.3), "save-label": (save_label, 0.3), "training": (train, 3.0)}
"""Name -> work, and the seconds within which it is killed."""


def kill_at_a_moment(work: Callable[[Ground, Say], None], ground: Ground, seconds: float) -> list[dict[str, Any]]:
    """Run a work in a process of its own, kill it, and give what it said to have done."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:

        def say(said: dict[str, Any]) -> None:
            os.write(writing, (json.dumps(said) + "\n").encode())

        try:
            work(ground, say)
        except BaseException as error:
            say({"failed": repr(error)})
        finally:
            os._exit(1)
    os.close(writing)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with open(reading, encoding="utf-8") as pipe:
        return [json.loads(line) for line in pipe if line.endswith("\n")]


def faults(ground: Ground, said: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Say everything that is wrong with what is left."""
    yield from (f"the work failed by itself: {each['failed']}" for each in said if "failed" in each)
    try:
        store = ground.store
        published = [each for each in said if "revision" in each]
        if published and sha256(store.path(DEPARTMENT, published[-1]["revision"])) != published[-1]["sha256"]:
            yield f"revision {published[-1]['revision']} is not what was published"
        for department in store.departments():
            for number in store.revisions(department):
                store.load(department, number)
        for candidate in candidate_ids(store, DEPARTMENT):
            candidate_header(store, DEPARTMENT, candidate)
        held, served = pinned(store.folder, DEPARTMENT), store.served(DEPARTMENT)
        last = published[-1]["revision"] if published else 1
        if served is None or (served != held if held else served < last):
            yield f"revision {served} is served, {held} is pinned and {last} was published"
        read_json(store.folder / SPLITS)
        for checkpoint in (ground.folder / "training").glob("unfinished/*/*.pt"):
            load_checkpoint(checkpoint)
        yield from label_faults(ground)
    except (ValueError, OSError) as error:
        yield f"{type(error).__name__}: {error}"


def label_faults(ground: Ground) -> Iterator[str]:
    """Say everything that is wrong with the datastore."""
    json.loads((ground.folder / "studies" / "datastore_v2.json").read_text(encoding="utf-8"))
    studies = ground.studies()
    if sorted(studies.list_images()) != sorted(IMAGES):
        yield f"the images are {sorted(studies.list_images())}"
    submitted = [read_labels(ground.label(number))[0] for number in range(2)]
    for name in IMAGES:
        if studies.get_label_info(name, "final").get("label_info") != ground.info()["label_info"]:
            yield f"the label of {name} lost its names"
        found, _ = read_labels(studies.get_label_uri(name, "final"))
        if not any(np.array_equal(found, each) for each in submitted):
            yield f"the label of {name} is none of those that were submitted"


def sha256(path: Path) -> str:
    """Hash a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="train.bench.kill", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--moments", type=int, default=50, help="of each work (default 50)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default 0)")
    options = parser.parse_args(argv)
    if options.moments < 1:
        print("moments must be at least 1; give a larger number", file=sys.stderr)
        return 2
    torch.set_num_threads(1)
    chance, wrong = random.Random(options.seed), 0
    with TemporaryDirectory(prefix="lorkd-kill-") as folder:
        ground = make_ground(Path(folder))
        for name, (work, longest) in WORKS.items():
            done = 0
            for moment in range(options.moments):
                said = kill_at_a_moment(work, ground, chance.uniform(0, longest))
                done += len(said)
                for fault in faults(ground, said):
                    wrong += 1
                    print(f"{name}, moment {moment}: {fault}", flush=True)
            print(
                f"{name}: killed {options.moments} times, {done} turns done between; {wrong} faults so far", flush=True
            )
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
