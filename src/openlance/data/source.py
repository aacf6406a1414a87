"""What training reads: a source is a table of rows in parts; a reader is a position in it; a sample is a list of
segments.

    reader = Reader(open_source("pictures/", "t2i"), Reading(rank=0, world=2), seed=0)
    row = next(reader)                     # as it lies in the file; cheap
    reader.state_dict()                    # three numbers; load_state_dict goes on exactly there
    source.sample(row, fit, rng)           # decoded, resized, as segments; this is what the workers of a Stream do

Reading is separate from decoding, so that the order of the rows does not depend on how many workers decode them.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from openlance.data.census import Census
from openlance.errors import UserError
from openlance.sequence.segment import Segments

if TYPE_CHECKING:
    from openlance.data.cache import Cache
    from openlance.data.front import Fit


@dataclass(frozen=True, eq=False)
class Sample:
    """One training sample.

    Args:
        segments: What is packed.
        id: File and row that it came from.
        labels: int64 (channels, Y, X), classes at points of an image for the auxiliary loss of the vision tower
            (`Stage.dense_weight`); they belong to the first PATCHES segment.
        notices: What was shortened, resampled or skipped when its media were read.
        truth: What is known about a right result, for rewards (`rl.rewards.Drawn`).
        preserved: Whether what learns is to stay as it was at this sample (`Stage.preserve`).
        kind: What sort of request it is, for reports: what its source says of it, after the task.
        seed: Of the noise from which a model drew its target, which is empty where rewards refused that; None for what
            data show.
    """

    segments: Segments
    id: str
    labels: np.ndarray | None = None
    notices: tuple[str, ...] = ()
    truth: Any = None
    preserved: bool = False
    kind: str = ""
    seed: int | None = None


@dataclass(frozen=True)
class Row:
    """A row before decoding.

    Args:
        place: "FILE, row 7", as errors name it and as the ids of samples begin.
        values: Plain data of the source's own.
        folder: Where its relative paths begin.
    """

    place: str
    values: Any
    folder: Path = Path()


class BrokenRow(ValueError):
    """A row that cannot become a sample, with the reason; a Stream names it, counts it and goes on up to a limit."""

    def __init__(self, place: str, reason: object) -> None:
        self.place, self.reason = place, " ".join(str(reason).split())
        super().__init__(f"{place}: {self.reason}")

    def __reduce__(self) -> tuple:  # exceptions of several arguments do not survive the way back from a worker
        return type(self), (self.place, self.reason)


def check_broken(last: BrokenRow, count: int, rows: int, limit: float) -> None:
    """Stop when too many rows are broken.

    Args:
        last: The newest of them.
        count: Broken rows so far.
        rows: Rows read so far.
        limit: A share of the rows below 1, a number of rows from 1 on.

    Raises:
        UserError: If `count` is beyond the limit.
    """
    allowed = limit if limit >= 1 else math.ceil(limit * rows)
    if count > allowed:
        said = f"broken row {count} of {rows} read, and max_broken={limit:g} allows {allowed:g}"
        raise UserError(f"{last} ({said}: mend the data or raise the limit)")


@contextmanager
def readable(file: Path, fault: Callable[[], str], *errors: type[Exception]) -> Iterator[None]:
    """Turn what goes wrong while a file is read into a UserError that names it.

    Args:
        file: What is read.
        fault: Says what is wrong with a file that is there.
        errors: What its library raises for a damaged file, beside OSError.
    """
    damaged: tuple[type[Exception], ...] = (OSError, *errors)
    try:
        yield
    except FileNotFoundError as error:
        raise UserError(f"{file} is not there any more: put it back and resume, or leave it out") from error
    except damaged as error:
        reason = str(error).strip().split("\n")[0][:160]
        raise UserError(f"{file} {fault()} ({reason}): replace it with a good copy, or leave it out") from error


class Source(Protocol):
    """A table of rows in parts (row groups, shards, blocks of files). It holds no position and is safe to pickle."""

    @property
    def light(self) -> bool:
        """Whether a row is a sample already, so that sending it to a worker costs more than decoding it here."""

    def parts(self, epoch: int, rng: np.random.Generator | None) -> Sequence[Any]:
        """Return the parts in the order in which an epoch reads them: shuffled by rng, or as they lie without one."""

    def rows(self, part: Any) -> Iterable[Row]:
        """Return the rows of a part, always in the same order; UserError if it has vanished or is damaged. A sequence,
        where rows can be read in any order, is shuffled as a whole; of others, as far as a buffer reaches."""

    def stamp(self, part: Any) -> str:
        """Return a text that changes when what the rows of a part hold does (by a hash of it, not by size or time)."""

    def sample(self, row: Row, fit: Fit, rng: np.random.Generator) -> Sample:
        """Decode a row, as a pure function of the arguments; BrokenRow if it cannot be used."""


@runtime_checkable
class Endless(Source, Protocol):
    """A source that makes its samples: another seed gives others, so it can train and validate."""

    def drawn(self, count: int, seed: int) -> Source:
        """Return the first `count` samples of a seed."""


@dataclass(frozen=True)
class Files:
    """The parts of a source of files: each file is one."""

    files: tuple[Path, ...]
    light = False

    def parts(self, epoch: int, rng: np.random.Generator | None) -> Sequence[Any]:
        return shuffled(self.files, rng)

    def stamp(self, part: Any) -> str:
        return f"{part} {digest(part)}"

    def rows(self, part: Any) -> Iterable[Row]:
        raise NotImplementedError

    @property
    def mark(self) -> str:
        """A text that another state of the data changes, as far as names, sizes and texts of lists tell."""
        return marked(f"{file.name} {file.stat().st_size}" for file in self.files if file.is_file())

    @cached_property
    def census(self) -> Census:
        """What is in it."""
        count = sum(sum(1 for _ in self.rows(part)) for part in self.files)
        return Census(seen=count, used=count)

    def __str__(self) -> str:
        return f"{self.files[0]}" + (f" and {len(self.files) - 1} more" if len(self.files) > 1 else "")


def is_file(path: Path) -> bool:
    """Whether there is a file of a path, which may be any text: too long a one is none."""
    try:
        return path.is_file()
    except OSError:
        return False


def digest(file: Path) -> str:
    """Hash what is in a file: 16 hexadecimal digits of SHA-256. UserError if it cannot be read. A file is read again
    unless its size and the time of its last change (which, unlike that of its contents, nobody sets) are the same."""
    with readable(file, lambda: "cannot be read"):
        about = file.stat()
        return _digest(file, about.st_size, about.st_ctime_ns)


@lru_cache(maxsize=1 << 16)  # a file has many parts, which are asked for in a row, and epochs ask for all again
def _digest(file: Path, size: int, changed: int) -> str:
    found = hashlib.sha256()
    with file.open("rb") as data:
        while block := data.read(1 << 20):
            found.update(block)
    return found.hexdigest()[:16]


def marked(texts: Iterable[str]) -> str:
    """Hash texts in order: 16 hexadecimal digits of SHA-256."""
    found = hashlib.sha256()
    for text in texts:
        found.update(f"{text}\0".encode("utf-8", "surrogatepass"))
    return found.hexdigest()[:16]


def shuffled(parts: Sequence[Any], rng: np.random.Generator | None) -> list[Any]:
    return list(parts) if rng is None else [parts[i] for i in rng.permutation(len(parts))]


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How sources are read.

    Args:
        rank: Which process this is.
        world: How many there are.
        workers: Processes that decode; 0 decodes in this one.
        shuffle: Shuffle the parts, and the rows of each, in every epoch.
        repeat: Go on with the next epoch; without, one pass ends the stream.
        look_ahead: Samples that wait for a pack that they fill (released code: 50).
        max_broken: Broken rows to skip, see `check_broken`.
        cache: Where what was encoded of files before is; None makes it anew.
    """

    rank: int = 0
    world: int = 1
    workers: int = 0
    shuffle: bool = True
    repeat: bool = True
    look_ahead: int = 50
    max_broken: float = 0.001
    cache: Cache | None = None


# Rows that are at hand at once where a part is read from front to back; a row may hold a video of many megabytes.
BUFFER = 256


def buffered(rows: Iterable[Row], rng: np.random.Generator) -> Iterator[Row]:
    """Shuffle rows as far as a buffer reaches."""
    held: list[Row] = []
    for row in rows:
        if len(held) < BUFFER:
            held.append(row)
            continue
        at = int(rng.integers(BUFFER))
        held[at], row = row, held[at]
        yield row
    yield from shuffled(held, rng)


class Reader(Iterator[Row]):
    """The rows of a source for one rank, epoch after epoch; iterating takes the next row.

    Parts are dealt to the ranks in turn; where there are fewer parts than ranks, rows are. So no two ranks of an epoch
    see the same row, and together they see all; only a rank that is left without, since there are too few, borrows one.
    UserError if the source has no row at all.
    """

    def __init__(self, source: Source, reading: Reading | None = None, seed: int = 0) -> None:
        self.source, self.reading, self.seed = source, reading or Reading(), seed
        self.epoch = self.part = self.row = 0  # of the row that comes next
        self._rows = self._read()

    def __next__(self) -> Row:
        return next(self._rows)

    def _read(self) -> Iterator[Row]:
        """Rows from the position on, which moves along."""
        r, found = self.reading, self.part + self.row > 0
        while True:
            rng = np.random.default_rng((self.seed, self.epoch)) if r.shuffle else None
            parts = self.source.parts(self.epoch, rng)
            by_rows = len(parts) < r.world
            own = range(len(parts)) if by_rows else range(r.rank, len(parts), r.world)
            while self.part < len(own):
                number = own[self.part]
                rng = np.random.default_rng((self.seed, self.epoch, number)) if r.shuffle else None
                share = (r.rank, r.world) if by_rows else (0, 1)
                for row in self._ordered(self.source.rows(parts[number]), rng, *share):
                    self.row, found = self.row + 1, True
                    yield row
                self.part, self.row = self.part + 1, 0
            if not r.repeat:
                return
            self.epoch, self.part = self.epoch + 1, 0
            if not found:
                yield self._borrowed(parts)
            found = False

    def _borrowed(self, parts: Sequence[Any]) -> Row:
        """A row of another rank."""
        count = sum(1 for part in parts for _ in self.source.rows(part))
        if not count:
            raise UserError(f"{self.source} has no rows: give it data")
        rows = (row for part in parts for row in self.source.rows(part))
        return next(islice(rows, self.reading.rank % count, None))

    def _ordered(self, rows: Iterable[Row], rng: np.random.Generator | None, first: int, step: int) -> Iterator[Row]:
        """The rows of a part in the order of this epoch from `row` on, every `step`-th of them. What makes its rows is
        in no order that would have to be changed."""
        if isinstance(rows, Sequence):
            order = np.arange(len(rows)) if rng is None else rng.permutation(len(rows))
            yield from (rows[at] for at in order[first::step][self.row :].tolist())
            return
        if rng is not None and not isinstance(self.source, Endless):
            rows = buffered(rows, rng)
        yield from islice(islice(rows, first, None, step), self.row, None)

    def state_dict(self) -> dict[str, int]:
        """Return the place of the row that comes next."""
        return {"epoch": self.epoch, "part": self.part, "row": self.row}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.epoch, self.part, self.row = state["epoch"], state["part"], state["row"]
        self._rows = self._read()
