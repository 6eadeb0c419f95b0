"""Tests of lorkd_monailabel.jobs: real threads, held at gates, so that nothing depends on how fast they are."""

import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorkd_monailabel.jobs import Job, Jobs
from lorkd_monailabel.sliding_window import Cancelled

PATIENCE_SECONDS = 20


class Clients:
    """Jobs in threads of their own, each of which runs until its gate is opened."""

    def __init__(self, jobs: Jobs) -> None:
        self.jobs = jobs
        self.ran: list[str] = []
        self.gates: dict[str, threading.Event] = {}
        self.threads = ThreadPoolExecutor(64)

    def send(
        self,
        name: str,
        *,
        device: str = "gpu",
        work: Callable[[Job], None] | None = None,
        ahead: Callable[[Job], None] | None = None,
    ) -> Future[None]:
        """Start a job named by client and number, "a1", and return once it is in the queue or runs."""
        self.gates[name] = threading.Event()

        def run() -> None:
            with self.jobs.turn(name, client=name[0], device=device, ahead=ahead) as job:
                self.ran.append(name)
                if work is not None:
                    work(job)
                assert self.gates[name].wait(PATIENCE_SECONDS)

        future = self.threads.submit(run)
        wait_until(lambda: self.jobs.get(name) is not None)
        return future

    def open(self, *names: str) -> None:
        """Let jobs end, now or as soon as they run."""
        for name in names or tuple(self.gates):
            self.gates[name].set()

    def state(self, name: str) -> str:
        status = self.jobs.get(name)
        return "unknown" if status is None else status.state


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.001)


@pytest.fixture
def clients():
    """On a fresh registry; all gates open at the end."""
    made = Clients(Jobs())
    yield made
    made.open()
    made.threads.shutdown()


def test_clients_take_turns(clients):
    sent = [clients.send(name) for name in ("a1", "a2", "a3", "b1", "c1", "b2", "c2")]
    assert [clients.jobs.get(name).position for name in ("a1", "a2", "b1", "c1", "a3", "b2", "c2")] == list(range(7))
    clients.open()
    for each in sent:
        each.result(PATIENCE_SECONDS)
    assert clients.ran == ["a1", "a2", "b1", "c1", "a3", "b2", "c2"]
    assert [status.id for status in clients.jobs.all()] == clients.ran[::-1]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=9), st.randoms(use_true_random=False))
def test_order_is_round_robin_and_within_a_client_first_come(senders, chance):
    """Against the rule itself: of those left, the client served longest ago, and of his the first; some give up."""
    clients = Clients(Jobs())
    names = ["z0"] + [f"{client}{number}" for number, client in enumerate(senders)]
    sent = [clients.send(name) for name in names]
    gone = [name for name in names[1:] if chance.random() < 0.3]
    for name in gone:
        assert clients.jobs.cancel(name)
    clients.open()
    outcomes = {name: each.exception(PATIENCE_SECONDS) for name, each in zip(names, sent, strict=True)}
    clients.threads.shutdown()
    assert {name for name, error in outcomes.items() if isinstance(error, Cancelled)} == set(gone)
    left = {client: [name for name in names[1:] if name[0] == client and name not in gone] for client in senders}
    rotation = list(dict.fromkeys(senders))
    # a client whose jobs all went has lost his place to those behind him, which changes nothing for them
    order = ["z0"]
    while any(left.values()):
        client = rotation.pop(0)
        if left[client]:
            order.append(left[client].pop(0))
            rotation.append(client)
    assert clients.ran == order
    assert all(clients.state(name) == ("cancelled" if name in gone else "done") for name in names)


def test_devices_do_not_wait_for_each_other(clients):
    clients.send("a1", device="gpu")
    clients.send("b1", device="gpu")
    clients.send("c1", device="cpu")
    wait_until(lambda: clients.state("c1") == "running")
    assert (clients.state("a1"), clients.state("b1")) == ("running", "queued")


def test_one_job_at_a_time_has_the_device_whatever_happens_to_it():
    """Two hundred jobs in forty threads: some fail, some are cancelled at any moment; all of them end."""
    jobs, chance, having, most, ended = Jobs(kept=1000), random.Random(0), [0], [0], []

    def work(number: int) -> None:
        rng = random.Random(number)
        try:
            with jobs.turn(
                f"{number}", client=f"{number % 7}", device="gpu", ahead=lambda job: job.check("read")
            ) as job:
                having[0] += 1
                most[0] = max(most[0], having[0])
                time.sleep(rng.random() / 2000)
                having[0] -= 1
                if rng.random() < 0.3:
                    job.release()
                    time.sleep(rng.random() / 2000)
                if rng.random() < 0.3:
                    raise RuntimeError("out of order")
        finally:
            ended.append(number)

    def annoy() -> None:
        while len(ended) < 200:
            jobs.cancel(f"{chance.randrange(220)}")
            jobs.all()
            time.sleep(0.0005)

    with ThreadPoolExecutor(41) as threads:
        annoyed = threads.submit(annoy)
        errors = [threads.submit(work, number).exception for number in range(200)]
        kinds = {type(error(PATIENCE_SECONDS)) for error in errors}
        annoyed.result(PATIENCE_SECONDS)
    assert kinds == {type(None), RuntimeError, Cancelled}
    assert most == [1]
    assert sorted(ended) == list(range(200))
    assert {status.state for status in jobs.all()} == {"done", "failed", "cancelled"}


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ValueError("rank 9 is too high"), "rank 9 is too high"),
        (KeyError("name of a patient"), "the server failed unexpectedly"),
    ],
)
def test_an_exception_frees_the_turn_and_tells_others_what_is_meant_for_clients(clients, error, told):
    def fail(job: Job) -> None:
        raise error

    first = clients.send("a1", work=fail)
    clients.send("b1")
    assert first.exception(PATIENCE_SECONDS) is error
    wait_until(lambda: clients.state("b1") == "running")
    assert (clients.state("a1"), clients.jobs.get("a1").message) == ("failed", told)


def test_queued_job_that_is_cancelled_leaves_the_queue_and_never_runs(clients):
    clients.send("a1")
    gone, stays = clients.send("b1"), clients.send("c1")
    assert clients.jobs.get("c1").position == 2
    assert clients.jobs.cancel("b1")
    assert clients.jobs.get("c1").position == 1
    # while the device is still taken
    error = gone.exception(PATIENCE_SECONDS)
    assert isinstance(error, Cancelled)
    assert str(error) == "the job was cancelled before it began"
    assert clients.state("b1") == "cancelled"
    clients.open()
    stays.result(PATIENCE_SECONDS)
    assert clients.ran == ["a1", "c1"]


def test_running_job_hears_of_its_cancellation_at_the_next_step(clients):
    told: list[bool] = []

    def work(job: Job) -> None:
        told.append(job.progress("abdomen", 3, 8))
        assert clients.gates["a1"].wait(PATIENCE_SECONDS)
        told.append(job.progress("abdomen", 4, 8))

    running = clients.send("a1", work=work)
    wait_until(lambda: len(told) == 1)
    status = clients.jobs.get("a1")
    assert (status.state, status.stage, status.done, status.total) == ("running", "abdomen", 3, 8)
    assert clients.jobs.cancel("a1")
    clients.open()
    # the work did not care to stop, but its result is not given out: the client was told that it is cancelled
    assert isinstance(running.exception(PATIENCE_SECONDS), Cancelled)
    assert told == [True, False]
    assert clients.jobs.get("a1").message == "the job was cancelled at abdomen, 4 of 8"


def test_cancelled_before_it_came(clients):
    assert not clients.jobs.cancel("a1")
    assert isinstance(clients.send("a1").exception(PATIENCE_SECONDS), Cancelled)
    assert clients.ran == []
    clients.open()
    clients.send("a1")  # once only
    wait_until(lambda: clients.ran == ["a1"])


def test_id_is_used_once_at_a_time_and_over_means_over(clients):
    clients.send("a1")
    with pytest.raises(ValueError, match="job 'a1' is running; give each its own id"), clients.jobs.turn("a1"):
        pass
    assert clients.state("a1") == "running"
    clients.open()
    wait_until(lambda: clients.state("a1") == "done")
    assert not clients.jobs.cancel("a1")
    assert clients.state("a1") == "done"
    with clients.jobs.turn("a1"):
        assert clients.state("a1") == "running"


def test_only_the_next_in_line_works_ahead(clients):
    prepared: list[str] = []

    def ahead(job: Job) -> None:
        prepared.append(job.status.id)

    clients.send("a1")
    second, third = clients.send("b1", ahead=ahead), clients.send("c1", ahead=ahead)
    wait_until(lambda: prepared == ["b1"])
    assert clients.state("b1") == "queued"
    time.sleep(0.02)
    assert prepared == ["b1"]
    clients.open()
    for each in (second, third):
        each.result(PATIENCE_SECONDS)
    assert (prepared, clients.ran) == (["b1", "c1"], ["a1", "b1", "c1"])


def test_failure_ahead_lets_the_others_through(clients):
    def missing(job: Job) -> None:
        raise FileNotFoundError("image 'x' is not among the studies")

    clients.send("a1")
    failed = clients.send("b1", ahead=missing)
    assert isinstance(failed.exception(PATIENCE_SECONDS), FileNotFoundError)
    assert clients.state("b1") == "failed"
    after = clients.send("c1")
    clients.open()
    after.result(PATIENCE_SECONDS)
    assert clients.ran == ["a1", "c1"]


def test_a_job_that_needs_the_device_no_more_lets_the_next_one_have_it(clients):
    clients.send("a1", work=lambda job: job.release())
    clients.send("b1")
    wait_until(lambda: clients.state("b1") == "running")
    assert clients.state("a1") == "running"
    third = clients.send("c1")
    clients.open("a1")  # its end must not give b1's device away
    wait_until(lambda: clients.state("a1") == "done")
    assert clients.state("c1") == "queued"
    clients.open()
    third.result(PATIENCE_SECONDS)


def test_history_is_bounded_in_number_and_time():
    now = [0.0]
    jobs = Jobs(kept_seconds=600, kept=3, clock=lambda: now[0])
    for number in range(5):
        with jobs.turn(f"{number}"):
            now[0] += 1
    assert [status.id for status in jobs.all()] == ["4", "3", "2"]
    assert jobs.get("1") is None
    assert (jobs.get("4").state, jobs.get("4").seconds) == ("done", 1)
    now[0] = 603.5  # 2 and 3 ended at 3 and 4 seconds
    assert [status.id for status in jobs.all()] == ["4", "3"]
    now[0] = 606
    assert jobs.all() == []
    for number in range(50):
        jobs.cancel(f"unknown {number}")
    with jobs.turn("unknown 1"):  # forgotten: there are too many
        assert jobs.get("unknown 1").state == "running"
    with pytest.raises(Cancelled), jobs.turn("unknown 49"):
        pass
