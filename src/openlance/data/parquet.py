"""Parquet files of the released dataset types (local, one row one sample), read row group by row group.

All footers are read at the start: a truncated file or a wrong column is told before the first step, not in the night.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from openlance.data.columns import Layout
from openlance.data.fit import Fit
from openlance.data.source import Row, Sample, shuffled
from openlance.errors import UserError

# Rows that are in memory at once; a row may hold a clip of many megabytes.
BATCH = 16


@dataclass(frozen=True)
class ParquetSource:
    """Rows of Parquet files; a part is one row group of one file. Paths in columns are relative to their file."""

    files: tuple[Path, ...]
    layout: Layout
    light = False

    @cached_property
    def groups(self) -> list[tuple[Path, int, int]]:
        """(file, row group, number of its first row) in order. UserError for a damaged file or wrong columns."""
        found = []
        for file in self.files:
            with _opened(file) as table:
                self.layout.check(file, table.schema_arrow.names)
                first = 0
                for group in range(table.num_row_groups):
                    found.append((file, group, first))
                    first += table.metadata.row_group(group).num_rows
        return found

    def parts(self, epoch: int, rng: np.random.Generator | None) -> Sequence[tuple[Path, int, int]]:
        return shuffled(self.groups, rng)

    def rows(self, part: tuple[Path, int, int]) -> Iterator[Row]:
        file, group, number = part
        with _opened(file) as table:
            wanted = [name for name in table.schema_arrow.names if name in self._columns]
            for batch in _batches(file, table, group, wanted, number):
                for values in batch.to_pylist():
                    yield Row(f"{file}, row {number}", values)
                    number += 1

    def stamp(self, part: tuple[Path, int, int]) -> str:
        return f"{part[1:]} {part[0]} {part[0].stat().st_size}"

    def sample(self, row: Row, fit: Fit, rng: np.random.Generator) -> Sample:
        folder = Path(row.place.rpartition(", row ")[0]).parent
        return self.layout.sample(row, folder, fit)

    @cached_property
    def _columns(self) -> set[str]:
        c = self.layout.columns
        ours = {c.text, *c.inputs, c.output, c.system}
        return ours | {theirs for _, theirs in self.layout.names}

    def __str__(self) -> str:
        return f"{self.files[0]}" + (f" and {len(self.files) - 1} more" if len(self.files) > 1 else "")


def _opened(file: Path) -> Any:
    """A pyarrow ParquetFile; UserError naming the file if it has vanished or is not a whole Parquet file."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise UserError("reading Parquet needs pyarrow: pip install 'openlance[train]'") from error
    try:
        return pq.ParquetFile(file)
    except FileNotFoundError as error:
        raise UserError(f"{file} is not there any more: put it back and resume, or leave it out") from error
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{file} is not a whole Parquet file ({_first_line(error)}): get it again") from error


def _batches(file: Path, table: Any, group: int, columns: list[str], number: int) -> Iterator[Any]:
    import pyarrow as pa

    batches = table.iter_batches(BATCH, row_groups=[group], columns=columns)
    while True:
        try:
            batch = next(batches, None)
        except (pa.ArrowException, OSError) as error:
            raise UserError(
                f"{file} is damaged in row group {group}, at row {number} or later ({_first_line(error)}): get it again"
            ) from error
        if batch is None:
            return
        number += batch.num_rows
        yield batch


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:160]
