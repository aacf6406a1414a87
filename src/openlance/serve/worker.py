"""The queue, and the one thread that owns the model.

Every result that a client wants is an item. The oldest item heads the next pass, so that nothing starves; items of the
same settings join it in the order in which they came, whatever their sizes, up to a number of latent cells. An idle
worker begins at once; one that has just served some waits a moment for them to come back, since whoever misses a pass
waits for two.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Hashable, Mapping, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from openlance.config.sampling import Decoding, Sampling
from openlance.errors import UserError, out_of_memory
from openlance.inference.checking import Search, draw_seed, look
from openlance.inference.enhance import thinker
from openlance.inference.text import Shown
from openlance.media.clip import Clip
from openlance.sequence.segment import Segments, any_video
from openlance.serve.failures import (
    Failure,
    cancelled,
    failure_of,
    queue_full,
    shutting_down,
    takes_nothing,
    worker_ended,
)

if TYPE_CHECKING:
    from openlance.inference.lance_pipeline import LancePipeline
    from openlance.serve.config import ServeConfig
    from openlance.serve.metrics import Metrics

log = logging.getLogger(__name__)
REQUEST_ID: ContextVar[str] = ContextVar("REQUEST_ID", default="")  # of the request that is being answered
MOST_DEFECTS = 3  # in a row: then the worker counts as broken, as after a fault of the GPU


@dataclass(frozen=True)
class Begun:
    """The item is in a pass."""


@dataclass(frozen=True)
class Step:
    """So many of its steps are finished."""

    done: int
    total: int


@dataclass(frozen=True)
class Partial:
    """What the image is expected to become, number `index` of those that were asked for."""

    index: int
    clip: Clip


@dataclass(frozen=True)
class Piece:
    """The next part of an answer."""

    text: str


@dataclass(eq=False, kw_only=True)
class Item:
    """One result that is wanted.

    Args:
        request: Its target a hole.
        how: How it is drawn or written.
        seed: Of its noise, or of an answer that is drawn.
        cells: Latent cells it takes in a pass.
        negative: What guidance leads away from.
        think: Whether the model describes it first.
        search: Of what is checked: the draws until the model finds no fault.
        partials: How many previews are wanted, of the first draw.
        listener: Told of everything that happens to it, in the worker's thread.
        result: A video or an answer, or why there is none.
        stopped: Whether nobody wants it any more.
        told: What the listener has of an answer.
        origin: The id of the request that wants it.
        arrived: By `time.monotonic`.
    """

    request: Segments
    how: Sampling | Decoding
    seed: int
    cells: int = 1
    negative: str = ""
    think: bool = False
    search: Search | None = None
    partials: int = 0
    listener: Callable[[Any], None] = lambda event: None
    result: Future[Any] = field(default_factory=Future)
    stopped: bool = False
    told: str = ""
    origin: str = field(default_factory=lambda: REQUEST_ID.get() or f"item_{uuid.uuid4().hex}")
    arrived: float = 0.0

    @property
    def key(self) -> Hashable:
        """Items of one key can share a pass. Answers that are drawn at random share no generator."""
        own = id(self) if isinstance(self.how, Decoding) and self.how.temperature > 0 else None
        return self.how, any_video([self.request]), own

    def seed_of(self, clip: Clip) -> int:
        """The seed of the draw that became the result."""
        return self.seed if clip.verdict is None else draw_seed(self.seed, clip.verdict.draw)

    @property
    def drawn(self) -> int:
        """How often it was drawn already."""
        return 0 if self.search is None else self.search.draws

    def settle(self, value: Any) -> None:
        """Give the result, or the failure in its place, unless there is one already."""
        with suppress(InvalidStateError):
            if isinstance(value, Failure):
                self.result.set_exception(value)
            else:
                self.result.set_result(value)

    def __reduce__(self) -> tuple:
        """To another process goes what is wanted, not who waits for it."""
        wanted = ("request", "how", "seed", "cells", "negative", "think", "search", "partials", "origin")
        return partial(Item, **{name: getattr(self, name) for name in wanted}), ()


class Queue(Protocol):
    """What takes items: a `Worker`, or a cluster of them (`cluster.Cluster`)."""

    pending: list[Item]
    closed: bool
    thread: threading.Thread
    draining: bool  # whether it ends what is there and takes nothing new

    @property
    def state(self) -> str: ...

    def items(self) -> tuple[list[Item], list[Item]]: ...

    def admit(self, count: int) -> None: ...

    def put(self, items: Sequence[Item]) -> None: ...

    def cancel(self, items: Sequence[Item]) -> None: ...

    def close(self, timeout: float) -> None: ...


def follow(queue: Queue, items: Sequence[Item]) -> AsyncGenerator[tuple[int, Any], None]:
    """Queue items; the number of one and what happens to it: events, at last its result, a future that is done. Whoever
    stops listening cancels them."""
    loop, heard = asyncio.get_running_loop(), asyncio.Queue[tuple[int, Any]]()

    def tell(number: int, event: Any) -> None:
        with suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(heard.put_nowait, (number, event))

    for n, item in enumerate(items):
        item.listener = partial(tell, n)
        item.result.add_done_callback(item.listener)
    queue.put(items)
    return _heard(queue, items, heard)


async def _heard(queue: Queue, items: Sequence[Item], heard: asyncio.Queue) -> AsyncGenerator[tuple[int, Any], None]:
    left = len(items)
    try:
        while left:
            number, event = await heard.get()
            left -= event is items[number].result
            yield number, event
    finally:
        queue.cancel(items)


def room(pipe: LancePipeline, config: ServeConfig) -> int:
    """Latent cells of one pass."""
    usual = pipe.codec.latent_grid((1, pipe.defaults.height, pipe.defaults.width))
    return config.batch_cells or pipe.defaults.batch * usual[1] * usual[2]


class _NobodyWaits(Exception):
    """Every item of a pass was cancelled."""


class Worker:
    """Runs items on a pipeline, a pass after another, until it is closed. videos: it begins with the checkpoint for
    videos, where that is another."""

    def __init__(self, pipe: LancePipeline, config: ServeConfig, metrics: Metrics, clips: bool = False) -> None:
        self.pipe, self.config, self.metrics, self.clips = pipe, config, metrics, clips
        self.most = room(pipe, config)
        metrics.watch(lambda: len(self.pending))
        self.pending, self.running = list[Item](), list[Item]()
        self.changed = threading.Condition()
        self.draining, self.closed, self.ended = False, False, False  # ended: its thread is through
        self.until = math.inf  # when the last step has to be done
        self.loaded = False
        self.spent = 0.0  # seconds of the last pass
        self.pace = 0.0  # seconds of an item, measured
        self.defects = 0  # results in a row that failed by no fault of anyone's
        self.beat = time.monotonic()
        self.thread = threading.Thread(target=self._run, name="openlance-worker", daemon=True)

    # For the event loop and other threads.

    def put(self, items: Sequence[Item]) -> None:
        """Queue items, all or none. Failure as of `admit`."""
        with self.changed:
            self.admit(len(items))
            for item in items:
                item.arrived = time.monotonic()
            self.pending += items
            self.changed.notify()

    def admit(self, count: int) -> None:
        """Failure for so many items more: the queue is full, or the server ends or cannot work."""
        for cannot, why in ((self.closed, shutting_down), (self.draining, takes_nothing), (self.ended, worker_ended)):
            if cannot:
                raise why()
        if len(self.pending) + count > self.config.queued:
            raise queue_full(len(self.pending), self.pace * (len(self.pending) + len(self.running)))

    def cancel(self, items: Sequence[Item]) -> None:
        """Forget items that wait, and stop those that run at their next step."""
        with self.changed:
            for item in items:
                item.stopped = True
                if item in self.pending:
                    self.pending.remove(item)
                    item.settle(cancelled())

    def items(self) -> tuple[list[Item], list[Item]]:
        """What runs, and what waits."""
        with self.changed:
            return [item for item in self.running if not item.result.done()], list(self.pending)

    @property
    def state(self) -> str:
        """ "ready", or why not."""
        if self.closed:
            return "shutting down"
        if self.ended:
            return "the worker has ended"
        if not self.loaded:
            return "loading"
        if self.draining:
            return "draining"
        if self.defects >= MOST_DEFECTS:
            return "the last results all failed; the log says why"
        stuck = self.running and time.monotonic() - self.beat > self.config.stalled
        return "the worker is stuck" if stuck else "ready"

    def close(self, timeout: float) -> None:
        """Take no more, fail what waits, stop what runs at its next step, and wait for that: no longer than the first
        call says."""
        with self.changed:
            self.closed = True
            self.until = min(self.until, time.monotonic() + timeout)
            waiting, self.pending = self.pending, []
            for item in self.running:
                item.stopped = True
            self.changed.notify()
        for item in waiting:
            item.settle(shutting_down())
        self.thread.join(max(self.until - time.monotonic(), 0.0))
        for item in list(self.running):  # a step that takes longer is not waited for
            item.settle(shutting_down())

    # In the worker's own thread.

    def _run(self) -> None:
        try:
            self._work()
        except BaseException:
            log.exception("the worker has ended")
        finally:
            with self.changed:
                self.ended = True
                for item in [*self.running, *self.pending]:
                    item.settle(worker_ended())

    def _work(self) -> None:
        self._load()
        while batch := self._take():
            began = time.monotonic()
            self.metrics.batch.observe(len(batch))
            for item in batch:
                self.metrics.wait.observe(began - item.arrived)
            self._serve(batch)
            self.spent = time.monotonic() - began
            pace = self.spent / len(batch)
            self.pace = pace if not self.pace else 0.8 * self.pace + 0.2 * pace

    def _load(self) -> None:
        """Read what most requests need, so that the first one need not wait for it."""
        try:
            self.pipe.lance("und", "gen", clips=self.clips)
            self.pipe.vae()
            self.pipe.vit(self.clips)
        except UserError as error:  # a part is missing: what needs it says so
            log.warning("%s", error)
        self.loaded = True

    def _take(self) -> list[Item]:
        """The next pass, empty when there is none any more."""
        with self.changed:
            expected, self.running = len(self.pending) + len(self.running), []
            patience = self.config.share * self.spent
            until, gap = time.monotonic() + patience, max(self.config.window, patience / 4)
            while len(self.pending) < expected and sum(item.cells for item in self.pending) < self.most:
                left = min(until - time.monotonic(), gap)
                if self.closed or left <= 0 or not self.changed.wait(left):
                    break  # nobody comes any more
            self.changed.wait_for(lambda: self.closed or self.pending)
            if not self.pending:
                return []
            head, cells = self.pending[0], 0
            for item in self.pending:
                if item.key == head.key and (not cells or cells + item.cells <= self.most):
                    self.running.append(item)
                    cells += item.cells
                elif item.key == head.key:
                    break  # the next of its kind does not fit: those behind it do not overtake it
            self.pending = [item for item in self.pending if item not in self.running]
            self.beat = time.monotonic()
            return list(self.running)

    def _serve(self, batch: Sequence[Item]) -> None:
        """Settle every item. A pass that fails is taken apart, until only what cannot be done fails."""
        batch = self._wanted(batch)
        if not batch:
            return
        try:
            for item in batch:
                if not item.drawn:
                    item.listener(Begun())
            write = self._write if isinstance(batch[0].how, Decoding) else self._draw
            values = write(batch)
            self.defects = 0
            self._again([item for item, value in values.items() if value is None])
            for item, value in values.items():
                if value is not None:
                    item.settle(value)
            return
        except _NobodyWaits:
            return
        except Exception as error:  # noqa: BLE001  whatever it is, the next pass has to run
            failure = failure_of(error)
            if failure.status >= 500:
                log.exception("a pass of %d failed", len(batch))
            if out_of_memory(error) and torch.cuda.is_available():
                error.__traceback__ = None  # it holds the tensors
                torch.cuda.empty_cache()
        if len(batch) == 1:
            self.metrics.failures.labels(failure.code).inc()
            self.defects += failure.code == "internal_error"
            batch[0].settle(failure)
            return
        half = len(batch) // 2
        self._serve(batch[:half])
        self._serve(batch[half:])

    def _again(self, items: Sequence[Item]) -> None:
        """Queue items that are to be drawn once more, behind those that wait: nobody waits for all draws of another."""
        with self.changed:
            closed = self.closed
            for item in items:
                item.arrived = time.monotonic()
            self.pending += [] if closed else items
        for item in items if closed else ():
            item.settle(shutting_down())

    def _heed(self, batch: Sequence[Item]) -> list[Item]:
        """Between two steps: who left is let go, and a pass of which nobody is left ends."""
        now = time.monotonic()
        self.metrics.step.observe(now - self.beat)
        self.beat = now
        wanted = self._wanted(batch)
        if not wanted:
            raise _NobodyWaits
        return wanted

    def _wanted(self, batch: Sequence[Item]) -> list[Item]:
        """The items that somebody still waits for; the others are settled."""
        for item in batch:
            if item.stopped:
                item.settle(shutting_down() if self.closed else cancelled())
        return [item for item in batch if not item.stopped]

    def _draw(self, batch: Sequence[Item]) -> Mapping[Item, Clip | None]:
        """The results of those who stay to the end; the rows of the others are left out from the next step on. None
        where the model finds a fault, and it is to be drawn again."""
        how = batch[0].how
        assert isinstance(how, Sampling)
        for item in batch:
            think = thinker(self.pipe, item.think)
            item.request, item.think = item.request if think is None else think(item.request), False
        pipe, requests = self.pipe, [item.request for item in batch]
        grids = [pipe.codec.latent_grid(request[-1].size) for request in requests]  # type: ignore[arg-type]
        before = 1.0, torch.empty(0)

        def on_step(step: int, t: float, x: Tensor) -> None:
            nonlocal before
            before = t, x

        def after_step(step: int, t: float, x: Tensor) -> None:
            done, total = step + 1, how.steps
            for item in self._heed(batch):
                item.listener(Step(item.drawn * total + done, (item.search.most if item.search else 1) * total))
            due = {n: _partial(item, done, total) for n, item in enumerate(batch)}
            if any(index is not None for index in due.values()):
                clean = _expected(*before, t, x)
                parts = clean.split([math.prod(grid) for grid in grids])
                for n, index in due.items():
                    if index is not None:
                        clip = pipe.decode_latents([parts[n].reshape(*grids[n], -1)], [requests[n]])[0]
                        batch[n].listener(Partial(index, clip))

        seeds = [item.seed if item.search is None else item.search.next_seed for item in batch]
        negatives = [item.negative for item in batch]
        with self.metrics.phase("denoise"):
            made = pipe.fill_latents(
                requests, how, seeds, on_step=on_step, after_step=after_step, negatives=negatives,
                wanted=lambda: [not item.stopped for item in batch],
            )  # fmt: skip
        left = self._wanted(batch)
        at = [n for n, item in enumerate(batch) if item in left]
        with self.metrics.phase("decode"):
            own = [batch[n].request for n in at]
            clips = pipe.decode_latents([made[n] for n in at], own)
        seeds, negatives = [seeds[n] for n in at], [negatives[n] for n in at]
        found = dict(zip(left, pipe.signed(clips, own, how, seeds, negatives), strict=True))
        searches = {item: item.search for item in left if item.search is not None}
        if searches:
            with self.metrics.phase("check"):
                look(pipe, list(searches.values()), [found[item] for item in searches])
        return found | {item: search.best if search.done else None for item, search in searches.items()}

    def _write(self, batch: Sequence[Item]) -> Mapping[Item, Any]:
        how = batch[0].how
        assert isinstance(how, Decoding)
        shown = [Shown(self.pipe.tokenizer, _pieces(item), how.stop) for item in batch]

        def on_token(index: int, token: int) -> None:
            self._heed(batch)
            shown[index].add(index, token)

        generator = torch.Generator().manual_seed(batch[0].seed) if how.temperature > 0 else None
        with self.metrics.phase("write"):
            answers = self.pipe.fill_text([item.request for item in batch], how, generator, on_token)
        for told, answer in zip(shown, answers, strict=True):
            told.up_to(answer)
        return dict(zip(batch, answers, strict=True))


def _pieces(item: Item) -> Callable[[str], None]:
    """Hands pieces of an answer on, but for what was told in an earlier pass, which failed."""
    text = ""

    def add(piece: str) -> None:
        nonlocal text
        text += piece
        if new := text[len(item.told) :]:
            item.listener(Piece(new))
            item.told = text

    return add


def _partial(item: Item, done: int, total: int) -> int | None:
    """The number of the preview that is due after so many steps, if one is; they are evenly spread."""
    marks = [] if item.drawn else [round(total * (k + 1) / (item.partials + 1)) for k in range(item.partials)]
    return marks.index(done) if done in marks and done < total and not item.stopped else None


def _expected(t_before: float, before: Tensor, t: float, x: Tensor) -> Tensor:
    """The clean latents to which the line through two states leads."""
    return x - (before - x) * (t / (t_before - t))
