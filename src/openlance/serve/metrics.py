"""What an operator watches, in Prometheus' form. Every server has its own registry."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, ProcessCollector, generate_latest
from prometheus_client.registry import Collector

SECONDS = (0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
SIZES = (1, 2, 4, 8, 16, 32, 64)
SILENT = 600.0  # seconds without a request


class Metrics(Collector):
    """Counts and times of one server, and of its replicas; `depth` tells how many results wait."""

    def __init__(self) -> None:
        self.replicas = dict[str, tuple[float, list[Metric]]]()  # when each was heard of, and what it had counted
        self.registry = r = CollectorRegistry()
        self.depth = Gauge("openlance_queue_depth", "Results that wait.", registry=r)
        self.wait = Histogram("openlance_wait_seconds", "From arrival to the pass.", registry=r, buckets=SECONDS)
        self.step = Histogram("openlance_step_seconds", "One step of a pass.", registry=r, buckets=SECONDS)
        self.batch = Histogram("openlance_batch_size", "Results of a pass.", registry=r, buckets=SIZES)
        self.phases = Histogram("openlance_phase_seconds", "Parts of the work.", ["phase"], registry=r, buckets=SECONDS)
        self.failures = Counter("openlance_failures", "Results that failed, by code.", ["code"], registry=r)
        self.http = Counter("openlance_http_requests", "Answers, by route.", ["method", "route", "status"], registry=r)
        Gauge("openlance_gpu_memory_bytes", "Most memory of the GPU.", registry=r).set_function(_gpu)
        ProcessCollector(registry=r)  # memory, CPU seconds and open files of the process

    def watch(self, depth: Callable[[], int]) -> None:
        self.depth.set_function(depth)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self.phases.labels(name).observe(time.perf_counter() - began)

    def hear(self, replica: str, counted: list[Metric]) -> None:
        """Keep what a replica has counted so far."""
        self.replicas[replica] = time.monotonic(), counted

    def collect(self) -> Iterable[Metric]:
        """Everything, the replicas' with their names; one that is silent for long is gone."""
        now, found = time.monotonic(), {family.name: family for family in self.registry.collect()}
        self.replicas = {name: heard for name, heard in self.replicas.items() if now - heard[0] < SILENT}
        for name, (_, counted) in self.replicas.items():
            for family in counted:
                found[family.name].samples += [s._replace(labels={**s.labels, "replica": name}) for s in family.samples]
        return found.values()

    def text(self) -> bytes:
        return generate_latest(self)


def _gpu() -> float:
    import torch

    return float(torch.cuda.max_memory_allocated()) if torch.cuda.is_available() else 0.0
