"""Every form of data as a source: folders, Parquet, WebDataset, Hugging Face, encoded shards, plugins.

open_source("shards/*.parquet", "image_edit")
open_source({"path": "photos", "columns": {"caption": "title"}}, "t2i")
open_source("hf:someone/pictures:train", "t2i")
open_source("latents", "t2i")                         # what `openlance encode` wrote
open_source({"path": "world", "kinds": {"text": 8}}, "t2i")     # a source of an installed package, with its keys
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from inspect import signature
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from openlance.config.plugins import plugin, plugins
from openlance.config.values import decoded, from_yaml, lines_of, read_text
from openlance.data.columns import Layout
from openlance.data.encoded import MARK, EncodedSource
from openlance.data.front import Fit
from openlance.data.source import BrokenRow, Files, Row, Sample, Source, readable, shuffled
from openlance.errors import UserError
from openlance.media.files import IMAGE_SUFFIXES, VIDEO_SUFFIXES

KEYS = ("path", "type", "columns")
TAR_SUFFIXES = (".tar", ".tgz", ".tar.gz")
METADATA = ("metadata.jsonl", "captions.jsonl")
# Rows of a part of a folder: so few that it spreads over ranks and workers, enough for a shard of latents.
BLOCK = 64
# Rows of a Parquet file that are in memory at once; a row may hold a video of many megabytes.
BATCH = 16


@dataclass(frozen=True)
class Table(Files):
    """Files whose rows are columns of a layout."""

    layout: Layout

    def sample(self, row: Row, fit: Fit, rng: np.random.Generator) -> Sample:
        return self.layout.sample(row, fit)


@dataclass(frozen=True)
class FolderSource(Table):
    """A folder of captioned media; a part is a block of rows.

    Media have a text file of the same name beside each, or are named by the lines of a metadata.jsonl (`file_name`, as
    in Hugging Face's imagefolder):

        pictures/dog.png  pictures/dog.txt
        pictures/metadata.jsonl    {"file_name": "dog.png", "text": "a dog"}
                                   {"input_image": "a.png", "output_image": "b.png", "instruction": "make it red"}
    """

    @cached_property
    def found(self) -> list[Row]:
        """All rows in the order of the file or of the names. UserError if there are none."""
        [folder] = self.files
        table = next((folder / name for name in METADATA if (folder / name).is_file()), None)
        rows = list(self._from_names(folder) if table is None else _from_metadata(table))
        if not rows:
            fix = f"put a text file of the same name beside each, or a {METADATA[0]} with file_name and text"
            raise UserError(f"{folder} holds no captioned images or videos: {fix}")
        return rows

    def _from_names(self, folder: Path) -> Iterator[Row]:
        """Media that have a text beside them: a caption, or a question and its answer on two lines."""
        for path in sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES + VIDEO_SUFFIXES):
            beside = path.with_suffix(".txt")
            if not beside.is_file():
                continue
            values = {"file_name": str(path.relative_to(folder)), "caption": read_text(beside).strip()}
            if self.layout.columns.text != "caption":
                question, _, answer = values.pop("caption").rpartition("\n")
                values |= {"caption_q": question.strip(), "caption_a": answer.strip()}
            yield Row(str(path), _under_columns(values), folder)

    def parts(self, epoch: int, rng: np.random.Generator | None) -> Sequence[list[int]]:
        order = shuffled(range(len(self.found)), rng)
        return [order[start : start + BLOCK] for start in range(0, len(order), BLOCK)]

    def rows(self, part: list[int]) -> Iterator[Row]:
        return (self.found[number] for number in part)

    def stamp(self, part: list[int]) -> str:
        return "\n".join(f"{row.place} {row.values} {_sizes(row)}" for row in self.rows(part))


def _sizes(row: Row) -> list[int]:
    media = [row.folder / v for k, v in row.values.items() if k.endswith("_bytes") and isinstance(v, str)]
    return [path.stat().st_size for path in media if path.is_file()]


def _from_metadata(table: Path) -> Iterator[Row]:
    for number, line in enumerate(lines_of(read_text(table))):
        if not line.strip():
            continue
        place = f"{table}, row {number}"
        try:
            values = json.loads(line, strict=False)  # texts may hold tabs as they are
        except (ValueError, RecursionError) as error:
            raise UserError(f"{place}, is not JSON ({error}): write one object per line") from error
        if not isinstance(values, dict):
            raise UserError(f"{place}, is not an object: write {{'file_name': .., 'text': ..}}")
        yield Row(place, _under_columns(values), table.parent)


def _under_columns(values: dict[str, Any]) -> dict[str, Any]:
    """`file_name` under the name of the column that it fills."""
    name = values.pop("file_name", None)
    if isinstance(name, str):
        values["video_bytes" if name.lower().endswith(VIDEO_SUFFIXES) else "image_bytes"] = name
    return values


@dataclass(frozen=True)
class ParquetSource(Table):
    """Rows of Parquet files; a part is one row group of one file. Paths in columns are relative to their file."""

    @cached_property
    def groups(self) -> list[tuple[Path, int, int]]:
        """(file, row group, number of its first row) in order. UserError for a damaged file or wrong columns.

        All footers are read at once, so that a truncated file is reported before the first step.
        """
        found = []
        for file in self.files:
            with _parquet(file) as table:
                self.layout.check(file, table.schema_arrow.names)
                first = 0
                for group in range(table.num_row_groups):
                    found.append((file, group, first))
                    first += table.metadata.row_group(group).num_rows
        return found

    def parts(self, epoch: int, rng: np.random.Generator | None) -> Sequence[tuple[Path, int, int]]:
        return shuffled(self.groups, rng)

    def rows(self, part: tuple[Path, int, int]) -> Iterator[Row]:
        import pyarrow as pa

        file, group, number = part
        c = self.layout.columns
        needed = {c.text, *c.inputs, c.output, c.system}

        def fault() -> str:
            return f"is damaged in row group {group}, at row {number} or later"

        with _parquet(file) as table, readable(file, fault, pa.ArrowException):
            wanted = [name for name in table.schema_arrow.names if needed & self.layout.renamed({name: None}).keys()]
            for batch in table.iter_batches(BATCH, row_groups=[group], columns=wanted):
                for values in batch.to_pylist():
                    yield Row(f"{file}, row {number}", values, file.parent)
                    number += 1

    def stamp(self, part: tuple[Path, int, int]) -> str:
        return f"{part[1:]} {super().stamp(part[0])}"


def _parquet(file: Path) -> Any:
    """Open a Parquet file."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise UserError("reading Parquet needs pyarrow: pip install 'openlance[train]'") from error
    with readable(file, lambda: "is not a whole Parquet file", pa.ArrowException):
        return pq.ParquetFile(file)


@dataclass(frozen=True)
class TarSource(Table):
    """WebDataset shards, read once from front to back; a part is one shard.

    Plain tar files, in which the files of one sample follow each other and share the name before the first dot:

        000017.jpg  000017.txt                               an image and its caption
        000018.mp4  000018.json                              {"caption_q": .., "caption_a": ..}
        000019.input_image.png 000019.output_image.png 000019.txt
    """

    def rows(self, part: Path) -> Iterator[Row]:
        samples = groupby(_members(part), key=lambda member: member[0].partition(".")[0])
        for number, (key, members) in enumerate(samples):
            values = {name.partition(".")[2].lower(): data for name, data in members}
            yield Row(f"{part}, row {number} ({key})", values, part.parent)

    def sample(self, row: Row, fit: Fit, rng: np.random.Generator) -> Sample:
        try:
            values = {k: v for field, data in row.values.items() for k, v in _fields(field, data).items()}
        except (ValueError, RecursionError) as error:
            raise BrokenRow(row.place, error) from error
        return self.layout.sample(Row(row.place, values, row.folder), fit)


def _members(shard: Path) -> Iterator[tuple[str, bytes]]:
    """(path without its folder's dots, bytes) of the regular files of a shard, in order."""
    seen = 0
    with readable(shard, lambda: f"is damaged after {seen} files", tarfile.TarError, EOFError):
        with tarfile.open(shard, "r|*") as tar:
            for member in tar:
                file = tar.extractfile(member) if member.isreg() else None
                if file is not None:
                    folder, slash, name = member.name.rpartition("/")
                    yield folder.replace(".", "_") + slash + name, file.read()
                    seen += 1


def _fields(field: str, data: bytes) -> dict[str, Any]:
    """The columns that one file of a sample fills."""
    stem, _, suffix = field.rpartition(".")
    if suffix == "json":
        values = json.loads(decoded(data, field))
        if not isinstance(values, dict):
            raise UserError(f"{field} holds a {type(values).__name__}: expected a JSON object of columns")
        return values
    if suffix == "txt":
        return {stem or "caption": decoded(data, field).strip()}
    if f".{suffix}" in VIDEO_SUFFIXES:
        return {stem or "video": data}
    return {stem or "image": data} if f".{suffix}" in IMAGE_SUFFIXES else {}


@dataclass(frozen=True)
class HubSource:
    """Rows of one split of a dataset of Hugging Face's `datasets`, streamed; a part is one of its shards.

    Args:
        name: On the hub, or a folder that `datasets.load_dataset` understands.
        layout: How rows are read.
        split: Which rows.
    """

    name: str
    layout: Layout
    split: str = "train"
    light = False

    @cached_property
    def data(self) -> Any:
        """The streaming dataset, its media undecoded. UserError if it cannot be opened or has other columns."""
        try:
            import datasets
        except ImportError as error:
            raise UserError("reading Hugging Face datasets needs their package: pip install datasets") from error
        try:
            data = datasets.load_dataset(self.name, split=self.split, streaming=True)
        except (OSError, ValueError) as error:  # ValueError also covers the package's own errors of configuration
            first = str(error).strip().split("\n")[0][:200]
            said = f"the dataset {self.name!r} cannot be opened ({first})"
            raise UserError(f"{said}: check its name and split") from error
        self.layout.check(self, data.column_names or list(next(iter(data), {})))
        kinds = (datasets.Image, getattr(datasets, "Video", datasets.Image))
        for column, feature in (data.features or {}).items():
            if isinstance(feature, kinds):
                data = data.cast_column(column, type(feature)(decode=False))
        return data

    def parts(self, epoch: int, rng: np.random.Generator | None) -> Sequence[int]:
        return shuffled(range(self.data.num_shards), rng)

    def rows(self, part: int) -> Iterator[Row]:
        shard = self.data.shard(num_shards=self.data.num_shards, index=part)
        for number, values in enumerate(shard):
            yield Row(f"{self}, shard {part}, row {number}", values)

    def stamp(self, part: int) -> str:
        return f"{part} of {self.data.num_shards}"

    def sample(self, row: Row, fit: Fit, rng: np.random.Generator) -> Sample:
        return self.layout.sample(row, fit)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "data"}  # workers only decode

    def __str__(self) -> str:
        return f"hf:{self.name}:{self.split}"


def open_source(spec: str | Path | Mapping[str, Any], task: str) -> Source:
    """Open what a user names as a source of samples.

    Args:
        spec: A path, `hf:NAME[:SPLIT]`, the name of a plugin's source, or a mapping with `path` and optionally `type`
            (a dataset type) and `columns` (our name: theirs), or the keys of the plugin; also as YAML in braces.
        task: What the samples are for.

    Raises:
        UserError: If there is nothing of the kind, or it holds something else than the task needs.
    """
    try:
        given = from_yaml(spec) if isinstance(spec, str) and spec.startswith("{") else spec
    except ValueError as error:
        good = "{path: shards, type: image2image}"
        raise UserError(f"the source {spec!r} is not YAML: write for example {good}") from error
    said: dict[str, Any] = dict(given) if isinstance(given, Mapping) else {"path": str(given)}
    path = str(said.get("path", "")).strip()
    added = plugin("sources", path)
    keys = KEYS if added is None else ("path", *list(signature(added).parameters)[1:])
    unknown = [key for key in said if key not in keys]
    if unknown or not path:
        raise UserError(f"a source is a path or has the keys {', '.join(keys)}; {said} has {unknown or 'no path'}")
    if added is not None:
        return added(task, **{key: value for key, value in said.items() if key != "path"})
    layout = Layout.of(task, said.get("type"), said.get("columns"))
    if path.startswith("hf:"):
        name, _, split = path.removeprefix("hf:").partition(":")
        return HubSource(name, layout, split or "train")
    return _files(path, layout)


def _files(path: str, layout: Layout) -> Source:
    """The source of a file, of the files of a pattern, or of those below a folder."""
    place = Path(path)
    if place.is_dir():
        shards = sorted(place.glob(f"*{MARK}"))
        if shards:
            return EncodedSource(tuple(shards), layout.task)
    found = [place] if place.is_file() else place.rglob("*") if place.is_dir() else place.parent.glob(place.name)
    files = sorted(file for file in found if file.name.endswith((".parquet", *TAR_SUFFIXES)))
    tables = tuple(file for file in files if file.suffix == ".parquet")
    if tables:
        source: Source = ParquetSource(tables, layout)
    elif files:
        source = TarSource(tuple(files), layout)
    elif place.is_dir():
        source = FolderSource((place,), layout)
    else:
        good = ", ".join(["a folder", "*.parquet or *.tar files", *plugins("sources")])
        raise UserError(f"there is no data at {path}: give {good}, or hf:NAME")
    source.parts(0, None)  # reads footers and captions: errors come now
    return source
