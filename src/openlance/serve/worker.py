"""The queue, and the one thread that owns the model.

Every result that a client wants is an item. The oldest item heads the next pass, so that nothing starves; items of the
same settings join it in the order in which they came, whatever their sizes, up to a number of latent cells. An idle
worker begins at once; one that has just served several waits a moment for as many to come back.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from openlance.config.sampling import Decoding, Sampling
from openlance.errors import UserError, out_of_memory
from openlance.inference.text import Shown
from openlance.media.clip import Clip
from openlance.sequence.segment import Segments, any_video
from openlance.serve.failures import Failure, cancelled, failure_of, shutting_down

if TYPE_CHECKING:
    from openlance.inference.lance_pipeline import LancePipeline
    from openlance.serve.config import ServeConfig
    from openlance.serve.metrics import Metrics

log = logging.getLogger(__name__)
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
        partials: How many previews are wanted.
        listener: Told of everything that happens to it, in the worker's thread.
        result: A video or an answer, or why there is none.
        stopped: Whether nobody wants it any more.
        told: What the listener has of an answer.
        arrived: By `time.monotonic`.
    """

    request: Segments
    how: Sampling | Decoding
    seed: int
    cells: int = 1
    negative: str = ""
    partials: int = 0
    listener: Callable[[Any], None] = lambda event: None
    result: Future[Any] = field(default_factory=Future)
    stopped: bool = False
    told: str = ""
    arrived: float = 0.0

    @property
    def key(self) -> Hashable:
        """Items of one key can share a pass. Answers that are drawn at random share no generator."""
        own = id(self) if isinstance(self.how, Decoding) and self.how.temperature > 0 else None
        return self.how, any_video([self.request]), own

    def settle(self, value: Any) -> None:
        """Give the result, or the failure in its place, unless there is one already."""
        with suppress(InvalidStateError):
            if isinstance(value, Failure):
                self.result.set_exception(value)
            else:
                self.result.set_result(value)


class _NobodyWaits(Exception):
    """Every item of a pass was cancelled."""


class Worker:
    """Runs items on a pipeline, a pass after another, until it is closed."""

    def __init__(self, pipe: LancePipeline, config: ServeConfig, metrics: Metrics) -> None:
        self.pipe, self.config, self.metrics = pipe, config, metrics
        usual = pipe.codec.latent_grid((1, pipe.defaults.height, pipe.defaults.width))
        self.most = config.batch_cells or pipe.defaults.batch * usual[1] * usual[2]
        self.pending: list[Item] = []
        self.running: list[Item] = []
        self.changed = threading.Condition()
        self.closed = False
        self.loaded = False
        self.spent = 0.0  # seconds of the last pass
        self.pace = 0.0  # seconds of an item, measured
        self.defects = 0  # results in a row that failed by no fault of anyone's
        self.beat = time.monotonic()
        self.thread = threading.Thread(target=self._run, name="openlance-worker", daemon=True)

    # For the event loop and other threads.

    def put(self, items: Sequence[Item]) -> None:
        """Queue items, all or none. Failure if the queue is full, or the server ends or cannot work."""
        with self.changed:
            if self.closed:
                raise shutting_down()
            if self.thread.ident is not None and not self.thread.is_alive():
                raise Failure("the worker has ended; the log says why", status=503, code="worker_ended")
            if len(self.pending) + len(items) > self.config.queued:
                wait = min(max(self.pace * (len(self.pending) + len(self.running)), 1.0), 120.0)
                message = f"{len(self.pending)} results are waiting already: ask again in {wait:.0f} seconds"
                raise Failure(message, status=429, code="queue_full", retry_after=wait)
            for item in items:
                item.arrived = time.monotonic()
            self.pending += items
            self.changed.notify()

    def cancel(self, items: Sequence[Item]) -> None:
        """Forget items that wait, and stop those that run at their next step."""
        with self.changed:
            for item in items:
                item.stopped = True
                if item in self.pending:
                    self.pending.remove(item)
                    item.settle(cancelled())

    @property
    def state(self) -> str:
        """ "ready", or why not."""
        if self.closed:
            return "shutting down"
        if not self.thread.is_alive():
            return "the worker has ended"
        if not self.loaded:
            return "loading"
        if self.defects >= MOST_DEFECTS:
            return "the last results all failed; the log says why"
        stuck = self.running and time.monotonic() - self.beat > self.config.stalled
        return "the worker is stuck" if stuck else "ready"

    def close(self, timeout: float) -> None:
        """Take no more, fail what waits, stop what runs at its next step, and wait for that."""
        with self.changed:
            self.closed = True
            waiting, self.pending = self.pending, []
            for item in self.running:
                item.stopped = True
            self.changed.notify()
        for item in waiting:
            item.settle(shutting_down())
        self.thread.join(timeout)

    # In the worker's own thread.

    def _run(self) -> None:
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
            self.pipe.lance("und", "gen")
            self.pipe.vae()
            self.pipe.vit()
        except UserError as error:  # a part is missing: what needs it says so
            log.warning("%s", error)
        self.loaded = True

    def _take(self) -> list[Item]:
        """The next pass, empty when there is none any more."""
        with self.changed:
            back, self.running = len(self.running), []
            until = time.monotonic() + self.config.share * self.spent
            while 1 < back > len(self.pending) and not self.closed and time.monotonic() < until:
                if not self.changed.wait(self.config.window):
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
                item.listener(Begun())
            write = self._write if isinstance(batch[0].how, Decoding) else self._draw
            values = write(batch)
            self.defects = 0
            for item, value in zip(batch, values, strict=True):
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

    def _draw(self, batch: Sequence[Item]) -> list[Clip]:
        how = batch[0].how
        assert isinstance(how, Sampling)
        pipe, requests = self.pipe, [item.request for item in batch]
        grids = [pipe.codec.latent_grid(request[-1].size) for request in requests]  # type: ignore[arg-type]
        before = 1.0, torch.empty(0)

        def on_step(step: int, t: float, x: Tensor) -> None:
            nonlocal before
            before = t, x

        def after_step(step: int, t: float, x: Tensor) -> None:
            done, total = step + 1, how.steps
            for item in self._heed(batch):
                item.listener(Step(done, total))
            due = {n: _partial(item, done, total) for n, item in enumerate(batch)}
            if any(index is not None for index in due.values()):
                clean = _expected(*before, t, x)
                parts = clean.split([math.prod(grid) for grid in grids])
                for n, index in due.items():
                    if index is not None:
                        clip = pipe.decode_latents([parts[n].reshape(*grids[n], -1)], [requests[n]])[0]
                        batch[n].listener(Partial(index, clip))

        seeds, negatives = [item.seed for item in batch], [item.negative for item in batch]
        with self.metrics.phase("denoise"):
            made = pipe.fill_latents(requests, how, seeds, on_step=on_step, after_step=after_step, negatives=negatives)
        with self.metrics.phase("decode"):
            return pipe.signed(pipe.decode_latents(made, requests), requests, how, seeds, negatives)

    def _write(self, batch: Sequence[Item]) -> Sequence[Any]:
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
        return answers


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
    marks = [round(total * (k + 1) / (item.partials + 1)) for k in range(item.partials)]
    return marks.index(done) if done in marks and done < total and not item.stopped else None


def _expected(t_before: float, before: Tensor, t: float, x: Tensor) -> Tensor:
    """The clean latents to which the line through two states leads."""
    return x - (before - x) * (t / (t_before - t))
