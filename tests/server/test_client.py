"""MONAI Label's own client library against a real server: each of its public methods, so that a new one is noticed."""

import inspect
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import nibabel
import numpy as np
import pytest
from monailabel.client import MONAILabelClient
from monailabel.client.client import MONAILabelClientException

from lorkd_monailabel.front_door.tokens import add
from tests.server.conftest import Server, started, wait_for

# the client closes neither sockets nor files
pytestmark = [pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"), pytest.mark.timeout(300)]

NAMES = {"label_info": [{"name": "liver", "idx": 1}, {"name": "spleen", "idx": 2}]}
SHORT = {"steps": 1, "batch_size": 1, "workers": 0, "force": True}
SECONDS = 120


class Story:
    """Calls the client as a plug-in would, from top to bottom: each of its methods in the one of the same name here.

    Args:
        server: with tokens.
        token: of an administrator whose name is ``anna``.
        folder: of the client.
    """

    def __init__(self, server: Server, token: str, folder: Path) -> None:
        self.server = server
        self.token = token
        self.folder = folder
        self.client = MONAILabelClient("http://127.0.0.1:1", tmpdir=str(folder), client_id="a plug-in")

    def set_server_url(self) -> None:
        with pytest.raises(ConnectionRefusedError):
            self.client.info()
        self.client.set_server_url(f"{self.server.url}/")
        with pytest.raises(MONAILabelClientException, match="the request has no token"):
            self.client.info()

    def get_server_url(self) -> None:
        assert self.client.get_server_url() == self.server.url

    def auth_enabled(self) -> None:
        assert self.client.auth_enabled() is True

    def auth_token(self) -> None:
        with pytest.raises(MONAILabelClientException, match="401"):
            self.client.auth_token("anna", "wrong")
        self.signed_in = self.client.auth_token("anna", self.token)
        assert self.signed_in["token_type"].lower() == "bearer"

    def update_auth(self) -> None:
        self.client.update_auth(self.signed_in)
        assert "models" in self.client.info()

    def auth_valid_token(self) -> None:
        assert self.client.auth_valid_token() is True
        assert MONAILabelClient(self.server.url).auth_valid_token() is False

    def info(self) -> None:
        info = self.client.info()
        assert info["models"]["abdomen"]["labels"] == {"liver": 1, "spleen": 2}
        assert set(info) >= {
            "name",
            "version",
            "labels",
            "trainers",
            "strategies",
            "scoring",
            "train_stats",
            "datastore",
        }

    def upload_image(self) -> None:
        image = nibabel.load(self.server.studies / "ct 1.nii.gz")
        nibabel.save(image, self.folder / "mine.nii.gz")
        assert self.client.upload_image(str(self.folder / "mine.nii.gz"), "mine", {"note": "x"})["image"] == "mine"
        np.testing.assert_array_equal(nibabel.load(self.server.studies / "mine.nii.gz").dataobj, image.dataobj)
        assert self.client.datastore()["objects"]["mine"]["image"]["info"]["client_id"] == "a plug-in"

    def datastore(self) -> None:
        assert {"ct 1", "ct 10", "mine"} <= self.client.datastore()["objects"].keys()

    def next_sample(self) -> None:
        sample = self.client.next_sample("first", {"label_tag": ""})
        assert (sample["id"], Path(sample["path"]).name) == ("constant", "constant.nii.gz")

    def infer(self) -> None:
        file, answer = self.client.infer("abdomen", "mine", {"result_extension": ".nii.gz"})
        assert answer["label_names"] == {"liver": 1, "spleen": 2}
        assert nibabel.load(file).shape == nibabel.load(self.server.studies / "mine.nii.gz").shape
        own, _ = self.client.infer("abdomen", "", {}, file=str(self.folder / "mine.nii.gz"))
        np.testing.assert_array_equal(nibabel.load(own).dataobj, nibabel.load(file).dataobj)
        with pytest.raises(MONAILabelClientException, match="choose one of abdomen, lorkd"):
            self.client.infer("none", "mine", {})

    def create_session(self) -> None:
        made = self.client.create_session(str(self.folder / "mine.nii.gz"))
        self.session = made["session_id"]
        file, answer = self.client.infer("abdomen", "", {"text": "liver"}, session_id=self.session)
        assert (answer["label_names"], Path(file).stat().st_size > 0) == ({"liver": 1}, True)

    def get_session(self) -> None:
        assert self.client.get_session(self.session)["name"] == self.session

    def remove_session(self) -> None:
        self.client.remove_session(self.session)
        with pytest.raises(MONAILabelClientException, match="404"):
            self.client.get_session(self.session)

    def save_label(self) -> None:
        grid = nibabel.load(self.server.studies / "ct 1.nii.gz")
        self.labels = np.zeros(grid.shape, np.uint8)
        self.labels[5:15, 5:15, 5:15], self.labels[18:25, 5:15, 5:15] = 1, 2
        nibabel.save(nibabel.Nifti1Image(self.labels, grid.affine), self.folder / "label.nii.gz")
        for image in ("mine", "ct 1", "ct 10"):
            saved = self.client.save_label(image, str(self.folder / "label.nii.gz"), params=NAMES)
            assert saved["label"] == image
        assert self.client.datastore()["objects"]["mine"]["labels"].keys() == {"final"}

    def download_label(self) -> None:
        file = self.client.download_label("mine", "final")
        np.testing.assert_array_equal(nibabel.load(file).dataobj, self.labels)
        with pytest.raises(MONAILabelClientException, match="404"):
            self.client.download_label("mri 2", "final")

    def train_start(self) -> None:
        started = self.client.train_start("finetune_abdomen", SHORT)
        assert (started["status"] in ("SUBMITTED", "RUNNING"), started["request"]["steps"]) == (True, 1)
        self.first = started["id"]

    def train_status(self) -> None:
        assert self.client.train_status()["id"] == self.first
        end = time.monotonic() + SECONDS
        while self.client.train_status()["status"] != "DONE" and time.monotonic() < end:
            time.sleep(0.1)
        assert self.client.train_status()["status"] == "DONE"
        assert self.client.train_status(check_if_running=True) is False
        assert self.server.store.newest("abdomen") == 2

    def train_stop(self) -> None:
        self.client.train_start("", {**SHORT, "model": "finetune_abdomen", "steps": 100_000})
        end = time.monotonic() + SECONDS
        while not self.client.train_status(check_if_running=True) and time.monotonic() < end:
            time.sleep(0.1)
        assert self.client.train_stop()["status"] == "STOPPED"
        assert self.client.train_status(check_if_running=False)["status"] == "STOPPED"

    def wsi_infer(self) -> None:
        with pytest.raises(MONAILabelClientException, match="401"):  # it forgets the token
            self.client.wsi_infer("abdomen", "mine")


@pytest.fixture(scope="module")
def story(tmp_path_factory, root, tiny_base, make_expert) -> Iterator[Story]:
    folder = tmp_path_factory.mktemp("client")
    token = add(folder / "tokens.json", "anna", "admin")
    conf = {"tokens": str(folder / "tokens.json")}
    with started("door", folder, root, tiny_base, [make_expert()], conf=conf) as server:
        wait_for(server)
        yield Story(server, token, folder)


def public(kind: type) -> list[str]:
    return [name for name, _ in inspect.getmembers(kind, callable) if not name.startswith("_")]


def test_every_method_in_turn(story: Story) -> None:
    done = []
    for name in vars(Story):
        if not name.startswith("_"):
            call: Callable[[], None] = getattr(story, name)
            call()
            done.append(name)
    assert sorted(done) == public(MONAILabelClient)
