"""A real archive, Orthanc with DICOMweb, of its own folder and port."""

import contextlib
import json
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
import pytest
import requests

from lorkd_monailabel.volumes import Grid

USER, PASSWORD = "lorkd", "not secret"
CT, MR = "1.2.826.0.1.3680043.10.21", "1.2.826.0.1.3680043.10.22"
SHAPE = (14, 12, 10)
PLUGINS = Path("/usr/lib/orthanc"), Path("/usr/share/orthanc/plugins")
MISSING = "Orthanc with DICOMweb is not installed; run: sudo apt-get install orthanc orthanc-dicomweb"
SECONDS = 90


@dataclass(frozen=True)
class Orthanc:
    """A running archive."""

    url: str
    user: str
    password: str

    @property
    def dicomweb(self) -> str:
        """Address for DICOMweb."""
        return f"{self.url}/dicom-web"

    def request(self, method: str, path: str, **options) -> requests.Response:
        """Use its own interface."""
        reply = requests.request(method, f"{self.url}{path}", auth=(self.user, self.password), timeout=10, **options)
        reply.raise_for_status()
        return reply

    def files(self, series: str) -> list[pydicom.Dataset]:
        """All instances of a series, as the archive has them."""
        query = {"Level": "Series", "Query": {"SeriesInstanceUID": series}, "Expand": True}
        (found,) = self.request("POST", "/tools/find", json=query).json()
        return [
            pydicom.dcmread(pydicom.filebase.DicomBytesIO(self.request("GET", f"/instances/{each}/file").content))
            for each in found["Instances"]
        ]

    def remove(self, modality: str) -> None:
        """Delete all series of a modality."""
        query = {"Level": "Series", "Query": {"Modality": modality}}
        for each in self.request("POST", "/tools/find", json=query).json():
            self.request("DELETE", f"/series/{each}")


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextlib.contextmanager
def running(command: list[str], log: Path, address: str, **options) -> Iterator[None]:
    """Run a server, from when it answers at all until it is not needed any more."""
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, **options)
    try:
        end = time.monotonic() + SECONDS
        while process.poll() is None and time.monotonic() < end:
            with contextlib.suppress(requests.ConnectionError):
                requests.get(address, timeout=10)
                break
            time.sleep(0.1)
        else:
            pytest.fail(f"{command[0]} ended or gave no answer:\n{log.read_text(errors='replace')[-3000:]}")
        yield
    finally:
        process.terminate()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@pytest.fixture(scope="session")
def values() -> dict[str, np.ndarray]:
    """What the voxels of each series are; filled by the archive."""
    return {}


@pytest.fixture(scope="session")
def orthanc(tmp_path_factory, make_series, values) -> Iterator[Orthanc]:
    """An archive on a loopback port, behind a password, with a CT and an MR series of one patient."""
    folder = tmp_path_factory.mktemp("orthanc")
    program = shutil.which("Orthanc") or shutil.which("Orthanc", path="/usr/sbin")
    plugins = [str(file) for place in PLUGINS for file in place.glob("libOrthancDicomWeb.so*")]
    if not program or not plugins:
        pytest.fail(MISSING)
    port = free_port()
    config = {
        "Name": "test",
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "storage"),
        "HttpPort": port,
        "DicomServerEnabled": False,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": True,
        "RegisteredUsers": {USER: PASSWORD},
        "Plugins": plugins[:1],
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }
    (folder / "orthanc.json").write_text(json.dumps(config))
    for uid, modality in ((CT, "CT"), (MR, "MR")):
        values[uid] = make_series(folder / uid, uid=uid, modality=modality, shape=SHAPE)
    url = f"http://127.0.0.1:{port}"
    with running([program, str(folder / "orthanc.json")], folder / "log", f"{url}/system"):
        archive = Orthanc(url, USER, PASSWORD)
        for uid in (CT, MR):
            for file in (folder / uid).iterdir():
                archive.request("POST", "/instances", data=file.read_bytes())
        yield archive


@pytest.fixture(scope="session")
def run_server() -> Callable[..., contextlib.AbstractContextManager[None]]:
    """Run a server: command, log, address, options of the process."""
    return running


@pytest.fixture
def own_grid(series_affine) -> Grid:
    return Grid(SHAPE, series_affine())


@pytest.fixture
def labels() -> np.ndarray:
    """Two structures that reach neither the first nor the last slices."""
    array = np.zeros(SHAPE, np.uint8)
    array[2:6, 3:9, 4:7] = 1
    array[7:12, 1:5, 5:8] = 2
    return array
