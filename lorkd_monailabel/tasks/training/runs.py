"""Trainings as the server sees them: a queue, the process of the one that runs, its end, and what is left of it.

MONAI Label runs a train task as a process of its own, kills it to stop it, can't take a queued one back, and waits for
ever for one that does not start. These take the place of its functions for that; what its clients see stays the same.
"""

import json
import os
import subprocess
import sys
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil
from fastapi import HTTPException
from monailabel.utils.async_tasks import task as asynchronous
from monailabel.utils.async_tasks import utils

from lorkd_monailabel.tasks.training.state import OVER, RunState, private_folder, read_state, state_file, write_state

METHOD = "train"
GRACE_S = 60.0
"""From SIGTERM, upon which a training saves what it has, to SIGKILL."""

WAIT_S = 5.0
"""What a request to stop waits for the end, at most."""

KEPT = 50
"""Runs that are over, whose state and log are kept."""

LINES = 20
"""Of its log, that MONAI Label's clients see."""

Task = dict[str, Any]


class Runs:
    """The trainings of a server; one at a time, in the order they came.

    Args:
        folder: of states and logs.
        app_dir: of the app, for its process.
        studies: likewise.
        conf: likewise.
        check: refuses a request with a ValueError, before a process is started for it.
        grace_s: see ``GRACE_S``.
    """

    def __init__(
        self,
        folder: Path,
        *,
        app_dir: str,
        studies: str,
        conf: Mapping[str, str],
        check: Callable[[Task], None],
        grace_s: float = GRACE_S,
    ) -> None:
        self.folder = folder
        self.check = check
        self.grace_s = grace_s
        self._command = [sys.executable, "-m", "monailabel.interfaces.utils.app", "-m", METHOD]
        self._command += ["-a", app_dir, "-s", studies]
        self._conf = json.dumps({key: value for key, value in conf.items() if key != "server_mode"})
        self._lock = threading.RLock()
        self._queue: deque[Task] = deque()
        self._busy = False
        self._process: tuple[Task, subprocess.Popen[str]] | None = None

    def start(self, request: Task, method: str = METHOD, *arguments: Any, **options: Any) -> Task:
        """Queue a training; in the place of MONAI Label's function, which is left all other methods.

        Raises:
            HTTPException: 400, the request is refused.
        """
        if method != METHOD:
            return dict(utils.run_background_task(request, method, *arguments, **options))
        try:
            self.check(request)
        except ValueError as error:
            raise HTTPException(400, str(error)) from error
        run = str(uuid.uuid4())
        task = {"id": run, "status": "SUBMITTED", "request": {**request, "run": run}, "start_ts": _now()}
        name = str(request["model"])
        state = RunState(run, name, client=str(request.get("client_id") or "")[:100], created=time.time())
        with self._lock:
            private_folder(self.folder)
            self._sweep()
            write_state(self.folder, state)
            utils.background_tasks.setdefault(METHOD, []).append(task)
            utils.background_processes.setdefault(METHOD, {})
            self._queue.append(task)
            if not self._busy:
                self._busy = True
                threading.Thread(target=self._work, name="trainings", daemon=True).start()
        return task

    def stop_any(self, method: str) -> Task | None:
        """Stop the one that runs; in the place of MONAI Label's function. None where none does."""
        if method != METHOD:
            stopped: Task | None = utils.stop_background_task(method)
            return stopped
        with self._lock:
            running = self._process
        return self._end(*running) if running else None

    def stop(self, run: str) -> RunState:
        """Stop a run, or take it off the queue.

        Raises:
            FileNotFoundError: there is no such run.
            ValueError: it is over.
        """
        with self._lock:
            queued = next((task for task in self._queue if task["id"] == run), None)
            if queued is not None:
                self._queue.remove(queued)
                self._over(queued, "STOPPED", "stopped", "taken off the queue")
                return self.get(run)
            running = self._process
        if running is None or running[0]["id"] != run:
            raise ValueError(f"training {run} is {self.get(run).state}; there is nothing to stop")
        self._end(*running)
        return self.get(run)

    def all(self) -> list[RunState]:
        """Tell all runs that are known, the newest first."""
        found = [self._seen(path) for path in (self.folder / "runs").glob("*.json")]
        return sorted((each for each in found if each), key=lambda state: state.created, reverse=True)

    def get(self, run: str) -> RunState:
        """Tell one run.

        Raises:
            FileNotFoundError: there is none of that id.
        """
        state = self._seen(state_file(self.folder, run)) if _is_id(run) else None
        if state is None:
            raise FileNotFoundError(f"there is no training {run[:60]!r}; GET /lorkd/training lists what there is")
        return state

    def log(self, run: str, lines: int) -> list[str]:
        """Give the last lines of a run's log; none before it began."""
        path = self._log_file(run)
        if not _is_id(run) or not path.is_file():
            return []
        with path.open(encoding="utf-8", errors="replace") as file:
            return [line.rstrip("\n") for line in deque(file, maxlen=lines)]

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._queue:
                    self._busy = False
                    return
                task = self._queue.popleft()
            try:
                self._run(task)
            except OSError as error:
                self._over(task, "ERROR", "failed", f"its process can't be started: {error}")

    def _run(self, task: Task) -> None:
        request = task["request"]
        environment = {**os.environ, "MONAI_LABEL_DATASTORE_AUTO_RELOAD": "false", "MONAI_LABEL_APP_CONF": self._conf}
        if (request.get("gpus") or "all") != "all":
            environment["CUDA_VISIBLE_DEVICES"] = request["gpus"]
        self._log_file(task["id"]).parent.mkdir(parents=True, exist_ok=True)
        with (
            open(self._log_file(task["id"]), "w", encoding="utf-8", opener=_private) as log,
            subprocess.Popen(
                [*self._command, "-r", json.dumps({**request, "gpus": "all"})],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                env=environment,
                start_new_session=True,  # Ctrl+C is for the server, which then tells its trainings
            ) as process,
        ):
            task["status"], task["details"] = "RUNNING", deque(maxlen=LINES)
            with self._lock:
                self._process = task, process
                utils.background_processes[METHOD][task["id"]] = process
            try:
                for line in process.stdout or ():
                    log.write(line)
                    log.flush()
                    task["details"].append(line.rstrip())
                code = process.wait()
            finally:
                with self._lock:
                    self._process = None
                    utils.background_processes[METHOD].pop(task["id"], None)
        if task["status"] == "STOPPED" or code in (-15, 130, 143):
            self._over(task, "STOPPED", "stopped", "stopped; the same training goes on where it ended")
        elif code == 0:
            self._over(task, "DONE", "done", "")
        else:
            last = next((line for line in reversed(task["details"]) if line), "")
            self._over(task, "ERROR", "failed", f"its process ended with status {code}: {last[:200]}")

    def _end(self, task: Task, process: subprocess.Popen[str]) -> Task:
        """Ask a run to save and end; it is killed if it does not."""
        with self._lock:
            first, task["status"], task["end_ts"] = task["status"] != "STOPPED", "STOPPED", _now()
            utils.background_processes[METHOD].pop(task["id"], None)
        if first:
            process.terminate()
            watch = threading.Timer(self.grace_s, _kill, (process,))
            watch.daemon = True
            watch.start()
        end = time.monotonic() + WAIT_S
        while process.poll() is None and time.monotonic() < end:
            time.sleep(0.05)
        return task

    def _over(self, task: Task, status: str, word: Any, message: str) -> None:
        """Note that a run is over, unless its process said so itself, which knows better why."""
        task["status"], task["end_ts"] = status, _now()
        state = read_state(state_file(self.folder, task["id"]))
        if state is not None and state.state not in OVER:
            write_state(self.folder, replace(state, state=word, message=message, ended=time.time()), flush=True)

    def _seen(self, path: Path) -> RunState | None:
        """A state, with what this server knows of it and its process does not."""
        state = read_state(path)
        if state is None or state.state in OVER:
            return state
        with self._lock:
            waiting = [task["id"] for task in self._queue]
            running = self._process[0] if self._process else None
            own = any(task["id"] == state.id for task in utils.tasks(METHOD))
        if state.id in waiting:
            return replace(state, position=waiting.index(state.id) + 1)
        if running is not None and running["id"] == state.id:
            return replace(state, state="stopping" if running["status"] == "STOPPED" else "running")
        if own or (state.pid and psutil.pid_exists(state.pid)):
            return read_state(path)  # it begins or ends in this moment; or it is another server's
        return replace(state, state="stopped", message="its server ended; the same training goes on where it ended")

    def _sweep(self) -> None:
        """Remove the oldest runs that are over."""
        for old in [state for state in self.all() if state.state in OVER][KEPT:]:
            state_file(self.folder, old.id).unlink(missing_ok=True)
            self._log_file(old.id).unlink(missing_ok=True)

    def _log_file(self, run: str) -> Path:
        return self.folder / "runs" / f"{run}.log"


def take_over(runs: Runs) -> None:
    """Let MONAI Label's endpoints start and stop trainings here."""
    asynchronous.run_background_task = runs.start
    asynchronous.stop_background_task = runs.stop_any


def _kill(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        try:
            children = psutil.Process(process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return
        for each in children:
            each.kill()
        process.kill()


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _is_id(run: str) -> bool:
    try:
        return str(uuid.UUID(run)) == run
    except ValueError:
        return False


def _now() -> str:
    return datetime.now().strftime("%Y-%m-%d %H:%M:%S")
