"""Real servers on loopback ports, with tiny networks of random weights and synthetic studies."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import nibabel
import numpy as np
import pytest
import requests
import torch

from lorkd_monailabel.experts import Base, Expert
from lorkd_monailabel.store import ExpertStore

START_SECONDS = 90
MADE_BY_MONAI_LABEL = ("bin", "lib", "logs", "model")


@dataclass(frozen=True)
class Server:
    """A running server: its address, the folders it works on, and what it is."""

    form: str
    url: str
    studies: Path
    store: ExpertStore
    temporary: Path
    log: Path
    process: subprocess.Popen[bytes]

    def files(self) -> set[Path]:
        """What lies in its folder for temporary files; folders are torch's own."""
        return {path for path in self.temporary.iterdir() if path.is_file()}

    def info(self) -> dict[str, Any]:
        """GET /info/."""
        return requests.get(f"{self.url}/info/", timeout=10).json()

    def infer(self, model: str, image: str | None, params: Any = None, **query: str) -> requests.Response:
        """POST /infer/ as any HTTP client would; params may be JSON already, or what is no JSON."""
        query |= {} if image is None else {"image": image}
        body = params if isinstance(params, str) else json.dumps(params or {})
        return requests.post(f"{self.url}/infer/{model}", params=query, data={"params": body}, timeout=60)


def write_studies(folder: Path) -> None:
    """Two volumes that are right, one that takes long, and everything that a volume must not be."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    shape = (30, 26, 22)
    ct = random.normal(0, 300, shape).astype(np.int16)
    flipped = np.array([[-2, 0, 0, 30], [0, -2, 0, 20], [0, 0, 3, -10], [0, 0, 0, 1]], dtype=float)
    c, s = 2 * np.cos(0.3), 2 * np.sin(0.3)
    oblique = np.array([[c, -s, 0, 5], [s, c, 0, 6], [0, 0, 2, 7], [0, 0, 0, 1]])
    nan = ct.astype(np.float32)
    nan[3, 3, 3] = np.nan
    volumes = {
        "ct 1": (ct, flipped),
        "ct 10": (ct, flipped),
        "mri 2": (np.abs(ct).astype(np.float32), oblique),
        "large": (random.normal(0, 300, (160, 160, 160)).astype(np.int16), np.diag([1.5, 1.5, 1.5, 1])),
        "constant": (np.zeros(shape, np.int16), flipped),
        "flat": (ct[:, :, 0], flipped),
        "series": (np.stack([ct, ct], axis=3), flipped),
        "nan": (nan, flipped),
    }
    for name, (array, affine) in volumes.items():
        nibabel.save(nibabel.Nifti1Image(array, affine), folder / f"{name}.nii.gz")
    (folder / "text.nii.gz").write_text("not an image")
    (folder / "void.nii.gz").write_bytes(b"")
    (folder / "cut.nii.gz").write_bytes((folder / "ct 1.nii.gz").read_bytes()[:9000])


@contextlib.contextmanager
def started(
    form: str,
    folder: Path,
    root: Path,
    base: Base,
    experts: Sequence[Expert],
    *,
    conf: Mapping[str, str] = MappingProxyType({}),
    host: str = "127.0.0.1",
) -> Iterator[Server]:
    """Start ``monailabel start_server`` on a copy of the app; end it whatever happens."""
    studies, temporary, log = folder / "studies", folder / "temporary", folder / "server.log"
    store = ExpertStore(folder / "store")
    write_studies(studies)
    temporary.mkdir()
    store.publish_base(base)
    for expert in experts:
        store.publish(expert)
    app = folder / "tree" / "lorkd_monailabel"
    shutil.copytree(
        root / "lorkd_monailabel",
        app,
        ignore=shutil.ignore_patterns("__pycache__", "store", *MADE_BY_MONAI_LABEL),
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "monailabel.main", "start_server", "--app", str(app), "--studies", str(studies)]
    command += ["--host", host, "--port", str(port), "--conf", "store", str(store.folder)]
    command += ["--conf", "device", "cpu"]
    command += [part for key, value in conf.items() for part in ("--conf", key, value)]
    command += ["--uvicorn_app", "lorkd_monailabel.asgi:app"] if form == "door" else []
    environment = {
        **os.environ,
        "TMPDIR": str(temporary),
        "MONAI_LABEL_SESSION_PATH": str(folder / "sessions"),
        "OMP_NUM_THREADS": "1",
    }
    with log.open("wb") as output:
        # the plain server finds the package by itself; the front door's module must be importable, here by the folder
        process = subprocess.Popen(
            command,
            cwd=app.parent if form == "door" else folder,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        yield Server(form, f"http://127.0.0.1:{port}", studies, store, temporary, log, process)
    finally:
        process.terminate()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_for(server: Server) -> None:
    """Return when the server answers."""
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and server.process.poll() is None:
        with contextlib.suppress(requests.ConnectionError):
            assert requests.get(f"{server.url}/info/", timeout=10).status_code in (200, 401)  # some need a token
            return
        time.sleep(0.1)
    pytest.fail(
        f"the server ended, or gave no answer within {START_SECONDS} s:\n"
        f"{server.log.read_text(encoding='utf-8')[-3000:]}"
    )


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Leave the other processors to the servers."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def servers(tmp_path_factory, root, tiny_base, make_expert) -> Iterator[dict[str, Server]]:
    """Both forms, started side by side."""
    experts = (
        make_expert("abdomen", structures=("liver", "spleen", "left kidney")),
        make_expert("thorax", structures=("trachea", "esophagus")),
    )
    with contextlib.ExitStack() as stack:
        running = {}
        for form in ("plain", "door"):
            running[form] = stack.enter_context(started(form, tmp_path_factory.mktemp(form), root, tiny_base, experts))
        for server in running.values():
            wait_for(server)
        yield running


@pytest.fixture(params=["plain", "door"])
def server(request, servers) -> Server:
    """Each form in turn."""
    return servers[request.param]


@pytest.fixture
def door(servers) -> Server:
    """The front door."""
    return servers["door"]


@pytest.fixture
def unharmed(server):
    """After the test, the server answers and no file is left."""
    before = server.files()
    yield
    assert "abdomen" in server.info()["models"]
    end = time.monotonic() + 5  # a result is removed after the reply
    while not server.files() <= before and time.monotonic() < end:
        time.sleep(0.02)
    assert server.files() <= before


@pytest.fixture
def image(tmp_path: Path) -> bytes:
    """A small volume that is right, as a file of .nii.gz."""
    array = np.random.default_rng(1).normal(0, 300, (20, 20, 20)).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(array, np.diag([3, 3, 3, 1])), tmp_path / "x.nii.gz")
    return (tmp_path / "x.nii.gz").read_bytes()
