"""Worker processes whose results come in the order in which they were asked for, whatever their number."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from functools import partial
from multiprocessing import get_context
from types import FrameType
from typing import Any

from openlance.errors import UserError

_work: Callable[[Any], Any] | None = None  # of a worker process
GRACE = 30.0  # seconds, as long as torchrun waits between SIGTERM and SIGKILL


class Pool:
    """Calls `work` on tickets, in workers that end by themselves when this process is gone.

    Args:
        work: The function; with workers it has to be safe to pickle.
        workers: Processes; with 0 it is called in this one, when its result is taken.
        like: A pool of the same work, whose workers do this one's as well.
    """

    def __init__(self, work: Callable[[Any], Any], workers: int = 0, like: Pool | None = None) -> None:
        self.work, self.waited = work, 0.0  # seconds that `take` has blocked so far
        self._pending: deque[Callable[[], Any]] = deque()
        self._executor: ProcessPoolExecutor | None = None if like is None else like._executor
        if workers > 0 and like is None:
            # A forked worker costs milliseconds and no memory, and needs no guard in the caller's script.
            context = get_context("fork" if sys.platform == "linux" else None)
            arguments = (work, os.getpid())
            self._executor = ProcessPoolExecutor(workers, context, initializer=_begin, initargs=arguments)

    def __len__(self) -> int:
        return len(self._pending)

    def put(self, ticket: Any, here: bool = False) -> None:
        """Ask for a result; `here` keeps the call in this process."""
        if self._executor is None or here:
            self._pending.append(partial(self.work, ticket))
        else:
            self._pending.append(self._executor.submit(_call, ticket).result)

    def take(self) -> Any:
        """Return the oldest result that was not taken yet; whatever `work` raised is raised here."""
        began = time.perf_counter()
        try:
            return self._pending.popleft()()
        except BrokenProcessPool as error:
            raise UserError("a data worker was killed, most likely for lack of memory: use fewer workers") from error
        finally:
            self.waited += time.perf_counter() - began

    def close(self) -> None:
        self._pending.clear()
        if self._executor is not None:
            self._executor.shutdown(wait=False, cancel_futures=True)


def in_order(work: Callable[[Any], Any], tickets: Iterable[Any], workers: int) -> Iterator[Any]:
    """Yield the results of many tickets in order, working on a few of them ahead."""
    with closing(Pool(work, workers)) as pool:
        for ticket in tickets:
            pool.put(ticket)
            if len(pool) > 2 * workers:
                yield pool.take()
        while len(pool):
            yield pool.take()


def _begin(work: Callable[[Any], Any], parent: int) -> None:
    global _work
    _work = work
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    follow(parent)


def follow(parent: int) -> None:
    """Make this process a worker: it leaves Ctrl-C to its parent and ends when that is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent then closes its pool
    signal.signal(signal.SIGTERM, _leave_later)
    threading.Thread(target=_leave_with, args=(parent,), daemon=True).start()


def _leave_later(number: int, frame: FrameType | None) -> None:
    """A SIGTERM to all processes of a run lets the parent finish its step and save first; it then closes the pool."""
    threading.Timer(GRACE, os._exit, (1,)).start()


def _leave_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


def _call(ticket: Any) -> Any:
    assert _work is not None
    return _work(ticket)
