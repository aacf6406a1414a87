"""Worker processes that score results while the model goes on, and survive rewards that do not."""

from __future__ import annotations

import logging
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from openlance.config.values import whole, within
from openlance.errors import UserError
from openlance.rl.rewards.registry import Weighted, parse_rewards
from openlance.rl.rewards.reward import Drawn, Score
from openlance.rl.rewards.worker import PROGRAM

BATCH = 8  # results that a reward gets at once; a result of a batch that never ends costs the others of it
LOADING = 600.0  # seconds that loading a reward may take

log = logging.getLogger("openlance.rl.rewards")


class Pending:
    """Scores that are being found, or will be when they are asked for."""

    def __init__(self, pool: RewardPool, drawn: Sequence[Drawn]) -> None:
        self._pool, self._drawn = pool, drawn
        self._parts = pool._begin(drawn) if pool.beside else None
        self._scores: list[Score | None] | None = None

    def collect(self) -> list[Score | None]:
        """Wait for the scores; asked again, it has them.

        Returns:
            One per result, in their order; None where a reward failed (the pool names and counts it).

        Raises:
            UserError: If more results have failed by now than the pool allows, or a reward cannot be loaded.
        """
        if self._scores is None:
            began = time.perf_counter()
            self._parts = self._parts or self._pool._begin(self._drawn)
            found = [[one for part in parts for one in part.result()] for parts in self._parts]
            self._pool.waited += time.perf_counter() - began
            self._scores = [self._pool._joined(drawn, says) for drawn, *says in zip(self._drawn, *found)]
        return self._scores


class RewardPool:
    """Scores results by several rewards in worker processes.

    Close it, or use it as a context, so that its processes end.

    Args:
        rewards: Which, with their weights (`registry`).
        workers: Processes; each holds every reward.
        seconds: A reward that takes longer for a batch of results is ended and its worker made anew.
        failures: Results that may fail before all ends.
        beside: Whether results are scored while the caller goes on. Otherwise they are when their scores are asked for,
            which takes less time where the caller keeps all cores busy: threads of one product wait for the slowest.

    Attributes:
        failed: How many results each reward has failed on.
        waited: Seconds that `collect` has blocked so far.
        spent: Seconds that each reward has kept the workers busy.

    Raises:
        UserError: If a reward is unknown, or cannot be loaded.
    """

    def __init__(
        self, rewards: str | Mapping[str, float], *, workers: int = 1, seconds: float = 60.0, failures: int = 100,
        beside: bool = True,
    ) -> None:  # fmt: skip
        within("seconds", seconds, 0.001)
        self.rewards: tuple[Weighted, ...] = parse_rewards(rewards)
        self.workers, self.seconds, self.beside = whole("workers", workers), seconds, beside
        self.most_failures = whole("failures", failures, 0)
        self.failed, self.spent, self.waited = Counter[str](), dict[str, float](), 0.0
        self._told = set[tuple[str, str]]()
        self._own, self._lock = threading.local(), threading.Lock()
        self._processes = set[_Process]()
        self._threads = ThreadPoolExecutor(self.workers, thread_name_prefix="rewards")
        try:
            for loading in [self._threads.submit(self._load, one.said) for one in self.rewards]:
                loading.result()
        except BaseException:
            self.close()
            raise

    def check(self, prompt: str, truth: Any = None) -> None:
        """Refuse a request whose results cannot be scored; UserError says what it lacks."""
        for one in self.rewards:
            one.reward.check(prompt, truth)

    def submit(self, drawn: Sequence[Drawn]) -> Pending:
        """Take results to be scored; this returns at once."""
        return Pending(self, drawn)

    def _begin(self, drawn: Sequence[Drawn]) -> list[list[Future]]:
        """Hand results to the workers: of each reward, their batches."""
        batches = [drawn[at : at + BATCH] for at in range(0, len(drawn), BATCH)]
        return [[self._threads.submit(self._score, one, batch) for batch in batches] for one in self.rewards]

    def close(self) -> None:
        """End the workers; what they have not scored yet is given up."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        for process in list(self._processes):
            process.end()

    def __enter__(self) -> RewardPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _joined(self, drawn: Drawn, says: Sequence[dict[str, float] | str]) -> Score | None:
        facts, weights = dict[str, float](), dict[str, float]()
        for one, said in zip(self.rewards, says):
            name = one.reward.name
            if isinstance(said, str):
                self._count(name, said, drawn.prompt)
                return None
            own = {key: key if key == name else f"{name}.{key}" for key in said}
            facts |= {own[key]: value for key, value in said.items()}
            weights |= {own[key]: value for key, value in one.reward.weights(said, one.weight).items()}
        return Score(facts, weights)

    def _count(self, name: str, said: str, prompt: str) -> None:
        self.failed[name] += 1
        sentence, most = f"the reward {name} {said} (prompt {prompt[:80]!r})", self.most_failures
        if most and (name, said) not in self._told:
            self._told.add((name, said))
            log.warning("%s: the result is dropped", sentence)
        if not most:
            raise UserError(f"{sentence}: mend it, and start again")
        if self.failed.total() > most:
            counts = ", ".join(f"{one} {n}" for one, n in self.failed.items())
            raise UserError(
                f"{self.failed.total()} results could not be scored ({counts}), the last one because {sentence}: mend "
                f"the reward, or allow more than failures={most}",
                param="failures",
            )

    def _score(self, one: Weighted, drawn: Sequence[Drawn]) -> list[dict[str, float] | str]:
        """Of a thread: have its own process score a batch; a new one where the last is gone."""
        process = self._load(one.said)
        began = time.perf_counter()
        try:
            return process.ask((one.said, drawn), self.seconds)
        except _Gone as gone:
            return [str(gone)] * len(drawn)
        finally:
            took = time.perf_counter() - began
            with self._lock:
                self.spent[one.reward.name] = self.spent.get(one.reward.name, 0.0) + took

    def _load(self, entry: str) -> _Process:
        process = getattr(self._own, "process", None)
        if process is None or process.gone:
            process = self._own.process = _Process(self._processes)
        if entry not in process.loaded:
            try:
                problem = process.ask((entry, None), LOADING)
            except _Gone as gone:
                problem = f"the reward {entry} cannot be loaded: it {gone}"
            if problem:
                raise UserError(problem)
            process.loaded.add(entry)
        return process


class _Gone(Exception):
    """What became of a process that does not answer."""


class _Process:
    """One worker process, asked by one thread."""

    def __init__(self, others: set[_Process]) -> None:
        self.loaded, self.gone, self._late, self._others = set[str](), False, False, others
        command = [sys.executable, "-c", PROGRAM]
        # One thread each, whatever the model is given: it has the other cores.
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
        others.add(self)
        self._send(sys.path)
        self._send(os.getpid())

    def ask(self, request: Any, seconds: float) -> Any:
        """Return the answer to a request. _Gone if there is none within `seconds`: the process has ended then."""
        timer = threading.Timer(seconds, self._expire)
        timer.daemon = True
        timer.start()
        try:
            self._send(request)
            assert self._process.stdout is not None
            return pickle.load(self._process.stdout)
        except (OSError, EOFError, ValueError, pickle.UnpicklingError):  # killed before, between or inside an answer
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(1.0)
            self.end()
            raise _Gone(f"took longer than {seconds:g} s" if self._late else self._ending()) from None
        finally:
            timer.cancel()
            timer.join()

    def end(self) -> None:
        self.gone = True
        self._others.discard(self)
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            with suppress(OSError):
                stream.close()  # type: ignore[union-attr]

    def _expire(self) -> None:
        self._late = True
        self.end()

    def _send(self, value: Any) -> None:
        data, stream = pickle.dumps(value, pickle.HIGHEST_PROTOCOL), self._process.stdin
        assert stream is not None
        stream.write(data)
        stream.flush()

    def _ending(self) -> str:
        code = self._process.wait()
        return f"ended its process with {signal.Signals(-code).name if code < 0 else f'code {code}'}"
