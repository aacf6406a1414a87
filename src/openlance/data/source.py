"""What training reads: a source is a table of rows in parts; a reader is a place in it; a sample is a list of segments.

    reader = Reader(open_source("pictures/", "t2i"), seed=0, rank=0, world=2)
    row = next(reader)                     # as it lies in the file; cheap
    reader.state_dict()                    # three numbers; load_state_dict goes on exactly there
    source.sample(row, fit, rng)           # decoded, resized, as segments; this is what the workers of a Stream do

Reading is separate from decoding, so that the order of the rows does not depend on how many workers decode them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from openlance.errors import UserError
from openlance.sequence.segment import Segments

if TYPE_CHECKING:
    from openlance.data.fit import Fit


@dataclass(frozen=True, eq=False)
class Sample:
    """One training sample.

    id: file and row that it came from. labels: int64 (channels, Y, X), classes at points of a picture for the auxiliary
    loss of the vision tower (`Stage.dense_weight`); they belong to the sample's first PATCHES segment. notices: what
    was shortened, resampled or skipped when its media were read.
    """

    segments: Segments
    id: str
    labels: np.ndarray | None = None
    notices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Row:
    """A row before decoding. place: "FILE, row 7", as errors name it and as the ids of its samples begin."""

    place: str
    values: Any


class BrokenRow(ValueError):
    """A row that cannot become a sample, with the reason; a Stream names it, counts it and goes on up to a limit."""

    def __init__(self, place: str, reason: object) -> None:
        self.place, self.reason = place, " ".join(str(reason).split())
        super().__init__(f"{place}: {self.reason}")

    def __reduce__(self) -> tuple:  # exceptions of several arguments do not survive the way back from a worker
        return type(self), (self.place, self.reason)


class Source(Protocol):
    """A table of rows in parts (row groups, shards, blocks of files). It holds no place and is safe to pickle."""

    @property
    def light(self) -> bool:
        """Whether a row is a sample already, so that sending it to a worker costs more than decoding it here."""
        ...

    def parts(self, epoch: int, rng: np.random.Generator | None) -> Sequence[Any]:
        """The parts in the order in which an epoch reads them: shuffled by rng, or as they lie without one."""
        ...

    def rows(self, part: Any) -> Iterator[Row]:
        """The rows of a part, always in the same order. UserError if the part has vanished or is damaged."""
        ...

    def stamp(self, part: Any) -> str:
        """A text that changes when the rows of a part do, as far as names and sizes tell; the part is not read."""
        ...

    def sample(self, row: Row, fit: Fit, rng: np.random.Generator) -> Sample:
        """Decode: a pure function of its arguments. BrokenRow if the row is of no use."""
        ...


@runtime_checkable
class Endless(Source, Protocol):
    """A source that makes its samples: another seed gives others, so it can train and validate."""

    def drawn(self, count: int, seed: int) -> Source:
        """The first `count` samples of a seed."""
        ...


def shuffled(parts: Sequence[Any], rng: np.random.Generator | None) -> list[Any]:
    return list(parts) if rng is None else [parts[i] for i in rng.permutation(len(parts))]


class Reader:
    """The rows of a source for one rank, epoch after epoch; iterating takes the next row.

    Parts are dealt to the ranks in turn; where there are fewer parts than ranks, rows are. So no two ranks of an epoch
    see the same row, and together they see all. UserError if the source has no row for this rank.
    """

    def __init__(
        self,
        source: Source,
        *,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        shuffle: bool = True,
        repeat: bool = True,
    ) -> None:
        self.source, self.seed, self.shuffle, self.repeat = source, seed, shuffle, repeat
        self.rank, self.world = rank, world
        self.epoch = self.part = self.row = 0  # of the row that comes next
        self._rows: Iterator[Row] | None = None
        self._mine: list[Any] | None = None
        self._by_rows = False
        self._read_any = False

    def __iter__(self) -> Reader:
        return self

    def __next__(self) -> Row:
        while True:
            if self._mine is None:
                self._deal()
            assert self._mine is not None
            if self.part >= len(self._mine):
                self._next_epoch()
                continue
            if self._rows is None:
                self._rows = self._open(self._mine[self.part])
            row = next(self._rows, None)
            if row is not None:
                self.row, self._read_any = self.row + 1, True
                return row
            self.part, self.row, self._rows = self.part + 1, 0, None

    def _deal(self) -> None:
        rng = np.random.default_rng((self.seed, self.epoch)) if self.shuffle else None
        parts = self.source.parts(self.epoch, rng)
        self._by_rows = len(parts) < self.world
        self._mine = list(parts) if self._by_rows else list(parts[self.rank :: self.world])

    def _open(self, part: Any) -> Iterator[Row]:
        rows = self.source.rows(part)
        if self._by_rows:
            rows = islice(rows, self.rank, None, self.world)
        return islice(rows, self.row, None)

    def _next_epoch(self) -> None:
        if not self.repeat:
            raise StopIteration
        if not self._read_any:
            raise UserError(f"{self.source} has no rows for rank {self.rank} of {self.world}: give it more data")
        self.epoch, self.part, self.row, self._rows, self._mine, self._read_any = (
            self.epoch + 1,
            0,
            0,
            None,
            None,
            False,
        )

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "part": self.part, "row": self.row}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.epoch, self.part, self.row = state["epoch"], state["part"], state["row"]
        self._rows, self._mine, self._read_any = None, None, self.part + self.row > 0
