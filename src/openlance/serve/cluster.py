"""The model on replicas of Ray Serve: the server stays as it is, with a `Cluster` in the place of its one worker.

Each replica has a pipeline and a `Worker` of its own, so that requests which meet there share a pass. A request goes to
one replica whole, and what happens to it comes back as events; who leaves stops it there. The bound of the queue, jobs
and files stay with the server, the only one that writes them: machines need not share a disk.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import re
import secrets
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import aclosing, contextmanager, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from openlance.errors import UserError
from openlance.sequence.segment import any_video
from openlance.serve.failures import Failure, cancelled, failure_of, queue_full, shutting_down, takes_nothing
from openlance.serve.metrics import Metrics
from openlance.serve.worker import Begun, Item, Partial, Piece, Step, Worker, follow, room

if TYPE_CHECKING:
    from openlance.inference.lance_pipeline import LancePipeline
    from openlance.serve.config import ServeConfig

log = logging.getLogger(__name__)
GROWS = {"upscale_delay_s": 10}  # results take seconds: what lasts longer is a queue
LOOK = 1.0  # seconds between two looks at the replicas
PATIENCE = 2.0  # seconds for an address to answer, and for replicas to hear of the end


@dataclass(frozen=True)
class Counted:
    """What a replica says with its last word on a request: its name, seconds of a result, and its metrics."""

    name: str
    pace: float
    metrics: list[Any]


class Replica:
    """A pipeline and its worker, in a process of Ray's; there once its model is.

    Args:
        load: Gives the pipeline.
        config: What the worker may do.
        clips: Whether it is there for videos alone.
    """

    def __init__(self, load: Callable[[], LancePipeline], config: ServeConfig, clips: bool) -> None:
        from ray import serve

        context = serve.get_replica_context()
        self.name = f"{context.app_name}-{context.replica_tag}"
        self.metrics = Metrics()
        self.worker = Worker(load(), config, self.metrics, clips)
        self.worker.thread.start()
        while self.worker.state == "loading":
            time.sleep(0.05)

    async def fill(self, items: Sequence[Item]) -> AsyncIterator[tuple[int, Any]]:
        """Events of items by their number, results and failures among them; at last what the replica counts."""
        try:
            heard = follow(self.worker, items)
        except Failure as failure:  # it ends
            for n in range(len(items)):
                yield n, failure
            return
        async with aclosing(heard):
            async for n, event in heard:
                yield n, (event.exception() or event.result()) if isinstance(event, Future) else event
        yield -1, Counted(self.name, self.worker.pace, list(self.metrics.registry.collect()))

    def check_health(self) -> None:
        """Asked by Ray, which replaces a replica that raises."""
        if self.worker.state != "ready":
            raise RuntimeError(self.worker.state)


class Cluster:
    """A queue (`worker.Queue`) before the replicas, which come with its thread. The two checkpoints of a released tree
    have replicas of their own, where there is room for both.

    Args:
        pipe: Settings and tokenizer of the model; its weights are not read here.
        config: Limits; `queued` counts what no replica has begun.
        metrics: Gets those of the replicas too.
        load: Gives a replica its pipeline, wherever it runs.
        least: Replicas of each checkpoint.
        most: As many at times; None: one on every GPU, without GPUs `least`.
        target: Requests of a replica at which another is started; None: as many results as one pass holds.
    """

    def __init__(
        self, pipe: LancePipeline, config: ServeConfig, metrics: Metrics, *, load: Callable[[], LancePipeline],
        least: int = 1, most: int | None = None, target: int | None = None,
    ) -> None:  # fmt: skip
        self.pipe, self.config, self.metrics = pipe, config, metrics
        self.load, self.least, self.most, self.target = load, least, most, target
        self.pending: list[Item] = []
        self.calls = dict[Item, tuple[Future[None], Sequence[Item]]]()  # the requests of items that are not settled
        self.lock = threading.Lock()
        self.pace = 0.0  # seconds of a result, as a replica said last
        self.handles = dict[bool, Any]()  # by whether it is for videos
        self.running = dict[str, int]()  # replicas of each application
        self.problem = ""  # why there is none
        self.closed, self.draining, self.loop = False, False, asyncio.new_event_loop()
        self.deployed, self.ended = asyncio.Event(), asyncio.Event()
        self.thread = threading.Thread(target=self._run, name="openlance-ray", daemon=True)
        metrics.watch(lambda: len(self.pending))

    # For the server's event loop and other threads.

    def put(self, items: Sequence[Item]) -> None:
        """Queue items of one request, all or none. Failure if the queue is full, or the server ends or cannot work."""
        with self.lock:
            self.admit(len(items))
            for item in items:
                item.arrived = time.monotonic()
            self.pending += items
            for clips in (False, True):
                if together := [item for item in items if any_video([item.request]) == clips]:
                    call = asyncio.run_coroutine_threadsafe(self._follow(together, clips), self.loop)
                    self.calls |= dict.fromkeys(together, (call, together))

    def admit(self, count: int) -> None:
        """Failure if so many items could not be queued now."""
        if self.closed:
            raise shutting_down()
        if self.draining:
            raise takes_nothing()
        if self.problem:
            raise Failure(self.problem, status=503, code="worker_ended")
        if len(self.pending) + count > self.config.queued:
            replicas = max(sum(self.running.values()), 1)
            raise queue_full(len(self.pending), self.pace * len(self.calls) / replicas)

    def cancel(self, items: Sequence[Item]) -> None:
        """Settle items, and stop a request at its replica's next step when nobody wants anything more of it."""
        items = [item for item in items if not item.result.done()]
        with self.lock:
            calls = [self.calls[item] for item in items if item in self.calls]
        for item in items:
            item.stopped = True
            item.settle(shutting_down() if self.closed else cancelled())
        for call, together in calls:
            if all(item.result.done() for item in together):
                call.cancel()

    def items(self) -> tuple[list[Item], list[Item]]:
        """What runs, and what waits."""
        with self.lock:
            waiting = list(self.pending)
            return [item for item in self.calls if item not in waiting and not item.result.done()], waiting

    @property
    def state(self) -> str:
        """ "ready", or why not."""
        if self.closed:
            return "shutting down"
        if self.problem:
            return self.problem
        if not self.running:
            return "loading"
        if self.draining:
            return "draining"
        return "ready" if all(self.running.values()) else "no replica runs"

    def close(self, timeout: float) -> None:
        """Take no more, fail what waits or runs, and let the replicas go."""
        with self.lock:
            self.closed = True
            items = list(self.calls)
        self.cancel(items)
        if self.thread.is_alive():
            with suppress(RuntimeError):  # the loop has ended
                self.loop.call_soon_threadsafe(self.ended.set)
            self.thread.join(timeout)

    # In the cluster's own thread.

    def _run(self) -> None:
        self.loop.run_until_complete(self._main())
        self.loop.close()

    async def _main(self) -> None:
        names = list[str]()
        try:
            names = await asyncio.to_thread(self._deploy)
            self.deployed.set()
        except Exception as error:  # noqa: BLE001  Ray may be gone: clients are told
            self._give_up(error)
        while not self.ended.is_set():
            if not self.problem:
                await asyncio.to_thread(self._look, names)
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self.ended.wait(), LOOK)
        if calls := asyncio.all_tasks() - {asyncio.current_task()}:
            await asyncio.wait(calls, timeout=PATIENCE)
        await asyncio.to_thread(_delete, names)

    def _deploy(self) -> list[str]:
        """Ask Ray for replicas; the names of the applications that were made."""
        import ray
        from ray import serve

        every = ray.cluster_resources()
        gpus, cpus = int(every.get("GPU", 0)), int(every.get("CPU", 1))
        largest = max(int(node["Resources"].get("CPU", 1)) for node in ray.nodes())
        kinds = (False, True)[: len(self.pipe.parts.files.decoders)]  # whether it is for videos
        if (gpus or cpus) < self.least * len(kinds):
            kinds = (False,)  # which does both
        if (gpus or cpus) < self.least:
            log.warning("%d replicas have to wait until Ray has more than %d", self.least, gpus or cpus)
        most = self.most or max(gpus - self.least * (len(kinds) - 1), self.least)
        share = {"num_gpus": 1} if gpus else {"num_cpus": min(max(cpus // (most * len(kinds)), 1), largest)}
        targets = list[serve.RunTarget]()
        for clips in kinds:
            holds = max(room(self.pipe, self.config) // self._usual(clips), 1)  # results of one pass
            target = self.target or holds
            scaled = {"min_replicas": self.least, "max_replicas": most, "target_ongoing_requests": target}
            deployment = serve.deployment(
                **({"num_replicas": most} if most == self.least else {"autoscaling_config": scaled | GROWS}),
                max_ongoing_requests=2 * max(target, holds),  # a pass, and the next one
                ray_actor_options=share, graceful_shutdown_timeout_s=self.config.stalled, health_check_period_s=5,
                logging_config={"enable_access_log": False, "log_level": "WARNING"},
            )(Replica)  # fmt: skip
            name = "-".join(["openlance", re.sub(r"\W+", "-", self.config.name), "videos" if clips else "images"])
            bound = deployment.bind(self.load, replace(self.config, api_keys=(), admin_key=""), clips)
            targets.append(serve.RunTarget(bound, name=name, route_prefix=None))
        handles = serve.run_many(targets, wait_for_applications_running=False)
        self.handles = {clips: handle.fill.options(stream=True) for clips, handle in zip(kinds, handles)}
        return [target.name for target in targets]

    def _usual(self, clips: bool) -> int:
        """Latent cells of a usual image or video."""
        d = self.pipe.defaults
        return math.prod(self.pipe.codec.latent_grid((d.num_frames if clips else 1, d.height, d.width)))

    def _look(self, names: list[str]) -> None:
        """See which replicas run."""
        from ray import serve
        from ray.serve.schema import ReplicaState

        try:
            every = serve.status().applications
            found = {name: every[name] for name in names}
        except Exception:  # noqa: BLE001  Ray replaces its controller too
            if any(self.running.values()):  # once
                log.exception("Ray does not say how its replicas are")
            self.running = dict.fromkeys(names, 0)
            return
        running = dict.fromkeys(names, 0)
        for name, one in found.items():
            if one.status == "DEPLOY_FAILED":
                return self._give_up(" ".join([one.message, *(each.message for each in one.deployments.values())]))
            for deployment in one.deployments.values():
                running[name] += deployment.replica_states.get(ReplicaState.RUNNING, 0)
        if self.running or all(running.values()):  # before, they load
            self.running = running

    def _give_up(self, why: Any) -> None:
        log.error("the replicas could not be started: %s", why)
        with self.lock:
            self.problem = "the replicas could not be started; the log says why"
            calls = list(self.calls.items())
        for item, (call, _) in calls:
            item.settle(Failure(self.problem, status=503, code="worker_ended"))
            call.cancel()

    async def _follow(self, items: Sequence[Item], clips: bool) -> None:
        """Send items to one replica, and hear what becomes of them; videos: they are about videos."""
        response, failure = None, _lost()
        try:
            await self.deployed.wait()
            response = self.handles.get(clips, self.handles[False]).remote(items)
            async for n, event in response:
                self._hear(items, n, event)
            response = None
        except asyncio.CancelledError:
            failure = cancelled()
        except Exception as error:  # noqa: BLE001  whatever it is, somebody waits for an answer
            failure = _failure_of(error)
            log.exception("a request to a replica failed")
        if response is not None:
            response.cancel()
        with self.lock:
            for item in items:
                del self.calls[item]
                self._begun(item)
        for item in items:
            if not item.result.done():
                self.metrics.failures.labels(failure.code).inc()
            item.settle(failure)

    def _hear(self, items: Sequence[Item], n: int, event: Any) -> None:
        if isinstance(event, Counted):
            self.pace = event.pace
            self.metrics.hear(event.name, event.metrics)
        elif isinstance(event, (Begun, Step, Partial, Piece)):
            if isinstance(event, Begun):
                with self.lock:
                    self._begun(items[n])
            items[n].listener(event)
        else:
            items[n].settle(event)

    def _begun(self, item: Item) -> None:
        if item in self.pending:
            self.pending.remove(item)


def _delete(names: list[str]) -> None:
    from ray import serve

    for name in names:
        serve.delete(name, _blocking=False)


def _lost() -> Failure:
    message = "the replica that worked on this has ended: ask again"
    return Failure(message, status=503, code="server_restarted", retry_after=1)


def _failure_of(error: Exception) -> Failure:
    """What Ray raises where a replica is gone, or has a defect."""
    from ray.exceptions import RayError, RayTaskError
    from ray.serve.exceptions import RayServeException

    gone = isinstance(error, (RayError, RayServeException)) and not isinstance(error, RayTaskError)
    return _lost() if gone else failure_of(error)


@contextmanager
def connected(address: str | None) -> Iterator[None]:
    """A cluster of Ray for the block: the one at an address, else at $RAY_ADDRESS, else one of this machine's own.

    Args:
        address: HOST:PORT, or "auto" for the one that this machine belongs to.

    Raises:
        UserError: Ray is not installed, or there is no such cluster.
    """
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray's ports listen on all addresses, to those who have this token. Ray reads it when imported; where that was
    # before, it goes by a file of its own.
    if address == "local" and "ray" not in sys.modules:
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    try:
        import ray
        from ray import serve
    except ImportError as error:
        raise UserError("replicas need Ray: pip install 'openlance[scale]', or leave --ray out") from error
    try:
        try:
            host, _, port = address.rpartition(":")
            if host and port.isdecimal():  # Ray itself would try for many minutes
                socket.create_connection((host.strip("[]"), int(port)), PATIENCE).close()
            ray.init(address, include_dashboard=False, log_to_driver=False, configure_logging=False)
            for name in ("ray", "ray.serve"):  # in our form, to our handler
                logger = logging.getLogger(name)
                logger.handlers, logger.propagate = [], True
                logger.setLevel(logging.WARNING)
            serve.start(proxy_location="Disabled")  # our server is the only one
        except (OSError, RuntimeError, ValueError) as error:
            raise UserError(
                f"there is no Ray cluster at {address!r} ({error}): start one, or give another --address"
            ) from error
        yield
    finally:
        ray.shutdown()
