"""The main job on a real CT, start to end: server, stock client, label map, picture, live decomposition.

    ./demo [--work FOLDER] [--steps N]

What it makes stays in the folder (``.demo`` if not named); what it starts, it stops.
"""

import argparse
import json
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

import lorkd_monailabel
from lorkd_monailabel import shipped
from lorkd_monailabel.demo_data import DemoData, demo_cases, demo_labels, fetch_demo
from lorkd_monailabel.departments import structure
from lorkd_monailabel.learning.metrics import dice
from lorkd_monailabel.volumes import read_labels
from train.reporting.picture import overlay

PROMPT = "left kidney; liver; aorta; L3 vertebra"
MEASURED = (
    *("liver", "left kidney", "right kidney", "spleen", "aorta", "L3 vertebra"),
    *("left femur", "right femur", "urinary bladder"),
)
APP = Path(lorkd_monailabel.__file__).parent
ROOT = APP.parent
START_SECONDS = 120


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demonstration; returns the exit status."""
    parser = argparse.ArgumentParser(prog="demo", description=__doc__)
    parser.add_argument("--work", type=Path, default=ROOT / ".demo", help="folder for all that is made")
    parser.add_argument("--steps", type=int, default=100, help="length of the live decomposition")
    arguments = parser.parse_args(argv)
    try:
        demonstrate(arguments.work.absolute(), arguments.steps)
    except (ValueError, OSError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 2
    return 0


def demonstrate(work: Path, steps: int) -> None:
    """Do everything in order, telling what happens and how long it takes.

    Raises:
        ValueError: the images can't be fetched, or the server or the decomposition fails.
    """
    began = time.monotonic()
    print("1. The real CT (TotalSegmentator's example, Apache-2.0)")
    data = fetch_demo(work / "data")
    fetched = time.monotonic()
    studies, store = work / "studies", work / "store"
    for folder in (studies, store, work / "run"):
        shutil.rmtree(folder, ignore_errors=True)
    studies.mkdir()
    shutil.copy(data.ct, studies / "ct.nii.gz")
    shutil.copytree(shipped.STORE, store)
    print("2. monailabel start_server")
    with server(studies, store, log=work / "server.log") as address:
        print(f"   {address} answers after {time.monotonic() - fetched:.1f} s; log in {work / 'server.log'}")
        print(f'3. The stock client asks for "{PROMPT}", department auto')
        result = ask(address, PROMPT, data, work / "labels.nii.gz", title="cold")
        ask(address, PROMPT, data, work / "labels.nii.gz", title="warm")
        overlay(data.ct, work / "labels.nii.gz", result["label_names"], work / "labels.png")
        print(f"   label map {work / 'labels.nii.gz'}, picture {work / 'labels.png'}")
        print("4. The structures that the README reports")
        ask(address, "; ".join(MEASURED), data, work / "measured.nii.gz", title="warm")
        print(f"5. A live decomposition of the foundation: {steps} steps from the published base and experts")
        decompose(work, store, steps)
        print("6. The running server answers with the new revisions")
        ask(address, PROMPT, data, work / "labels.nii.gz", title="after the decomposition")
    print(f"Done in {time.monotonic() - began:.0f} s, of which {fetched - began:.0f} s to fetch the CT.")


def ask(address: str, prompt: str, data: DemoData, path: Path, *, title: str) -> dict[str, Any]:
    """Segment the CT by text through MONAI Label's own client; print the table, keep the label map at ``path``.

    Returns:
        The JSON part of the server's answer.

    Raises:
        ValueError: the server refuses.
    """
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the client imports cgi
        from monailabel.client import MONAILabelClient
        from monailabel.client.client import MONAILabelClientException

    began = time.monotonic()
    try:
        file, result = MONAILabelClient(address).infer(
            "lorkd", "ct", {"text": prompt, "department": "auto", "result_extension": ".nii.gz"}
        )
    except MONAILabelClientException as error:
        raise ValueError(f"the server refused the request ({error}); see its log") from error
    seconds = time.monotonic() - began
    shutil.move(file, path)
    agreement = agreements(path, data, result["label_names"])
    print(f"   {title}: {seconds:.1f} s")
    print(f"   {'phrase':<18}{'structure':<18}{'expert':<18}{'voxels':>8}{'ml':>9}{'agreement':>11}")
    for answer in result["lorkd"]["answers"]:
        expert = f"{answer['department']}/{answer['revision']:04d}" if answer["revision"] else "none"
        print(
            f"   {answer['phrase']:<18}{answer['structure']:<18}{expert:<18}{answer['voxels']:>8}"
            f"{answer['ml']:>9.1f}{agreement.get(answer['structure'], float('nan')):>11.3f}"
        )
    print(f"   mean agreement (Dice) with TotalSegmentator's labels: {np.mean(list(agreement.values())):.3f}")
    return result


def agreements(path: Path, data: DemoData, values: dict[str, int]) -> dict[str, float]:
    """Compute the Dice of every structure of a label map with TotalSegmentator's labels."""
    labels, _ = read_labels(path)
    reference, _ = read_labels(data.ct_labels)
    reference_values = {name: value for value, name in demo_labels("ct").items()}
    return {
        name: dice(labels == value, reference == reference_values[structure(name).name])
        for name, value in values.items()
        if name in reference_values
    }


def decompose(work: Path, store: Path, steps: int) -> None:
    """Run ``train.decompose`` on the demonstration's cases, from the store's base and experts.

    Raises:
        ValueError: it failed.
    """
    cases = work / "cases.jsonl"
    cases.write_text("".join(json.dumps(case) + "\n" for case in demo_cases(work / "data")), encoding="utf-8")
    settings = {
        "data.cases": cases,
        "data.cache": work / "prepared",
        "foundation": shipped.FOUNDATION,
        "output": work / "run",
        "start": store,
        "store": store,
        "steps": steps,
    }
    command = [sys.executable, "-m", "train.decompose", str(ROOT / "train" / "configs" / "demo.toml")]
    command += [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    if subprocess.run(command, cwd=ROOT, check=False).returncode != 0:
        raise ValueError("the live decomposition failed; its message stands above")


@contextmanager
def server(studies: Path, store: Path, *, log: Path) -> Iterator[str]:
    """Start ``monailabel start_server`` with our front door on a free port; give its address; stop it at the end.

    Raises:
        ValueError: it does not answer in time.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "monailabel.main", "start_server", "--app", str(APP), "--studies", str(studies)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--conf", "store", str(store)]
    command += ["--uvicorn_app", "lorkd_monailabel.asgi:app"]
    address = f"http://127.0.0.1:{port}"
    with log.open("w") as file:
        process = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT)
    try:
        _wait(address, process, log)
        yield address
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until and process.poll() is None:
        try:
            with urllib.request.urlopen(f"{address}/info/", timeout=5):
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.2)
    raise ValueError(f"the server did not come up; its log {log} says why")


if __name__ == "__main__":
    raise SystemExit(main())
