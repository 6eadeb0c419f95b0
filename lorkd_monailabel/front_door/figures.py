"""What the server counts for Prometheus."""

from collections.abc import Iterable
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric

BUCKETS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.15, 0.3, 1, 3, 10, 30, 100, 300)
NAMESPACE = "lorkd"
"""Prefix of all names."""


class Figures:
    """Counters of the requests, and what is read from the app when somebody asks."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)  # memory, processor time and open files of this process
        labels = ("method", "route")
        self.requests = Counter(
            f"{NAMESPACE}_requests", "Requests that were answered", (*labels, "status"), registry=self.registry
        )
        self.seconds = Histogram(
            f"{NAMESPACE}_request_seconds", "Time to the answer", labels, buckets=BUCKETS, registry=self.registry
        )

    def observe(self, method: str, route: str, *, status: int, seconds: float) -> None:
        """Count an answer."""
        self.requests.labels(method, route, str(status)).inc()
        self.seconds.labels(method, route).observe(seconds)

    def text(self, app: Any) -> bytes:
        """Give everything in Prometheus's own format.

        Args:
            app: the instance of the MONAI Label app, with its jobs and its store.
        """
        registry = CollectorRegistry()
        registry.register(_Now(app))
        return generate_latest(self.registry) + generate_latest(registry)


class _Now:
    """What is so now: jobs, memory, revisions."""

    def __init__(self, app: Any) -> None:
        self.app = app

    def collect(self) -> Iterable[Metric]:
        """Give a value each."""
        import torch

        states = [job.state for job in self.app.jobs.all()]
        yield GaugeMetricFamily(f"{NAMESPACE}_jobs_queued", "Jobs that wait", value=states.count("queued"))
        yield GaugeMetricFamily(f"{NAMESPACE}_jobs_running", "Jobs that compute", value=states.count("running"))
        memory = GaugeMetricFamily(
            f"{NAMESPACE}_device_memory_bytes", "Memory of the devices", labels=["device", "kind"]
        )
        for number in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(number)
            memory.add_metric([f"cuda:{number}", "used"], total - free)
            memory.add_metric([f"cuda:{number}", "total"], total)
        yield memory
        revisions = GaugeMetricFamily(f"{NAMESPACE}_revision", "Served revision of an expert", labels=["department"])
        for department in self.app.store.departments():
            revisions.add_metric([department], self.app.store.served(department) or 0)
        yield revisions


FIGURES = Figures()
"""Those of this process."""
