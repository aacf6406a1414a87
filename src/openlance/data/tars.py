"""WebDataset shards: tar files whose members of one sample share the name before the first dot, in any order.

000017.jpg  000017.txt                               an image and its caption
000018.mp4  000018.json                              {"caption_q": .., "caption_a": ..}
000019.input_image.png 000019.output_image.png 000019.txt
"""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import shutil
import tarfile
import tempfile
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from openlance.config.values import decoded
from openlance.data.census import Census
from openlance.data.folders import is_media, is_private
from openlance.data.front import Fit
from openlance.data.source import BrokenRow, Row, Sample, readable
from openlance.data.tabular import Table
from openlance.errors import UserError
from openlance.media.files import IMAGE_SUFFIXES, VIDEO_SUFFIXES

SUFFIXES = (".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz")
TEXTS = ("txt", "caption", "text")
PACKED: tuple[tuple[bytes, Any], ...] = ((b"\x1f\x8b", gzip.open), (b"BZh", bz2.open), (b"\xfd7zXZ", lzma.open))
BROKEN = (tarfile.TarError, EOFError, lzma.LZMAError, gzip.BadGzipFile)


@dataclass(frozen=True)
class TarSource(Table):
    """Shards of tar; a part is one shard. A packed one is unpacked into a temporary file while it is read."""

    def rows(self, part: Path) -> Sequence[Row]:
        return Members(
            part, [(n, key, fields) for n, (key, fields) in enumerate(self._index(part)[0]) if self._whole(fields)]
        )

    def _index(self, part: Path) -> tuple[list[tuple[str, dict[str, int]]], list[tuple[str, str]], int]:
        with readable(part, lambda: "is damaged", *BROKEN):
            about = part.stat()
        return index(part, about.st_size, about.st_ctime_ns)

    def _whole(self, fields: dict[str, Any]) -> bool:
        return not self._fault(fields)

    def _fault(self, fields: dict[str, Any]) -> str:
        """What a sample lacks, as far as the names of its files tell, or has twice."""
        columns, c = columns_of(fields), self.layout.columns
        if twice := [name for name in columns if columns.count(name) > 1]:
            return f"several files are its {twice[0]}"
        lacks = self.layout.missing(columns)
        if any(field.rpartition(".")[2] == "json" for field in fields):  # which may hold anything but what is made
            lacks = [name for name in lacks if name.endswith("_bytes")] if c.makes != "text" else []
        return "no caption" if lacks == [c.text] else f"no {', '.join(lacks)}" if lacks else ""

    @cached_property
    def census(self) -> Census:
        found = Census(notes=[*self.notes])
        first: dict[str, int] | None = None
        for part in self.files:
            samples, left, _ = self._index(part)
            for why, name in left:
                found.leave(why, f"{part}: {name}")
            for key, fields in samples:
                found.seen = (found.seen or 0) + 1
                if not (why := self._fault(fields)):
                    found.used = (found.used or 0) + 1
                    continue
                first = first or fields
                found.leave(why, f"{part}: {key}")
        if not found.used:
            self.layout.check(self, columns_of(first or {}))
            fix = "give each sample one file of each kind"
            raise UserError(f"{self} holds no sample that is of use ({'; '.join(found.lines) or 'none at all'}): {fix}")
        return found

    def sample(self, row: Row, fit: Fit, rng: np.random.Generator) -> Sample:
        try:
            # Files have the last word: JSON comes first.
            ordered = sorted(row.values.items(), key=lambda item: not item[0].endswith("json"))
            values = {k: v for field, data in ordered for k, v in _fields(field, data).items()}
        except (ValueError, RecursionError) as error:
            raise BrokenRow(row.place, error) from error
        return self.layout.sample(Row(row.place, values, row.folder), fit, rng)


@lru_cache(maxsize=4096)
def index(shard: Path, size: int, changed: int) -> tuple[list[tuple[str, dict[str, int]]], list[tuple[str, str]], int]:
    """Read which files a shard has: samples by key with the place of each of their files among the members, what is
    left out and why, and the number of members."""
    samples, left = dict[str, dict[str, int]](), list[tuple[str, str]]()
    seen = 0
    with readable(shard, lambda: f"is damaged after {seen} files", *BROKEN):
        with unpacked(shard) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                number, seen = seen, seen + 1
                folder, slash, name = member.name.rpartition("/")
                if not member.isreg():
                    continue
                if any(is_private(part) for part in member.name.split("/") if part != "."):
                    if is_media(name):
                        left.append(("hidden", member.name))
                    continue
                stem, _, field = name.partition(".")
                sample = samples.setdefault(folder + slash + stem, {})
                if field.lower() in sample:
                    left.append(("a later file of the tar has its name", member.name))
                sample[field.lower()] = number
    return list(samples.items()), left, seen


def unpacked(shard: Path) -> BinaryIO:
    """Open a tar file; of a packed one a temporary copy."""
    file = shard.open("rb")
    head = file.read(6)
    file.seek(0)
    opener = next((opener for start, opener in PACKED if head.startswith(start)), None)
    if opener is None:
        return file
    with file, opener(file) as held:
        copy: Any = tempfile.TemporaryFile()
        shutil.copyfileobj(held, copy)
    copy.seek(0)
    return copy


class Members(Sequence[Row]):
    """Samples of one shard; it is opened when the first of them is asked for."""

    def __init__(self, shard: Path, samples: list[tuple[int, str, dict[str, int]]]) -> None:
        self._shard, self._samples = shard, samples

    def __len__(self) -> int:
        return len(self._samples)

    @cached_property
    def _tar(self) -> tuple[tarfile.TarFile, list[tarfile.TarInfo]]:
        file = unpacked(self._shard)
        weakref.finalize(self, file.close)  # when the part is over
        tar = tarfile.open(fileobj=file, mode="r:")
        return tar, tar.getmembers()

    def __getitem__(self, index: Any) -> Any:
        number, key, fields = self._samples[index]
        last = max(fields.values(), default=0)
        with readable(self._shard, lambda: f"is damaged after {last} files", *BROKEN):
            tar, members = self._tar
            files = {field: tar.extractfile(members[at]) for field, at in fields.items()}
            values = {field: file.read() for field, file in files.items() if file is not None}
        return Row(f"{self._shard}, row {number} ({key})", values, self._shard.parent)


def columns_of(fields: Any) -> list[str]:
    """The columns that files of a sample fill, by their names."""
    return [name for field in fields for name in _fields(field, None)]


def _fields(field: str, data: bytes | None) -> dict[str, Any]:
    """The columns that one file of a sample fills; of JSON only its data tell."""
    stem, _, suffix = field.rpartition(".")
    if suffix == "json":
        values = {} if data is None else json.loads(decoded(data, field), strict=False)
        if not isinstance(values, dict):
            raise UserError(f"{field} holds a {type(values).__name__}: expected a JSON object of columns")
        return values
    if suffix in TEXTS:
        return {stem or "caption": None if data is None else decoded(data, field).strip()}
    if f".{suffix}" in VIDEO_SUFFIXES:
        return {stem or "video": data}
    return {stem or "image": data} if f".{suffix}" in IMAGE_SUFFIXES else {}
