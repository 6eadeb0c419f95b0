"""A server of our own on a loopback port, in a folder of its own, for the tools that try its strength."""

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from socket import socket
from typing import Any

import nibabel
import numpy as np

import lorkd_monailabel
from lorkd_monailabel.store import ExpertStore
from train.bench.switching import make_store

START_SECONDS, PATIENCE_SECONDS = 180, 300
ROOT = Path(lorkd_monailabel.__file__).parents[1]
SECRET = b"LoRKD-canary-3f9c"
"""What lies in files that no request may reach."""


@dataclass(frozen=True)
class Sandbox:
    """A running server and the folder that it lives in.

    Attributes:
        address: of the server, on this machine.
        folder: with everything below; what lies outside the first four is not the server's to write.
        studies: images and labels.
        store: of two experts with random weights.
        log: what the server prints.
        process: of the server.
    """

    address: str
    folder: Path
    studies: Path
    store: ExpertStore
    log: Path
    process: subprocess.Popen[bytes]

    def alive(self) -> bool:
        """Whether the server answers."""
        try:
            with urllib.request.urlopen(f"{self.address}/lorkd/health", timeout=30) as reply:
                return self.process.poll() is None and reply.status == 200
        except OSError:
            return False

    def resident_bytes(self) -> int:
        """Give the memory that the server holds."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text(encoding="utf-8").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def ask(
        self,
        method: str,
        path: str,
        params: dict[str, Any] | None = None,
        *,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
        wanted: tuple[int, ...] = (200,),
    ) -> Any:
        """Send a request.

        Args:
            method: of HTTP.
            path: with its query.
            params: sent as the form field of that name, in place of a body.
            body: of the request.
            headers: of the request.
            wanted: statuses.

        Returns:
            The answer's JSON; its text where it is none.

        Raises:
            ValueError: another status than wanted.
        """
        if params is not None:
            body = urllib.parse.urlencode({"params": json.dumps(params)}).encode()
        request = urllib.request.Request(f"{self.address}{path}", data=body, headers=headers or {}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE_SECONDS) as reply:
                status, text = reply.status, reply.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                status, text = error.code, error.read().decode()
        if status not in wanted:
            raise ValueError(f"{method} {path} got {status}: {text[:200]}")
        try:
            return json.loads(text)
        except ValueError:
            return text

    def outside(self) -> dict[Path, bytes]:
        """Give every file that the server must not touch, and every name outside the folders that it may fill."""
        own = (
            self.studies,
            self.store.folder / "active_learning",
            self.folder / "work",
            self.folder / "temporary",
            self.folder / "home" / ".cache",
        )
        kept = {self.store.folder / name for name in ("audit.jsonl", "audit.key")} | {self.log}
        return {
            path: path.read_bytes()
            for path in sorted(self.folder.rglob("*"))
            if path.is_file() and path not in kept and not any(path.is_relative_to(each) for each in own)
        }


@contextmanager
def sandbox(folder: Path, images: Sequence[tuple[str, int]]) -> Iterator[Sandbox]:
    """Start a server in a folder, which must be empty; end it whatever happens.

    Args:
        folder: for studies, store, work and temporary files.
        images: name and edge in voxels of each image of the studies.

    Raises:
        ValueError: the server does not start.
    """
    studies, log = folder / "studies", folder / "server.log"
    for part in ("studies", "temporary", "home", "outside"):
        (folder / part).mkdir(parents=True)
    random = np.random.default_rng(0)
    for name, edge in images:
        array = random.normal(0, 300, (edge, edge, edge)).astype(np.int16)
        nibabel.save(nibabel.Nifti1Image(array, np.diag([3.0, 3.0, 3.0, 1.0])), studies / f"{name}.nii.gz")
    (folder / "outside" / "secret.txt").write_bytes(SECRET)
    header = nibabel.Nifti1Image(np.zeros((8, 8, 8), np.int16), np.eye(4))
    header.header["descrip"] = SECRET
    nibabel.save(header, folder / "outside" / "secret.nii")
    store = make_store(folder / "store", "tiny")
    with socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "lorkd_monailabel.cli", "serve", str(studies), "--work", str(folder / "work")]
    command += ["--store", str(store.folder), "--port", str(port), "--device", "cpu"]
    environment = {**os.environ, "TMPDIR": str(folder / "temporary"), "HOME": str(folder / "home")}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT)
    server = Sandbox(f"http://127.0.0.1:{port}", folder, studies, store, log, process)
    try:
        _wait(server)
        yield server
    finally:
        process.terminate()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(server: Sandbox) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and server.process.poll() is None:
        try:
            with urllib.request.urlopen(f"{server.address}/info/", timeout=30):
                return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.2)
    raise ValueError(f"the server gave no answer within {START_SECONDS} s; see {server.log}")
