"""Tables of Arrow: Parquet files, and what Hugging Face's `save_to_disk` writes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from openlance.config.values import read_json
from openlance.data.census import Census
from openlance.data.columns import Layout, told
from openlance.data.front import Fit
from openlance.data.source import Files, Row, Sample, digest, is_file, readable, shuffled
from openlance.errors import UserError

# Row groups of more bytes are read in batches of so many rows, and shuffled as far as a buffer reaches.
LARGE, BATCH = 1 << 30, 16
COUNTED = 1_000_000  # rows up to which all texts are looked at before the first step
SAVED, SAVED_SPLITS = "state.json", "dataset_dict.json"  # of datasets.Dataset and DatasetDict
Part = tuple[Path, int, int]  # file, row group or batch, number of its first row


@dataclass(frozen=True)
class Table(Files):
    """Files whose rows are columns of a layout.

    Args:
        layout: How they are read.
        notes: What is to be known of the folder that they are in.
    """

    layout: Layout
    notes: tuple[str, ...] = ()

    def sample(self, row: Row, fit: Fit, rng: np.random.Generator) -> Sample:
        return self.layout.sample(row, fit, rng)


def contents(row: Row) -> str:
    """The words of a row, and what is in the files that it names."""
    found = []
    for name, value in sorted(row.values.items()):
        held = value if isinstance(value, (list, tuple)) else [value]
        files = [row.folder / one for one in held if isinstance(one, str) and 0 < len(one) < 1000 and "\n" not in one]
        found.append(f"{name} {value!r} {[digest(file) for file in files if is_file(file)]}")
    return "\n".join(found)


class Rows(Sequence[Row]):
    """Rows of a table of Arrow that is read when the first of them is asked for."""

    def __init__(self, part: Part, count: int, load: Callable[[], Any], folder: Path) -> None:
        self._part, self._count, self._load, self._folder = part, count, load, folder

    @cached_property
    def _table(self) -> Any:
        return self._load()

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: Any) -> Any:
        file, _, first = self._part
        if not 0 <= index < self._count:
            raise IndexError(index)
        [values] = self._table.slice(index, 1).to_pylist()
        return Row(f"{file}, row {first + index}", values, self._folder)


@dataclass(frozen=True)
class ArrowTable(Table):
    """What both kinds share: parts are row groups or batches. Paths in columns begin beside their file, or in the
    layout's folder of media."""

    @cached_property
    def groups(self) -> list[tuple[Part, int]]:
        """(file, number of the group, number of its first row) and how many rows it has, in order."""
        raise NotImplementedError

    def parts(self, epoch: int, rng: np.random.Generator | None) -> Sequence[Part]:
        return shuffled([part for part, _ in self.groups], rng)

    @cached_property
    def census(self) -> Census:
        """How many rows there are, and how many of them have no text; other faults are met when rows are read."""
        count, blank = sum(rows for _, rows in self.groups), 0
        texts = {file: self._column(file, self.layout.columns.text) for file in self.files}
        found = Census(seen=count, used=count, notes=[*self.notes])
        known = sorted({text for text in texts.values() if text is not None})
        asks = self.layout.columns.makes == "text"  # which an empty question does, too
        if not known or asks:
            found.notes.append("questions: in the table" if asks else "captions: the one for all")
            return found
        named = f"from the column {' or '.join(known)}"
        if count > COUNTED:
            found.notes.append(f"captions: {named}, blank ones not counted among so many rows")
            return found
        for part, rows in self.groups:
            text = texts[part[0]]
            blank += rows if text is None else sum(not told(one) for one in self._read(part, [text])[text].to_pylist())
        found.notes.append(f"captions: {count - blank} {named}")
        if blank and self.layout.caption:
            found.notes.append(f"captions: {blank} the one for all")
        elif blank:
            found.used = count - blank
            found.leave("no caption, which makes a row a broken one", self, blank)
        return found

    def _column(self, file: Path, ours: str) -> str | None:
        return self.layout.named(self._schema(file).names).get(ours)

    def _read(self, part: Part, columns: list[str]) -> Any:
        raise NotImplementedError

    def _wanted(self, names: Sequence[str]) -> list[str]:
        used = set(self.layout.named(names).values())
        return [name for name in names if name in used]

    def _folder(self, file: Path) -> Path:
        return Path(self.layout.media) if self.layout.media else file.parent

    def stamp(self, part: Part) -> str:
        outside = [contents(row) for row in self.rows(part)] if self._names_files else ()
        return "\n".join([f"{part[1:]} {digest(part[0])}", *outside])

    @cached_property
    def _names_files(self) -> bool:
        """Whether columns of media hold paths."""
        import pyarrow as pa

        c, schemas = self.layout.columns, [self._schema(file) for file in self.files]
        media = [ours for ours in (*c.inputs, c.output) if ours.endswith("_bytes")]
        named = [(schema, self.layout.named(schema.names)) for schema in schemas]
        kinds = [schema.field(names[ours]).type for schema, names in named for ours in media if ours in names]
        return any(pa.types.is_string(kind) or pa.types.is_large_string(kind) or "path: string" in str(kind)
                   for kind in kinds)  # fmt: skip

    def _schema(self, file: Path) -> Any:
        raise NotImplementedError

    def rows(self, part: Part) -> Iterator[Row] | Sequence[Row]:
        raise NotImplementedError


@dataclass(frozen=True)
class ParquetSource(ArrowTable):
    """Rows of Parquet files; a part is one row group of one file."""

    @cached_property
    def groups(self) -> list[tuple[Part, int]]:
        """All footers are read at once, so that a truncated file, or wrong columns, are reported before the first
        step."""
        found = []
        for file in self.files:
            with parquet(file) as table:
                self.layout.check(file, table.schema_arrow.names)
                first = 0
                for group in range(table.num_row_groups):
                    count = table.metadata.row_group(group).num_rows
                    found.append(((file, group, first), count))
                    first += count
        return found

    def _schema(self, file: Path) -> Any:
        with parquet(file) as table:
            return table.schema_arrow

    def _read(self, part: Part, columns: list[str]) -> Any:
        import pyarrow as pa

        file, group, number = part
        with parquet(file) as table:
            with readable(
                file, lambda: f"is damaged in row group {group}, at row {number} or later", pa.ArrowException
            ):
                return table.read_row_group(group, columns=columns)

    def rows(self, part: Part) -> Iterator[Row] | Sequence[Row]:
        file, group, _ = part
        with parquet(file) as table:
            wanted, about = self._wanted(table.schema_arrow.names), table.metadata.row_group(group)
        if about.total_byte_size > LARGE:
            return self._batches(part, wanted)
        return Rows(part, about.num_rows, lambda: self._read(part, wanted), self._folder(file))

    def _batches(self, part: Part, wanted: list[str]) -> Iterator[Row]:
        import pyarrow as pa

        file, group, number = part

        def fault() -> str:
            return f"is damaged in row group {group}, at row {number} or later"

        with parquet(file) as table, readable(file, fault, pa.ArrowException):
            for batch in table.iter_batches(BATCH, row_groups=[group], columns=wanted):
                for values in batch.to_pylist():
                    yield Row(f"{file}, row {number}", values, self._folder(file))
                    number += 1


def parquet(file: Path) -> Any:
    """Open a Parquet file. UserError if it is damaged, or pyarrow is missing."""
    pa = pyarrow()
    import pyarrow.parquet as pq

    with readable(file, lambda: "is not a whole Parquet file", pa.ArrowException):
        return pq.ParquetFile(file)


def pyarrow() -> Any:
    try:
        import pyarrow
    except ImportError as error:
        raise UserError("reading Parquet needs pyarrow: pip install 'openlance[train]'") from error
    return pyarrow


@dataclass(frozen=True)
class SavedSource(ArrowTable):
    """What `datasets.Dataset.save_to_disk` wrote; a part is one batch of one of its files."""

    @cached_property
    def groups(self) -> list[tuple[Part, int]]:
        found = []
        for file in self.files:
            first = 0
            for number, batch in enumerate(self._stream(file)):
                if not number:
                    self.layout.check(file.parent, batch.schema.names)
                found.append(((file, number, first), len(batch)))
                first += len(batch)
        return found

    def _stream(self, file: Path) -> Iterator[Any]:
        pa = pyarrow()
        with readable(file, lambda: "is damaged", pa.ArrowException):
            yield from pa.ipc.open_stream(pa.memory_map(str(file)))

    def _schema(self, file: Path) -> Any:
        return next(self._stream(file)).schema

    def _read(self, part: Part, columns: list[str]) -> Any:
        file, number, _ = part
        batch = next(one for n, one in enumerate(self._stream(file)) if n == number)
        return pyarrow().Table.from_batches([batch]).select(columns)

    def rows(self, part: Part) -> Sequence[Row]:
        count = next(rows for one, rows in self.groups if one == part)
        wanted = self._wanted(self._schema(part[0]).names)
        return Rows(part, count, lambda: self._read(part, wanted), self._folder(part[0]))


def saved_files(folder: Path, split: str | None) -> list[Path] | None:
    """Find the files of a folder that `save_to_disk` wrote, of a split where it has several; None if it is no such
    folder. UserError for a split that it does not have."""
    if (folder / SAVED_SPLITS).is_file():
        splits = read_json(folder / SAVED_SPLITS).get("splits") or []
        chosen = split or ("train" if "train" in splits else splits[0] if len(splits) == 1 else "")
        if chosen not in splits:
            said = f"{folder} has the splits {', '.join(splits)}"
            raise UserError(f"{said}: choose one with {{path: {folder}, split: {splits[0] if splits else 'train'}}}")
        folder = folder / chosen
    if not (folder / SAVED).is_file():
        return None
    held = read_json(folder / SAVED).get("_data_files") or []
    return [folder / entry["filename"] for entry in held]


def stamp_of(rows: Sequence[Row] | Iterator[Row]) -> str:
    """A hash of all that rows hold, for sources of which nothing else tells."""
    found = hashlib.sha256()
    for row in rows:
        found.update(repr(sorted(row.values.items(), key=lambda item: item[0])).encode())
    return found.hexdigest()
