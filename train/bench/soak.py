"""Load a server of our own with mixed requests from many clients, and measure how it bears it.

    python -m train.bench.soak [--quick] [--requests 500] [--clients 16] [--minutes 60]

First ``/info/`` is timed while three inferences run. Then the clients send their requests, while a training runs and
two revisions of another expert are published. It passes if no request fails, no answer comes from another revision than
those that were the newest while it was made, the training got on and is stopped in good order, ``/info/`` is as quick
as it should be, and memory does not grow.
"""

import argparse
import gzip
import json
import random
import sys
import tempfile
import threading
import time
import uuid
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from train.bench.sandbox import Sandbox, sandbox

REQUESTS, CLIENTS = 500, 16
QUICK_REQUESTS, QUICK_CLIENTS, QUICK_PROBES = 60, 8, 60
WARM = 50
"""Requests after which memory should not grow any more."""

IMAGES = {"small": 24, "other": 32}
INFERENCES = 3
PROBES = 200
PAUSE_SECONDS = 0.02
PATIENCE_SECONDS = 300
TRAINING: dict[str, Any] = {"steps": 1_000_000, "options": {"batch_size": 1, "workers": 0}}
"""More steps than fit into any soak."""

MIB = 1024**2


@dataclass
class Course:
    """What happened.

    Attributes:
        seconds: of the answers, by kind of request.
        problems: sentences.
        memory: bytes that the server held after each answer.
    """

    seconds: dict[str, list[float]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, kind: str, seconds: float, problem: str | None = None) -> None:
        """Add an answer."""
        with self.lock:
            self.seconds.setdefault(kind, []).append(seconds)
            self.problems += [f"{kind}: {problem}"] if problem else []


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; returns the exit status: 1 where the server did not bear it."""
    parser = argparse.ArgumentParser(
        prog="train.bench.soak", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=REQUESTS, help=f"default {REQUESTS}")
    parser.add_argument("--clients", type=int, default=CLIENTS, help=f"at once (default {CLIENTS})")
    parser.add_argument("--minutes", type=float, default=60, help="longest time (default 60)")
    parser.add_argument("--median-ms", type=float, default=20, help="most that /info/ may take (default 20)")
    parser.add_argument("--slowest-ms", type=float, default=150, help="most of its 99th percentile (default 150)")
    parser.add_argument("--growth", type=float, default=0.05, help="most growth of memory (default 0.05)")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn (default 0)")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_REQUESTS} requests of {QUICK_CLIENTS} clients")
    options = parser.parse_args(argv)
    if options.quick:
        options.requests, options.clients = QUICK_REQUESTS, QUICK_CLIENTS
    try:
        if options.requests < 1 or options.clients < 1 or options.minutes <= 0:
            raise ValueError(f"{options.requests} requests of {options.clients} clients load nothing; ask for more")
        images = [*IMAGES.items(), *((f"large{number}", 160) for number in range(INFERENCES))]
        with tempfile.TemporaryDirectory(prefix="lorkd-soak-") as folder:
            with sandbox(Path(folder), images) as server:
                problems = time_info(server, options)
                training = start_training(server)
                problems += soak(server, options)
                problems += end_training(server, training)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    for problem in problems[:20]:
        print(f"problem  {problem}")
    print(f"{len(problems)} problems" if problems else "the server bears it")
    return 1 if problems else 0


def time_info(server: Sandbox, options: argparse.Namespace) -> list[str]:
    """Time ``/info/`` while inferences run, and say what is too slow."""
    server.ask(
        "POST",
        "/infer/lorkd?image=small&output=json",
        {"text": "liver", "department": "auto"},
        wanted=(200, 400),
    )
    department, over = server.store.departments()[0], threading.Event()
    jobs: list[str] = []
    seconds: list[float] = []

    def keep_inferring(number: int) -> None:
        while not over.is_set():
            jobs.append(str(uuid.uuid4()))
            address = f"/infer/{department}?image=large{number}&output=json"
            server.ask("POST", address, {"job": jobs[-1], "client_id": str(number)}, wanted=(200, 409))

    with ThreadPoolExecutor(INFERENCES) as threads:
        running = [threads.submit(keep_inferring, number) for number in range(INFERENCES)]
        try:
            time.sleep(1)
            for _ in range(QUICK_PROBES if options.quick else PROBES):
                began = time.perf_counter()
                server.ask("GET", "/info/")
                seconds.append(time.perf_counter() - began)
                time.sleep(PAUSE_SECONDS)
            states = Counter(job["state"] for job in server.ask("GET", "/lorkd/jobs"))
        finally:
            over.set()
            for job in tuple(jobs):
                server.ask("DELETE", f"/lorkd/jobs/{job}", wanted=(200, 404))
        for each in running:
            each.result()
    median, slowest = (float(np.percentile(seconds, each)) * 1000 for each in (50, 99))
    told = ", ".join(f"{number} {state}" for state, number in states.items())
    print(f"/info/ while inferences run ({told} at the end): median {median:.1f} ms, 99th percentile {slowest:.1f} ms")
    problems = []
    if median > options.median_ms:
        problems.append(f"/info/ takes {median:.1f} ms in the median, more than {options.median_ms:g}")
    if slowest > options.slowest_ms:
        problems.append(f"/info/ takes {slowest:.1f} ms in the 99th percentile, more than {options.slowest_ms:g}")
    return problems


def soak(server: Sandbox, options: argparse.Namespace) -> list[str]:
    """Send the mixed requests, publish two revisions meanwhile, and say what went wrong."""
    course, end = Course(), time.monotonic() + options.minutes * 60
    kinds = [visit, infer, infer, sample, save, look]
    rolls = random.Random(options.seed)
    todo = [rolls.choice(kinds) for _ in range(options.requests)]
    publish_at = {len(todo) // 3, 2 * len(todo) // 3}

    def do(number: int) -> None:
        if time.monotonic() > end:
            return
        if number in publish_at:
            publish(server, seed=number)
        kind = todo[number]
        began = time.perf_counter()
        try:
            problem = kind(server, number)
        except (ValueError, OSError) as error:
            problem = str(error)
        course.note(kind.__name__, time.perf_counter() - began, problem)
        course.memory.append(server.resident_bytes())

    with ThreadPoolExecutor(options.clients) as threads:
        list(threads.map(do, range(len(todo))))
    for kind, times in sorted(course.seconds.items()):
        parts = " ".join(f"{np.percentile(times, each) * 1000:8.0f}" for each in (50, 90, 99))
        print(f"{kind:<8}{len(times):>5} requests; ms at 50, 90, 99 %: {parts}")
    problems = course.problems
    if len(course.memory) < len(todo):
        problems.append(f"only {len(course.memory)} of {len(todo)} requests were sent in {options.minutes:g} minutes")
    if len(course.memory) > WARM:
        warm, last = course.memory[WARM - 1], course.memory[-1]
        growth = last / warm - 1
        print(f"memory {warm / MIB:.0f} MiB after {WARM} requests, {last / MIB:.0f} MiB at the end: {growth:+.1%}")
        if growth > options.growth:
            problems.append(f"memory grew by {growth:.1%}, more than {options.growth:.0%}")
    if not server.alive():
        problems.append("the server does not answer any more")
    return problems


def visit(server: Sandbox, number: int) -> str | None:
    """Ask what there is."""
    server.ask("GET", "/info/")
    return None


def infer(server: Sandbox, number: int) -> str | None:
    """Segment, and see that the answer comes from a revision that was the newest meanwhile."""
    department = server.store.departments()[number % 2]
    image = tuple(IMAGES)[number % 2]
    first = server.store.newest(department) or 0
    options = {"client_id": f"client {number % 5}"}
    answer = server.ask("POST", f"/infer/{department}?image={image}&output=json", options)
    last = server.store.newest(department) or 0
    told = {each["revision"] for each in answer["lorkd"]["answers"]}
    if len(told) != 1 or not first <= min(told) <= last:
        return f"revision {sorted(told)} of {department}, where {first} to {last} were the newest"
    return None


def sample(server: Sandbox, number: int) -> str | None:
    """Ask for the next image."""
    server.ask("POST", "/activelearning/random", body=b"{}", headers={"Content-Type": "application/json"})
    return None


def save(server: Sandbox, number: int) -> str | None:
    """Save an image as a label, which it is as good as any other."""
    send_label(server, "other", f"soak{number % 3}", (server.studies / "small.nii.gz").read_bytes(), {})
    return None


def send_label(server: Sandbox, image: str, tag: str, label: bytes, params: dict[str, Any]) -> None:
    """Submit a NIfTI file as the label of an image."""
    boundary = uuid.uuid4().hex
    part = f"--{boundary}\r\nContent-Disposition: form-data; name="
    head = f'{part}"params"\r\n\r\n{json.dumps(params)}\r\n{part}"label"; filename="x.nii.gz"\r\n\r\n'
    body = head.encode() + label + f"\r\n--{boundary}--\r\n".encode()
    form = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
    server.ask("PUT", f"/datastore/label?image={image}&tag={tag}", body=body, headers=form)


def look(server: Sandbox, number: int) -> str | None:
    """Ask for the datastore, the figures and the queue."""
    server.ask("GET", "/datastore/?output=all")
    server.ask("GET", "/lorkd/metrics")
    server.ask("GET", "/lorkd/jobs")
    return None


def publish(server: Sandbox, *, seed: int) -> None:
    """Publish a new revision of an expert, with other weights."""
    import torch

    expert = server.store.load(server.store.departments()[0])
    generator = torch.Generator().manual_seed(seed)
    factors = {
        name: (a, b + 0.01 * torch.randn(b.shape, generator=generator)) for name, (a, b) in expert.factors.items()
    }
    server.store.publish(replace(expert, factors=factors))


def start_training(server: Sandbox) -> str:
    """Submit two labels, retrain the expert that is not published meanwhile, and give the training's id when it learns.

    Raises:
        ValueError: it does not begin.
    """
    department = server.store.departments()[1]
    named = {"label_info": [{"name": server.store.load(department).structures[0], "idx": 1}]}
    for image in IMAGES:
        scan = nibabel.Nifti1Image.from_filename(server.studies / f"{image}.nii.gz")
        label = np.zeros(scan.shape, np.uint8)
        label[4:12, 4:12, 4:12] = 1
        send_label(server, image, "final", gzip.compress(nibabel.Nifti1Image(label, scan.affine).to_bytes()), named)
    order = json.dumps({"department": department, **TRAINING}).encode()
    headers = {"Content-Type": "application/json"}
    training: str = server.ask("POST", "/lorkd/training", body=order, headers=headers, wanted=(201,))["id"]
    end = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < end:
        state = server.ask("GET", f"/lorkd/training/{training}")
        if state["state"] not in ("queued", "running"):
            raise ValueError(f"the training is {state['state']}: {state['message']}")
        if state["stage"] == "train" and state["step"]:
            return training
        time.sleep(0.5)
    raise ValueError(f"the training did not begin within {PATIENCE_SECONDS} s")


def end_training(server: Sandbox, training: str) -> list[str]:
    """Stop a training, and say what is wrong with it."""
    before = server.ask("GET", f"/lorkd/training/{training}")
    if before["state"] != "running":
        return [f"the training is {before['state']}: {before['message']}"]
    server.ask("DELETE", f"/lorkd/training/{training}")
    end = time.monotonic() + PATIENCE_SECONDS
    while (state := server.ask("GET", f"/lorkd/training/{training}"))["state"] in ("running", "stopping"):
        if time.monotonic() > end:
            return [f"the training did not stop within {PATIENCE_SECONDS} s"]
        time.sleep(0.5)
    print(f"training meanwhile: {before['step']} steps, then {state['state']}")
    return [] if state["state"] == "stopped" else [f"the training is {state['state']}: {state['message']}"]


if __name__ == "__main__":
    raise SystemExit(main())
