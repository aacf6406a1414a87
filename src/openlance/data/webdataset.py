"""WebDataset shards: plain tar files in which the files of one sample follow each other and share the name before the
first dot.

    000017.jpg  000017.txt                               a picture and its caption
    000018.mp4  000018.json                              {"caption_q": .., "caption_a": ..}
    000019.input_image.png 000019.output_image.png 000019.txt
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from openlance.config.values import decoded
from openlance.data.columns import Layout
from openlance.data.fit import Fit
from openlance.data.source import BrokenRow, Row, Sample, shuffled
from openlance.errors import UserError
from openlance.media.files import IMAGE_SUFFIXES, VIDEO_SUFFIXES


@dataclass(frozen=True)
class TarSource:
    """Rows of tar shards, read once from front to back; a part is one shard."""

    files: tuple[Path, ...]
    layout: Layout
    light = False

    def parts(self, epoch: int, rng: np.random.Generator | None) -> Sequence[Path]:
        return shuffled(self.files, rng)

    def rows(self, part: Path) -> Iterator[Row]:
        number, held, values = 0, None, dict[str, bytes]()
        for name, data in _members(part):
            key, _, field = name.partition(".")
            if key != held and values:
                yield Row(f"{part}, row {number} ({held})", values)
                number, values = number + 1, {}
            held = key
            values[field.lower()] = data
        if values:
            yield Row(f"{part}, row {number} ({held})", values)

    def stamp(self, part: Path) -> str:
        return f"{part} {part.stat().st_size}"

    def sample(self, row: Row, fit: Fit, rng: np.random.Generator) -> Sample:
        try:
            values = {k: v for field, data in row.values.items() for k, v in _column(field, data)}
        except (ValueError, RecursionError) as error:
            raise BrokenRow(row.place, error) from error
        folder = Path(row.place.rpartition(", row ")[0]).parent
        return self.layout.sample(Row(row.place, values), folder, fit, aliases=True)

    def __str__(self) -> str:
        return f"{self.files[0]}" + (f" and {len(self.files) - 1} more" if len(self.files) > 1 else "")


def _members(shard: Path) -> Iterator[tuple[str, bytes]]:
    """(path without its folder's dots, bytes) of the regular files of a shard, in order."""
    seen = 0
    try:
        with tarfile.open(shard, "r|*") as tar:
            for member in tar:
                if not member.isreg():
                    continue
                file = tar.extractfile(member)
                assert file is not None
                data = file.read()
                folder, slash, name = member.name.rpartition("/")
                yield folder.replace(".", "_") + slash + name, data
                seen += 1
    except FileNotFoundError as error:
        raise UserError(f"{shard} is not there any more: put it back and resume, or leave it out") from error
    except (tarfile.TarError, EOFError, OSError) as error:
        raise UserError(f"{shard} is damaged after {seen} files ({error}): get it again") from error


def _column(field: str, data: bytes) -> list[tuple[str, Any]]:
    """The columns that one file of a sample fills."""
    stem, _, suffix = field.rpartition(".")
    if suffix == "json":
        values = json.loads(decoded(data, field))
        if not isinstance(values, dict):
            raise UserError(f"{field} holds a {type(values).__name__}: expected a JSON object of columns")
        return list(values.items())
    if suffix == "txt":
        return [(stem or "caption", decoded(data, field).strip())]
    if f".{suffix}" in VIDEO_SUFFIXES:
        return [(stem or "video", data)]
    return [(stem or "image", data)] if f".{suffix}" in IMAGE_SUFFIXES else []
