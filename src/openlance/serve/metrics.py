"""What an operator watches, in Prometheus' form. Every server has its own registry."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

SECONDS = (0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
SIZES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """Counts and times of one server; `depth` tells how many results wait."""

    def __init__(self) -> None:
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

    def text(self) -> bytes:
        return generate_latest(self.registry)


def _gpu() -> float:
    import torch

    return float(torch.cuda.max_memory_allocated()) if torch.cuda.is_available() else 0.0
