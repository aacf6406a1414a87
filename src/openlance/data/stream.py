"""The stream of packs that training reads: rows of every source by the mixture, decoded by workers, packed to a budget.

    sources = {"t2i": open_source("pictures/", "t2i")}
    with Stream(sources, stage("sft", "nano"), codec, reading=Reading(workers=2)) as stream:
        for samples in stream:                 # list[Sample]; pack() of them fits stage.pack_tokens
            ...
            state = stream.state_dict()        # plain data; load_state_dict(state) goes on exactly there

Which rows share which pack depends on nothing but the stage, the sources, the rank and the number of ranks: not on the
number of workers, and not on whether the run was stopped in between. So the position is small: where every reader stood
before the oldest row that is still waiting, and which of the rows since then wait.
"""

from __future__ import annotations

import logging
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from openlance.config.sampling import EXACT, PromptStyle
from openlance.config.train import Stage
from openlance.data.front import Fit
from openlance.data.mixture import Mixture
from openlance.data.pool import Pool
from openlance.data.source import BrokenRow, Reader, Reading, Row, Sample, Source, check_broken
from openlance.errors import UserError
from openlance.media.files import collected
from openlance.sequence.pack import Codec, spans
from openlance.sequence.segment import Kind, Role, Segments
from openlance.text.tokenizer import SequenceCodec

log = logging.getLogger(__name__)

# Rows that are with the workers. A constant, since it decides at which resolution of a curriculum a row is decoded.
AHEAD = 32
# Rank of the stream and number of the row in it, step of the stage, task, row.
Ticket = tuple[tuple[int, int], int, str, Row]
COUNTS = ("packs", "tokens", "rows", "too_long")


def length_of(segments: Segments, codec: Codec, draws: int = 1) -> int:
    """Count the rows that `sequence.pack` will make of a sample, with `draws` noise samples per target."""
    total = 0
    for span in spans(segments, codec):
        owner = span.owner if span.grid is not None else None
        noised = owner is not None and owner.role is Role.TARGET and owner.kind is Kind.LATENTS
        total += len(span.ids) * (draws if noised else 1)
    return total


def best_fill(lengths: list[int], room: int) -> list[int]:
    """Return indices of the lengths whose sum is the largest that fits into the room; earlier ones are preferred.

    Exact subset sum. Sums that can be reached are the bits of one whole number, so that a length costs one shift.
    """
    if room < 0:
        return []
    reached, fits = [1], (1 << room + 1) - 1
    for n in lengths:
        reached.append((reached[-1] | reached[-1] << n) & fits)
        if reached[-1] >> room:  # the room can be filled to the last token
            break
    total, chosen = reached[-1].bit_length() - 1, list[int]()
    for i in reversed(range(len(reached) - 1)):
        if not reached[i] >> total & 1:
            chosen.append(i)
            total -= lengths[i]
    return chosen[::-1]


def next_pack(lengths: list[int], budget: int) -> list[int]:
    """Return indices of a pack out of a buffer: the oldest sample, so that none waits for ever, and what fills best."""
    return [0] + [i + 1 for i in best_fill(lengths[1:], budget - lengths[0])]


def decode(
    sources: Mapping[str, Source], fit_at: Callable[[int], Fit], seed: int, preserve: tuple[str, ...], ticket: Ticket
) -> Sample | BrokenRow:
    """Do what the workers do: a pure function of a ticket."""
    number, step, task, row = ticket
    fit, rng, preserved = fit_at(step), np.random.default_rng((seed, *number)), task in preserve
    if preserved:  # the branches of guidance are asked equally often, so each is preserved as much
        fit = replace(fit, drop_text=1 / 3, drop_all=1 / 3)
    try:
        with collected() as said:
            sample = sources[task].sample(row, fit, rng)
    except BrokenRow as error:
        return error
    segments = fit.dropped(sample.segments, rng)
    kind = f"{task} {sample.kind}".strip()
    return replace(sample, segments=segments, notices=tuple(said), preserved=preserved, kind=kind)


@dataclass
class Waiting:
    """A row that was read and is in no pack yet. places: where the readers stood before it was read."""

    number: int
    step: int
    task: str
    places: dict[str, dict[str, int]]
    sample: Sample | None = None
    length: int = 0


class Stream(AbstractContextManager, Iterator[list[Sample]]):
    """Iterates over packs, lists of samples.

    Condition dropout, the resolution curriculum and placement jitter are applied here, since lengths depend on them.

    Args:
        sources: By task.
        stage: Gives the mixture, the budget and what is done to samples.
        codec: Of the model, with its configuration.
        style: How samples are worded.
        reading: How sources are read.
        like: A stream of the same data, whose workers decode for this one as well.

    Raises:
        UserError: When a file cannot be read, or when there are more broken rows than `reading` allows.
    """

    def __init__(
        self,
        sources: Mapping[str, Source],
        stage: Stage,
        codec: SequenceCodec,
        *,
        style: PromptStyle = EXACT,
        reading: Reading | None = None,
        like: Stream | None = None,
    ) -> None:
        self.stage, self.codec, self.reading = stage, codec, reading or Reading()
        self.mixture = Mixture(stage.mixture, stage.seed)
        missing = [task for task in self.mixture.shares if task not in sources]
        if missing:
            raise UserError(f"the stage {stage.name} mixes in {', '.join(missing)}, which has no data: name a source")
        seed = zlib.crc32(f"{stage.seed} {stage.name}".encode())
        numbered = enumerate(sorted(self.mixture.shares))
        self.readers = {task: Reader(sources[task], self.reading, seed + number) for number, task in numbered}
        fit_at = partial(Fit.at, stage, config=codec.config, style=style, cache=self.reading.cache)
        work = partial(decode, dict(sources), fit_at, seed, stage.preserve)
        self.pool: Pool = Pool(work, self.reading.workers, None if like is None else like.pool)
        self._decoding: list[Waiting] = []  # with the workers, in order
        self._buffer: list[Waiting] = []  # decoded, in order
        self._owed = 0  # rows of a loaded position that were decoded already when it was saved
        self.number = self.packs = self.tokens = self.rows = self.too_long = 0
        self.noticed = 0  # samples whose media were shortened, resampled or read in part
        self.tally = {"samples": Counter[str](), "tokens": Counter[str]()}  # of the packs, by task
        self.broken = dict[str, str]()  # reasons by place
        self._barren = Counter[str]()  # places of the broken rows since the last one that was not

    def __next__(self) -> list[Sample]:
        low, high = self.stage.pack_tokens
        while not self._is_full() and self._take():
            pass
        if not self._buffer:
            raise StopIteration
        while True:
            chosen = next_pack([w.length for w in self._buffer], high)
            enough = sum(self._buffer[i].length for i in chosen) >= low
            if enough or len(self._buffer) >= 4 * self.reading.look_ahead or not self._take():
                break
        pack = [self._buffer[i] for i in chosen]
        taken = set(chosen)
        self._buffer = [w for i, w in enumerate(self._buffer) if i not in taken]
        self.packs += 1
        for w in pack:
            self.tokens += w.length
            self.tally["samples"][w.task] += 1
            self.tally["tokens"][w.task] += w.length
        return [w.sample for w in pack if w.sample is not None]

    def _is_full(self) -> bool:
        if self._owed:
            return False
        enough = sum(w.length for w in self._buffer) >= 2 * self.stage.pack_tokens[1]
        return enough and len(self._buffer) >= self.reading.look_ahead

    def _take(self) -> bool:
        """Bring one more row into the buffer, broken ones aside; False when all sources are over."""
        while len(self._decoding) < AHEAD and self._draw(self.packs // self.stage.accumulate):
            pass
        if not self._decoding:
            return False
        waiting, found = self._decoding.pop(0), self.pool.take()
        is_new = self._owed == 0
        self._owed -= not is_new
        self.rows += is_new
        if isinstance(found, Sample):
            try:
                waiting.sample, waiting.length = found, length_of(found.segments, self.codec, self.stage.draws)
            except UserError as error:
                found = BrokenRow(found.id, error)
        if isinstance(found, BrokenRow):
            self._report(found)
            return True
        self._barren.clear()
        if found.notices:
            self.noticed += 1
            if self.noticed == 1:
                log.warning("%s: %s; more like it are only counted", found.id, found.notices[0])
        if waiting.length > self.stage.max_sample_tokens:
            self._leave_out(found, waiting.length)
        else:
            self._buffer.append(waiting)
        return True

    def _leave_out(self, sample: Sample, length: int) -> None:
        """Count a sample that is too long; UserError if most are."""
        self.too_long += 1
        said = f"{sample.id} has {length} tokens, more than max_sample_tokens={self.stage.max_sample_tokens}"
        if self.too_long == 1:
            log.warning("left out: %s; more like it are only counted", said)
        if self.too_long > max(self.rows / 2, AHEAD):
            raise UserError(f"{said}, and so have most: raise max_sample_tokens, or lower the resolution or draws")

    def _draw(self, step: int, wanted: Mapping[int, int] | None = None) -> bool:
        """Read one row and send it to the workers; False when all sources are over. While a position is loaded,
        `wanted` gives the steps of the rows that still wait, and the others are only read."""
        r, number, places = self.reading, self.number, self._places()
        task = self.mixture.task(number * r.world + r.rank)
        row = next(self.readers[task], None)
        for other in self.readers:  # only without repetition does a reader end; the others then take its turns
            if row is None:
                task, row = other, next(self.readers[other], None)
        if row is None:
            return False
        self.number += 1
        if wanted is None or number in wanted:
            step = step if wanted is None else wanted[number]
            self._decoding.append(Waiting(number, step, task, places))
            self.pool.put(((r.rank, number), step, task, row), here=self.readers[task].source.light)
        return True

    def _places(self) -> dict[str, dict[str, int]]:
        return {task: reader.state_dict() for task, reader in self.readers.items()}

    def _report(self, broken: BrokenRow) -> None:
        """Name a broken row once and count it; UserError beyond the limit, or if there is no other kind of row."""
        self._barren[broken.place] += 1
        if self._barren[broken.place] > 2:  # a whole epoch lies between the first and the third time
            raise UserError(f"{broken}, and no row of the data can be used: mend them")
        if broken.place in self.broken:  # in an earlier epoch
            return
        self.broken[broken.place] = broken.reason
        check_broken(broken, len(self.broken), self.rows, self.reading.max_broken)
        log.warning("skipped %s", broken)

    def report(self) -> dict[str, Any]:
        """Return what was read so far: packs, tokens, the share of the budget that they fill (efficiency), seconds
        spent waiting for data, rows, broken rows by place, samples that were too long or read in part (noticed), and
        the shares of the tasks among samples and among tokens."""
        budget = max(self.packs, 1) * self.stage.pack_tokens[1]
        shares = {
            name: {task: n / max(1, counts.total()) for task, n in counts.items()}
            for name, counts in self.tally.items()
        }
        return {name: getattr(self, name) for name in (*COUNTS, "noticed", "broken")} | {
            "efficiency": self.tokens / budget, "waited": self.pool.waited, "shares": shares,
        }  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        """Return the position between two packs, as plain data."""
        waiting = [*self._buffer, *self._decoding]
        first = waiting[0] if waiting else Waiting(self.number, 0, "", self._places())
        return {name: getattr(self, name) for name in COUNTS} | {
            "rank": self.reading.rank, "world": self.reading.world,
            "number": first.number, "places": first.places,
            "until": self.number, "waiting": [[w.number, w.step] for w in waiting],
            "decoded": len(self._buffer) + self._owed, "broken": dict(self.broken),
            "tally": {name: dict(counts) for name, counts in self.tally.items()},
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where a state was taken; UserError if it is of another rank, number of ranks or mixture."""
        r = self.reading
        if (state["rank"], state["world"]) != (r.rank, r.world):
            said = f"this position is that of rank {state['rank']} of {state['world']}"
            fix = f"resume with {state['world']} processes"
            raise UserError(f"{said}, not of rank {r.rank} of {r.world}: {fix}")
        if state["places"].keys() != self.readers.keys():
            before, now = ", ".join(state["places"]), ", ".join(self.readers)
            said = f"this position is in {before}, and the stage {self.stage.name} now mixes in {now}"
            raise UserError(f"{said}: go on with the same tasks, or begin a new run from an exported model")
        while len(self.pool):
            self.pool.take()
        self._decoding, self._buffer, self._owed = [], [], state["decoded"]
        for name in COUNTS:
            setattr(self, name, state[name])
        self.broken = dict(state["broken"])
        self.tally = {name: Counter(counts) for name, counts in state["tally"].items()}
        for task, reader in self.readers.items():
            reader.load_state_dict(state["places"][task])
        self.number, wanted = state["number"], dict(state["waiting"])
        while self.number < state["until"]:
            if not self._draw(0, wanted):
                raise UserError("the data ends before the saved position: it has changed; start the stage anew")

    def close(self) -> None:
        self.pool.close()

    def __exit__(self, *_: object) -> None:
        self.close()
