"""Test of `lorkd serve` with a real server: it starts in time, needs no network, and stops."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import psutil
import pytest

from lorkd_monailabel.store import ExpertStore

START_SECONDS = 90
GUARD = """
import ipaddress, pathlib, socket

tried = pathlib.Path(__file__).with_name("tried")


def own(host):
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host in (None, "", "localhost", socket.gethostname())


def guarded(function, host_of):
    def call(*arguments, **options):
        host = host_of(*arguments)
        if not own(host):
            with tried.open("a") as file:
                file.write(f"{host}\\n")
            raise OSError(f"no network: {host}")
        return function(*arguments, **options)

    return call


socket.getaddrinfo = guarded(socket.getaddrinfo, lambda host, *rest: host)
for name in ("connect", "connect_ex"):
    method = getattr(socket.socket, name)
    setattr(socket.socket, name, guarded(method, lambda end, place: place[0] if isinstance(place, tuple) else None))
"""
START_PROCESSOR_SECONDS = 12


def processor_seconds(process: subprocess.Popen[bytes]) -> float:
    """What a process has computed: how long its start would take on a machine that has time for it."""
    used = psutil.Process(process.pid).cpu_times()
    return used.user + used.system


def test_a_real_server_starts_and_stops(root: Path, here: Path, store: ExpertStore, ct: Path, port: int) -> None:
    # of a copy of the tree, as MONAI Label makes folders in it; its parent alone finds the package
    tree = here / "tree"
    ignored = shutil.ignore_patterns("__pycache__", "store", "bin", "lib", "logs", "model")
    shutil.copytree(root / "lorkd_monailabel", tree / "lorkd_monailabel", ignore=ignored)
    (here / "studies").mkdir()
    shutil.copy(ct, here / "studies")
    log = here / "server.log"
    (here / "guard").mkdir()
    (here / "guard" / "sitecustomize.py").write_text(GUARD, encoding="utf-8")
    path = os.pathsep.join([str(here / "guard"), str(tree)])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    environment["MONAI_LABEL_SESSION_PATH"] = str(here / "sessions")
    command = [sys.executable, "-m", "lorkd_monailabel.cli", "serve", "studies"]
    command += ["--store", str(store.folder), "--port", str(port), "--device", "cpu"]
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=here, env=environment, stdout=output, stderr=subprocess.STDOUT)
    try:
        assert b'"abdomen"' in answer_of(f"http://127.0.0.1:{port}/info/", process, log)
        assert processor_seconds(process) < START_PROCESSOR_SECONDS
        assert not (here / "guard" / "tried").exists()
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) in (0, 130, -signal.SIGINT)
    finally:
        process.kill()
        process.wait()
    assert f"paste into Slicer: http://127.0.0.1:{port}" in log.read_text(encoding="utf-8")
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0


def answer_of(address: str, process: subprocess.Popen[bytes], log: Path) -> bytes:
    """Wait for the server's first answer."""
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        try:
            with urllib.request.urlopen(address, timeout=10) as reply:
                return reply.read()
        except urllib.error.URLError:
            time.sleep(0.1)
    pytest.fail(
        f"the server ended, or gave no answer within {START_SECONDS} s:\n{log.read_text(encoding='utf-8')[-3000:]}"
    )
