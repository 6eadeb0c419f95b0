"""Which image is next: a datastore of small volumes, a tiny store, and all strategies, without a server."""

import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nibabel
import numpy as np
import pytest

from lorkd_monailabel.active_learning.background import CLIENT
from lorkd_monailabel.active_learning.scores import Scored
from lorkd_monailabel.active_learning.scoring import Scoring
from lorkd_monailabel.experts import Base, Expert
from lorkd_monailabel.jobs import Jobs
from lorkd_monailabel.predictor import Predictor
from lorkd_monailabel.sources.catalogue import Catalogue
from lorkd_monailabel.store import ExpertStore
from lorkd_monailabel.tasks.case_queue import CaseQueue
from lorkd_monailabel.tasks.strategies import ByScores, First, Random

IMAGES = ("20", "b", "case 2", "case 10")
PATIENCE_SECONDS = 30.0


@pytest.fixture
def studies(tmp_path: Path) -> Catalogue:
    """Four images without labels."""
    folder = tmp_path / "studies"
    folder.mkdir()
    for seed, name in enumerate(IMAGES):
        array = np.random.default_rng(seed).normal(0, 300, (8, 8, 8)).astype(np.int16)
        nibabel.save(nibabel.Nifti1Image(array, np.diag([3, 3, 3, 1])), folder / f"{name}.nii.gz")
    return Catalogue(str(folder), extensions=("*.nii.gz",), auto_reload=False)


@pytest.fixture
def store(tmp_path: Path, tiny_base: Base, make_expert: Callable[..., Expert]) -> ExpertStore:
    store = ExpertStore(tmp_path / "store")
    store.publish_base(tiny_base)
    store.publish(make_expert())
    return store


@pytest.fixture
def jobs() -> Jobs:
    return Jobs()


@pytest.fixture
def make_queue(tmp_path: Path, store: ExpertStore, jobs: Jobs) -> Iterator[Callable[[], CaseQueue]]:
    """Makes a queue; another one is what a server has after a restart."""
    made: list[CaseQueue] = []

    def make() -> CaseQueue:
        scoring = Scoring(Predictor(store))
        queue = CaseQueue(scoring, jobs, tmp_path / "queue", reference=lambda image: image.encode().hex(), seconds=60)
        made.append(queue)
        return queue

    yield make
    for each in made:
        each.background.stop()


@pytest.fixture
def queue(make_queue: Callable[[], CaseQueue]) -> CaseQueue:
    return make_queue()


@pytest.fixture
def paused(queue: CaseQueue) -> CaseQueue:
    """One that finds out nothing by itself."""
    queue.background.stop()
    return queue


def label(studies: Catalogue, image: str, folder: Path, *names: str) -> None:
    """Give an image its final label."""
    (folder / "label.nii.gz").write_bytes(b"")
    info = [{"name": name, "idx": value} for value, name in enumerate(names, start=1)]
    studies.save_label(image, str(folder / "label.nii.gz"), "final", {"label_info": info})


def know(queue: CaseQueue, studies: Catalogue, image: str, entropy: float | None, feature: tuple[float, ...]) -> None:
    """Write down what is known of an image, as if it had been found out."""
    status = os.stat(studies.get_image_uri(image))
    stamp = f"file {status.st_mtime_ns} {status.st_size}"
    found = {"feature": Scored(f"{queue.scoring.made_of('feature', 'abdomen')} {stamp}", feature)}
    if entropy is not None:
        found["entropy"] = Scored(f"{queue.scoring.made_of('entropy', 'abdomen')} {stamp}", entropy)
    queue.files.put("abdomen", queue.reference(image), found)


def test_first_counts_numbers(queue, studies, tmp_path):
    served = []
    while image := First(queue)({"strategy": "first"}, studies):
        served.append(image["id"])
        label(studies, image["id"], tmp_path)
    assert served == ["20", "b", "case 2", "case 10"]


def test_random_prefers_what_was_not_served(queue, studies):
    now = int(time.time())
    for image in ("case 10", "case 2", "b"):
        studies.update_image_info(image, {"strategy": {"random": {"ts": now}}})
    chosen = [Random(queue)({"strategy": "random"}, studies) for _ in range(30)]
    assert {each["id"] for each in chosen} == {"20"}
    assert all(now < each["weight"] <= now + 60 for each in chosen)


def test_random_chooses_though_all_were_served_this_second(queue, studies):
    for image in IMAGES:
        studies.update_image_info(image, {"strategy": {"random": {"ts": int(time.time()) + 5}}})
    assert len({Random(queue)({"strategy": "random"}, studies)["id"] for _ in range(200)}) == 4


@pytest.mark.parametrize("name", ["random", "first", "uncertainty", "diversity", "uncertainty_diversity"])
def test_two_at_once_never_get_the_same_and_at_last_nothing_is_left(paused, studies, name):
    make = {"random": Random, "first": First}.get(name, lambda queue: ByScores(queue, name))

    def ask(number: int) -> str | None:
        found = make(paused)({"strategy": name, "client_id": f"annotator {number}"}, studies)
        return found and found["id"]

    with ThreadPoolExecutor(6) as threads:
        given = list(threads.map(ask, range(6)))
    assert sorted(filter(None, given)) == sorted(IMAGES)
    assert given.count(None) == 2


def test_asking_again_gives_the_same_until_it_is_labelled(paused, studies, tmp_path):
    request = {"strategy": "first", "client_id": "U"}
    first = First(paused)(request, studies)
    assert First(paused)(request, studies)["id"] == first["id"] == "20"
    assert time.time() < first["lorkd"]["reserved_until"] <= time.time() + 60
    paused.saved("20", studies)
    assert First(paused)({**request, "client_id": "V"}, studies)["id"] == "b"  # nothing was saved in truth
    label(studies, "20", tmp_path)
    paused.saved("20", studies)
    assert paused.reservations.of(IMAGES).keys() == {"b"}
    assert First(paused)(request, studies)["id"] == "case 2"


def test_skip_gives_the_case_back(paused, studies):
    First(paused)({"strategy": "first", "client_id": "U"}, studies)
    assert First(paused)({"strategy": "first", "client_id": "U", "skip": True}, studies)["id"] == "b"
    assert First(paused)({"strategy": "first", "client_id": "V"}, studies)["id"] == "20"


KNOWN = {"20": (0.9, (0.1, 0.0)), "b": (0.1, (8.0, 0.0)), "case 2": (0.5, (0.0, 6.0))}
LABELLED = "case 10", (0.0, 0.0)


@pytest.mark.parametrize(
    ("strategy", "image"), [("uncertainty", "20"), ("diversity", "b"), ("uncertainty_diversity", "case 2")]
)
def test_the_order_that_scores_give(paused, studies, tmp_path, strategy, image):
    for name, known in KNOWN.items():
        know(paused, studies, name, *known)
    know(paused, studies, LABELLED[0], None, LABELLED[1])
    label(studies, LABELLED[0], tmp_path)
    found = ByScores(paused, strategy)({"strategy": strategy}, studies)
    assert found["id"] == image
    about = found["lorkd"]
    assert (about["strategy"], about["department"], about["reason"]) == (strategy, "abdomen", "3 of 3 cases are scored")
    assert about["score"] == pytest.approx({"20": 0.9, "b": 8.0, "case 2": 3.0}[image])


def test_what_another_annotator_has_counts_as_labelled(paused, studies):
    know(paused, studies, "20", 0.5, (5.0, 0.0))
    know(paused, studies, "b", 0.5, (5.1, 0.0))  # a near-duplicate
    know(paused, studies, "case 2", 0.4, (0.0, 0.0))
    know(paused, studies, "case 10", 0.1, (0.0, 0.1))
    strategy = ByScores(paused, "uncertainty_diversity")
    given = [strategy({"client_id": client}, studies)["id"] for client in "UV"]
    assert given == ["20", "case 2"]


def test_scores_outlive_a_restart_and_a_new_revision_makes_them_void(paused, make_queue, studies, store, make_expert):
    for name, known in KNOWN.items():
        know(paused, studies, name, *known)
    again = make_queue()
    again.background.stop()
    assert ByScores(again, "uncertainty")({}, studies)["id"] == "20"
    store.publish(make_expert(seed=1))
    found = ByScores(again, "uncertainty")({}, studies)
    assert found["lorkd"]["strategy"] == "diversity"  # the base is the same, so features stand
    assert found["lorkd"]["reason"].startswith(
        "0 of 4 cases are scored, which is not enough for uncertainty by entropy"
    )


def test_another_file_makes_scores_void(paused, studies):
    for name, known in KNOWN.items():
        know(paused, studies, name, *known)
    path = studies.get_image_uri("20")
    os.utime(path, ns=(1, 1))
    assert ByScores(paused, "uncertainty")({}, studies)["id"] == "case 2"


def test_without_scores_the_order_of_names_stands_in(paused, studies):
    found = ByScores(paused, "uncertainty_diversity")({}, studies)
    assert (found["id"], found["lorkd"]["strategy"], found["lorkd"]["scored"]) == ("20", "order", 0)
    assert "the order of their names stands in" in found["lorkd"]["reason"]


def test_without_an_expert_too(paused, studies, store):
    request = {"department": "pelvis"}
    found = ByScores(paused, "uncertainty")(request, studies)
    assert (found["id"], found["lorkd"]["reason"]) == (
        "20",
        "pelvis has no expert yet, so cases come in the order of their names",
    )
    store.path("abdomen").unlink()
    assert "there is no expert yet" in ByScores(paused, "uncertainty")({}, studies)["lorkd"]["reason"]


def test_the_department_with_most_left_to_do(paused, studies, store, make_expert, tmp_path):
    store.publish(make_expert("thorax", structures=("heart", "trachea")))
    assert paused.department({}, studies) == "thorax"  # of equals the first of the vocabulary
    label(studies, "b", tmp_path, "heart", "my own")
    assert paused.department({}, studies) == "abdomen"
    label(studies, "20", tmp_path, "liver", "spleen")
    label(studies, "case 2", tmp_path, "liver")
    assert paused.department({}, studies) == "thorax"
    assert paused.department({"department": "abdomen"}, studies) == "abdomen"
    with pytest.raises(ValueError, match="department 'nose' is unknown"):
        paused.department({"department": "nose"}, studies)


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ({"measure": "guess"}, "measure 'guess' must be one of entropy, revisions, foundation"),
        ({"measure": "revisions"}, "has 1 revision, but two are compared"),
        ({"department": 3}, "must be text"),
    ],
)
def test_what_can_not_be_met_is_said(paused, studies, request_, words):
    with pytest.raises(ValueError, match=words):
        ByScores(paused, "uncertainty")(request_, studies)


def test_scores_are_found_out_in_the_background_and_a_bad_file_is_left_out(queue, studies, jobs, tmp_path, caplog):
    Path(studies.get_image_uri("b")).write_bytes(b"no image")
    label(studies, "case 10", tmp_path)
    strategy = ByScores(queue, "uncertainty_diversity")
    begin = time.monotonic()
    first = strategy({}, studies)
    assert time.monotonic() - begin < 2
    assert first["lorkd"]["scored"] == 0
    end = time.monotonic() + PATIENCE_SECONDS
    while queue.background.busy(queue.title("abdomen", "entropy")):
        assert time.monotonic() < end, "it was never done"
        time.sleep(0.02)
    found = strategy({}, studies)
    assert (found["lorkd"]["scored"], found["lorkd"]["pool"], found["lorkd"]["strategy"]) == (
        2,
        3,
        "uncertainty_diversity",
    )
    assert 0 < found["lorkd"]["uncertainty"] <= 1
    assert found["lorkd"]["distance"] > 0  # from the labelled one, which was looked at too
    assert found["id"] in ("20", "case 2")
    assert f"image {b'b'.hex()} is not scored" in caplog.text
    assert [status.client for status in jobs.all()] == [CLIENT]  # nothing is left to do, so no second job
