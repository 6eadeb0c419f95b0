"""Jobs: who waits for a device, whose turn it is, how far it is, and who no longer wants to.

One job at a time has a device. Clients take turns, and the jobs of one client go in the order they came, so that a
client with a hundred jobs delays another by the one that runs and the next in line. Everything here is threads and a
lock: each job waits, and then runs, in the thread of its own request.
"""

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal

from lorkd_monailabel.sliding_window import Cancelled

State = Literal["queued", "running", "done", "failed", "cancelled"]

KEPT_SECONDS = 600.0
KEPT_JOBS = 500


@dataclass(frozen=True)
class JobStatus:
    """What there is to know of a job at one moment.

    Attributes:
        id: chosen by the client, else by the server.
        client: who sent it; empty where it did not say.
        title: what it does, without anything of the patient.
        device: that it waits for or has.
        state: where it is; the last three are final.
        position: its place in the queue of its device, 1 for the next; 0 where it is not queued.
        stage: what it does now, such as ``read``, a department, ``merge`` or ``write``.
        done: of ``total`` steps of this stage.
        total: see ``done``; 0 where a stage has no steps.
        seconds: since it came, while it is queued; else since it began, or from begin to end.
        message: why it failed or was cancelled; else empty.
    """

    id: str
    client: str
    title: str
    device: str
    state: State
    position: int = 0
    stage: str = ""
    done: int = 0
    total: int = 0
    seconds: float = 0.0
    message: str = ""


class Job:
    """A job's own end of the matter, for whoever does the work.

    Attributes:
        status: as of the last change; its position and seconds are counted when ``Jobs`` is asked.
        since: when it came, then when it began, by the clock of ``jobs``.
        cancelled: it shall end, if it has not.
    """

    def __init__(self, jobs: "Jobs", status: JobStatus, since: float) -> None:
        self._jobs = jobs
        self.status = status
        self.since = since
        self.cancelled = False

    def progress(self, stage: str, done: int = 0, total: int = 0) -> bool:
        """Notes how far the job is; False once it is cancelled, and its work should stop."""
        with self._jobs.changed:
            self.status = replace(self.status, stage=stage, done=done, total=total)
            return not self.cancelled

    def check(self, stage: str, done: int = 0, total: int = 0) -> None:
        """Notes how far the job is, and stops it here if it is cancelled.

        Raises:
            Cancelled: it is.
        """
        if not self.progress(stage, done, total):
            raise Cancelled(_message(self.status))

    def release(self) -> None:
        """Lets the next job have the device: what is left to do, such as writing a file, needs none."""
        self._jobs.release(self)


class Jobs:
    """All jobs of a server: those that wait, those that run, and for a while those that are over.

    Args:
        kept_seconds: how long a job that is over can be asked for.
        kept: how many of them there are at most.
        clock: gives seconds.
    """

    def __init__(
        self,
        *,
        kept_seconds: float = KEPT_SECONDS,
        kept: int = KEPT_JOBS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._kept_seconds = kept_seconds
        self._kept = kept
        self._clock = clock
        # one for all jobs: few threads wait, and a waiter that looks for itself can't miss its wake-up
        self.changed = threading.Condition()
        self._active: OrderedDict[str, Job] = OrderedDict()
        self._queues: dict[str, OrderedDict[str, deque[Job]]] = {}  # device -> client, next one first -> its jobs
        self._has_device: dict[str, Job] = {}
        self._over: OrderedDict[str, tuple[float, JobStatus]] = OrderedDict()
        self._unwanted: OrderedDict[str, float] = OrderedDict()  # cancelled before they came

    @contextmanager
    def turn(
        self,
        job_id: str,
        *,
        client: str = "",
        title: str = "",
        device: str = "cpu",
        ahead: Callable[[Job], object] | None = None,
    ) -> Iterator[Job]:
        """Waits for the device, and has it while the block runs, or until the block calls ``release``.

        Args:
            job_id: that nobody else uses; one that is over gives its name to the new one.
            client: whose turn it is; all that give no name count as one.
            title: for the list of jobs.
            device: any name; jobs of different devices do not wait for each other.
            ahead: called once, before the block, when the job is the next one in line: what can be done while
                another job still has the device, such as reading a file. So at most one job waits with its hands full.

        Raises:
            ValueError: a job of this id is queued or running.
            Cancelled: the job was cancelled, at the latest when the block ended.
        """
        job = self._enter(JobStatus(job_id, client, title, device, "queued"))
        state: State = "failed"
        message = "the server failed unexpectedly"
        try:
            self._wait_in_line(job)
            if ahead is not None:
                ahead(job)
            self._take_device(job)
            yield job
            self._finish(job)
            state, message = "done", ""
        except Cancelled as error:
            state, message = "cancelled", str(error)
            raise
        except (ValueError, OSError) as error:  # written for clients; of other errors they get no details
            message = str(error)
            raise
        finally:
            self._leave(job, state, message)

    def cancel(self, job_id: str) -> bool:
        """Cancels a job: one that is queued never runs, one that runs is told at its next step.

        A job that has not come yet never runs either: a client may be gone before its request reaches the queue.

        Returns:
            Whether there is such a job, queued or running.
        """
        with self.changed:
            job = self._active.get(job_id)
            if job is None:
                if job_id not in self._over:
                    self._unwanted[job_id] = self._clock()
                self._forget()
                return False
            if job.status.state == "done":
                return False
            job.cancelled = True
            if job.status.state == "queued":
                self._leave_queue(job)
            self.changed.notify_all()
            return True

    def release(self, job: Job) -> None:
        """Lets the next job have the device of one that still runs; nothing happens where it has none."""
        with self.changed:
            if self._has_device.get(job.status.device) is job:
                del self._has_device[job.status.device]
                self.changed.notify_all()

    def get(self, job_id: str) -> JobStatus | None:
        """Gives the state of a job; None for one that is unknown or was over long ago."""
        with self.changed:
            self._forget()
            if job_id in self._active:
                return self._status(self._active[job_id])
            return self._over[job_id][1] if job_id in self._over else None

    def all(self) -> list[JobStatus]:
        """Gives those that run, then those that are queued in their order, then those that are over, last first."""
        with self.changed:
            self._forget()
            active = sorted(map(self._status, self._active.values()), key=lambda status: status.position)
            return active + [status for _, status in reversed(self._over.values())]

    def _enter(self, status: JobStatus) -> Job:
        with self.changed:
            self._forget()
            if status.id in self._active:
                raise ValueError(f"job {status.id!r} is {self._active[status.id].status.state}; give each its own id")
            job = Job(self, status, self._clock())
            job.cancelled = self._unwanted.pop(status.id, None) is not None
            self._over.pop(status.id, None)
            self._active[status.id] = job
            self._queues.setdefault(status.device, OrderedDict()).setdefault(status.client, deque()).append(job)
            return job

    def _wait_in_line(self, job: Job) -> None:
        with self.changed:
            self.changed.wait_for(lambda: job.cancelled or self._first(job.status.device) is job)
        job.check("")

    def _take_device(self, job: Job) -> None:
        device = job.status.device
        with self.changed:
            self.changed.wait_for(lambda: job.cancelled or device not in self._has_device)
            if job.cancelled:
                raise Cancelled(_message(job.status))
            assert self._first(device) is job  # nobody gets in front of the first
            self._leave_queue(job)
            self._has_device[device] = job
            job.status, job.since = replace(job.status, state="running"), self._clock()
            self.changed.notify_all()

    def _finish(self, job: Job) -> None:
        with self.changed:  # from here on it is too late to cancel it, so that nobody is told that it was
            if job.cancelled:
                raise Cancelled(_message(job.status))
            job.status = replace(job.status, state="done")

    def _leave(self, job: Job, state: State, message: str) -> None:
        with self.changed:
            self._leave_queue(job)
            self.release(job)
            del self._active[job.status.id]
            now = self._clock()
            self._over[job.status.id] = now, replace(job.status, state=state, message=message, seconds=now - job.since)
            self._forget()
            self.changed.notify_all()

    def _leave_queue(self, job: Job) -> None:
        """Takes a job out of its queue, if it is there, and puts its client behind the others."""
        clients = self._queues.get(job.status.device, OrderedDict())
        waiting = clients.get(job.status.client, deque())
        if job not in waiting:
            return
        was_first = waiting[0] is job
        waiting.remove(job)
        if not waiting:
            del clients[job.status.client]
        elif was_first and not job.cancelled:
            clients.move_to_end(job.status.client)
        if not clients:
            del self._queues[job.status.device]

    def _first(self, device: str) -> Job | None:
        """The next one in line."""
        for waiting in self._queues.get(device, {}).values():
            return waiting[0]
        return None

    def _order(self, device: str) -> list[Job]:
        """All that wait for a device, the next one first, as if no more came: round by round, client by client."""
        clients = list(self._queues.get(device, {}).values())
        rounds = max(map(len, clients), default=0)
        return [waiting[number] for number in range(rounds) for waiting in clients if number < len(waiting)]

    def _status(self, job: Job) -> JobStatus:
        order = self._order(job.status.device) if job.status.state == "queued" else []
        position = order.index(job) + 1 if job in order else 0
        return replace(job.status, position=position, seconds=self._clock() - job.since)

    def _forget(self) -> None:
        """Drops what was over long ago, and the oldest where there is too much of it."""
        end = self._clock() - self._kept_seconds
        while self._over and (len(self._over) > self._kept or next(iter(self._over.values()))[0] < end):
            self._over.popitem(last=False)
        while self._unwanted and (len(self._unwanted) > self._kept or next(iter(self._unwanted.values())) < end):
            self._unwanted.popitem(last=False)


def _message(status: JobStatus) -> str:
    where = f" at {status.stage}, {status.done} of {status.total}" if status.total else ""
    return f"the job was cancelled{where}" if status.state == "running" else "the job was cancelled before it began"
