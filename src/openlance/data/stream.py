"""The stream of packs that training reads: rows of every source by the mixture, decoded by workers, packed to a budget.

    with Stream({"t2i": open_source("pictures/", "t2i")}, stage("sft", "nano"), codec, workers=2) as stream:
        for samples in stream:                 # list[Sample]; pack() of them fits stage.pack_tokens
            ...
            state = stream.state_dict()        # plain data; load_state_dict(state) goes on exactly there

Which rows share which pack depends on nothing but the stage, the sources, the rank and the number of ranks: not on the
number of workers, and not on whether the run was stopped in between. So the position is small: where every reader stood
before the oldest row that is still waiting, and which of the rows since then wait.
"""

from __future__ import annotations

import logging
import math
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from openlance.config.model import ModelConfig
from openlance.config.sampling import EXACT, PromptStyle
from openlance.config.train import Stage
from openlance.data.fit import Fit
from openlance.data.mixture import Mixture, Tally
from openlance.data.packing import length_of, next_pack
from openlance.data.pool import Pool
from openlance.data.source import BrokenRow, Reader, Row, Sample, Source
from openlance.errors import UserError
from openlance.media.files import collected
from openlance.text.tokenizer import SequenceCodec

log = logging.getLogger(__name__)

# Rows that are with the workers. A constant, since it decides at which resolution of a curriculum a row is decoded.
AHEAD = 32


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How a stream reads. rank, world: this process and how many there are. look_ahead: samples that wait for a pack
    that they fill (released code: 50). max_broken: rows that may be of no use, a share below 1, a number from 1 on.
    With repeat=False the stream ends after one pass."""

    rank: int = 0
    world: int = 1
    workers: int = 0
    shuffle: bool = True
    repeat: bool = True
    look_ahead: int = 50
    max_broken: float = 0.001


@dataclass(frozen=True)
class Ticket:
    """One row on its way to a worker. number: of the row in this stream; step: of the stage, for the curriculum."""

    number: int
    step: int
    task: str
    row: Row


@dataclass(frozen=True)
class Decoder:
    """What the workers do: a pure function of a ticket."""

    sources: Mapping[str, Source]
    stage: Stage
    config: ModelConfig
    style: PromptStyle
    seed: tuple[int, int]

    def __call__(self, ticket: Ticket) -> Sample | BrokenRow:
        fit = Fit.at(self.stage, ticket.step, self.config, self.style)
        rng = np.random.default_rng((*self.seed, ticket.number))
        try:
            with collected() as said:
                sample = self.sources[ticket.task].sample(ticket.row, fit, rng)
        except BrokenRow as error:
            return error
        return replace(sample, segments=fit.dropped(sample.segments, rng), notices=tuple(said))


@dataclass
class Waiting:
    """A row that was read and is in no pack yet. places: where the readers stood before it was read."""

    number: int
    step: int
    task: str
    places: dict[str, dict[str, int]]
    sample: Sample | None = None
    length: int = 0


class Stream:
    """Iterates over packs. codec: of the model, with its configuration; style: how its samples are worded.

    Condition dropout, the resolution curriculum and the spread of the world are applied here, since lengths depend on
    them. UserError when a file cannot be read, or when there are more broken rows than `reading` allows.
    """

    def __init__(
        self,
        sources: Mapping[str, Source],
        stage: Stage,
        codec: SequenceCodec,
        *,
        style: PromptStyle = EXACT,
        reading: Reading | None = None,
    ) -> None:
        self.stage, self.codec, self.reading = stage, codec, reading or Reading()
        self.mixture = Mixture(stage.mixture, stage.seed)
        missing = [task for task in self.mixture.shares if task not in sources]
        if missing:
            raise UserError(f"the stage {stage.name} mixes in {', '.join(missing)}, which has no data: name a source")
        r, seed = self.reading, zlib.crc32(f"{stage.seed} {stage.name}".encode())
        self.readers = {
            task: Reader(
                sources[task], seed=seed + number, rank=r.rank, world=r.world, shuffle=r.shuffle, repeat=r.repeat
            )
            for number, task in enumerate(sorted(self.mixture.shares))
        }
        self.pool = Pool(Decoder(dict(sources), stage, codec.config, style, (seed, r.rank)), r.workers)
        self._flying: list[Waiting] = []  # with the workers, in order
        self._buffer: list[Waiting] = []  # decoded, in order
        self._owed = 0  # rows of a loaded position that were decoded already when it was saved
        self.number, self.packs, self.tokens = 0, 0, 0
        self.tally, self.broken, self.rows, self.too_long = Tally(), dict[str, str](), 0, 0
        self.noticed = 0  # samples whose media were shortened, resampled or read in part
        self._barren = Counter[str]()  # places of the broken rows since the last one that was not

    def __iter__(self) -> Iterator[list[Sample]]:
        return self

    def __next__(self) -> list[Sample]:
        low, high = self.stage.pack_tokens
        while not self._is_full() and self._take():
            pass
        if not self._buffer:
            raise StopIteration
        chosen = next_pack([w.length for w in self._buffer], high)
        while sum(self._buffer[i].length for i in chosen) < low and len(self._buffer) < 4 * self.reading.look_ahead:
            if not self._take():
                break
            chosen = next_pack([w.length for w in self._buffer], high)
        pack = [self._buffer[i] for i in chosen]
        taken = set(chosen)
        self._buffer = [w for i, w in enumerate(self._buffer) if i not in taken]
        self.packs += 1
        self.tokens += sum(w.length for w in pack)
        for w in pack:
            self.tally.add(w.task, w.length)
        return [w.sample for w in pack if w.sample is not None]

    def _is_full(self) -> bool:
        if self._owed:
            return False
        enough = sum(w.length for w in self._buffer) >= 2 * self.stage.pack_tokens[1]
        return enough and len(self._buffer) >= self.reading.look_ahead

    def _take(self) -> bool:
        """Bring one more row into the buffer, broken ones aside; False when all sources are over."""
        while len(self._flying) < AHEAD and self._draw(self.packs // self.stage.accumulate):
            pass
        if not self._flying:
            return False
        waiting, found = self._flying.pop(0), self.pool.take()
        is_new = self._owed == 0
        self._owed -= not is_new
        self.rows += is_new
        if isinstance(found, Sample):
            waiting.sample = found
            try:
                waiting.length = length_of(found.segments, self.codec, self.stage.draws)
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
        r, number = self.reading, self.number
        places = {task: reader.state_dict() for task, reader in self.readers.items()}
        task = self.mixture.task(number * r.world + r.rank)
        row = next(self.readers[task], None)
        for other in self.readers:  # only without repetition does a reader end; the others then take its turns
            if row is None:
                task, row = other, next(self.readers[other], None)
        if row is None:
            return False
        self.number += 1
        if wanted is None or number in wanted:
            waiting = Waiting(number, step if wanted is None else wanted[number], task, places)
            self._flying.append(waiting)
            self.pool.put(Ticket(number, waiting.step, task, row), here=self.readers[task].source.light)
        return True

    def _report(self, broken: BrokenRow) -> None:
        """Name a broken row once and count it; UserError beyond the limit, or if there is no other kind of row."""
        self._barren[broken.place] += 1
        if self._barren[broken.place] > 2:  # a whole epoch lies between the first and the third time
            raise UserError(f"{broken}, and no row of the data is of use: mend them")
        if broken.place in self.broken:  # in an earlier epoch
            return
        self.broken[broken.place] = broken.reason
        most = self.reading.max_broken
        allowed = most if most >= 1 else math.ceil(most * self.rows)
        if len(self.broken) > allowed:
            raise UserError(
                f"{broken} (broken row {len(self.broken)} of {self.rows} read, and max_broken={most:g} allows "
                f"{allowed:g}: mend the data or raise the limit)"
            )
        log.warning("skipped %s", broken)

    def report(self) -> dict[str, Any]:
        """Packs and tokens so far, the share of the budget that they fill, seconds spent waiting for data, broken rows
        by place, samples that were too long, and the shares of the tasks among samples and among tokens."""
        budget = max(self.packs, 1) * self.stage.pack_tokens[1]
        return {
            "packs": self.packs, "tokens": self.tokens, "efficiency": self.tokens / budget, "waited": self.pool.waited,
            "rows": self.rows, "broken": dict(self.broken), "too_long": self.too_long, "noticed": self.noticed,
            "shares": self.tally.shares(),
        }  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        """The position between two packs, as plain data."""
        waiting = [*self._buffer, *self._flying]
        first = waiting[0] if waiting else None
        return {
            "rank": self.reading.rank, "world": self.reading.world,
            "number": first.number if first else self.number,
            "places": first.places if first else {t: reader.state_dict() for t, reader in self.readers.items()},
            "until": self.number, "waiting": [[w.number, w.step] for w in waiting],
            "decoded": len(self._buffer) + self._owed,
            "packs": self.packs, "tokens": self.tokens, "rows": self.rows, "broken": dict(self.broken),
            "too_long": self.too_long, "tally": self.tally.state_dict(),
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where a state was taken; UserError if it is of another rank or number of ranks."""
        r = self.reading
        if (state["rank"], state["world"]) != (r.rank, r.world):
            raise UserError(
                f"this position is that of rank {state['rank']} of {state['world']}, not of rank {r.rank} of "
                f"{r.world}: resume with {state['world']} processes"
            )
        if state["places"].keys() != self.readers.keys():
            raise UserError(
                f"this position is in {', '.join(state['places'])}, and the stage {self.stage.name} now mixes in "
                f"{', '.join(self.readers)}: go on with the same tasks, or begin a new run from an export with --model"
            )
        while len(self.pool):
            self.pool.take()
        self._flying, self._buffer, self._owed = [], [], state["decoded"]
        self.packs, self.tokens, self.rows = state["packs"], state["tokens"], state["rows"]
        self.broken, self.too_long = dict(state["broken"]), state["too_long"]
        self.tally.load_state_dict(state["tally"])
        for task, reader in self.readers.items():
            reader.load_state_dict(state["places"][task])
        self.number, wanted = state["number"], dict(state["waiting"])
        while self.number < state["until"]:
            if not self._draw(0, wanted):
                raise UserError("the data ends before the saved position: it has changed; start the stage anew")

    def close(self) -> None:
        self.pool.close()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
