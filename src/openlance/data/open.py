"""Every form of data as a source: folders, lists, Parquet, WebDataset, Hugging Face, encoded shards, plugins.

open_source("shards/*.parquet", "image_edit")
open_source({"path": "photos", "columns": {"caption": "title"}}, "t2i")
open_source({"path": "hf:someone/pictures", "config": "large", "split": "train"}, "t2i")
open_source("latents", "t2i")                         # what `openlance encode` wrote
open_source({"path": "world", "kinds": {"text": 8}}, "t2i")     # a source of an installed package, with its keys
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np

from openlance.config.plugins import plugin, plugins
from openlance.config.values import from_yaml
from openlance.data import tables, tars
from openlance.data.census import Census
from openlance.data.columns import Layout
from openlance.data.encoded import MARK, EncodedSource
from openlance.data.folders import Survey, is_media, is_private
from openlance.data.hub import HubSource
from openlance.data.source import Row, Source, is_file, marked, shuffled
from openlance.data.tabular import ParquetSource, SavedSource, Table, contents, saved_files
from openlance.data.tars import TarSource
from openlance.errors import UserError

LAYOUT = ("type", "columns", "caption", "clips", "stride", "min_side", "media")
KEYS = ("path", *LAYOUT, "config", "split")
METADATA = "metadata.parquet"  # of Hugging Face's imagefolder: a list of the files beside it
CONFIG = re.compile(r"^ *- *config_name: *[\"']?([^\"'\s]+)", re.MULTILINE)  # in the card of a data set
SPLIT = re.compile(r"(train|test|validation|valid|val|dev)([-_.\d].*)?")  # names of folders and tables, as on the hub
# Rows of a part of a folder: so few that it spreads over ranks and workers, enough for a shard of latents.
BLOCK = 64


@dataclass(frozen=True)
class FolderSource(Table):
    """A folder of captioned media or a list of them (`data.folders`); a part is a block of rows."""

    @cached_property
    def _surveyed(self) -> tuple[list[Row], Census]:
        survey = Survey(self.files[0], self.layout, Census(notes=[*self.notes]))
        return survey.rows(), survey.census

    @property
    def found(self) -> list[Row]:
        """All rows, in the order of the lists or of the names. UserError if there are none."""
        return self._surveyed[0]

    @property
    def census(self) -> Census:
        return self._surveyed[1]

    @property
    def mark(self) -> str:
        return marked(f"{row.place} {row.values} {_sizes(row)}" for row in self.found)

    def parts(self, epoch: int, rng: np.random.Generator | None) -> Sequence[list[int]]:
        order = shuffled(range(len(self.found)), rng)
        return [order[start : start + BLOCK] for start in range(0, len(order), BLOCK)]

    def rows(self, part: list[int]) -> list[Row]:
        return [self.found[number] for number in part]

    def stamp(self, part: list[int]) -> str:
        return "\n".join(f"{row.place} {contents(row)}" for row in self.rows(part))


def _sizes(row: Row) -> list[int]:
    media = [row.folder / v for k, v in row.values.items() if k.endswith("_bytes") and isinstance(v, str)]
    return [path.stat().st_size for path in media if is_file(path)]


def open_source(spec: str | Path | Mapping[str, Any], task: str) -> Source:
    """Open what a user names as a source of samples.

    Args:
        spec: A path, `hf:NAME[:SPLIT]`, the name of a plugin's source, or a mapping with `path` and optionally the keys
            of `Layout.of`, `config` and `split`, or the keys of the plugin; also as YAML in braces.
        task: What the samples are for.

    Raises:
        UserError: If there is nothing of the kind, or it holds something else than the task needs.
    """
    said = as_mapping(spec)
    path = str(said.get("path", "")).strip()
    added = plugin("sources", path)
    keys = KEYS if added is None else ("path", *list(signature(added).parameters)[1:])
    unknown = [key for key in said if key not in keys]
    if unknown or not path:
        raise UserError(f"a source is a path or has the keys {', '.join(keys)}; {said} has {unknown or 'no path'}")
    if added is not None:
        return added(task, **{key: value for key, value in said.items() if key != "path"})
    layout = Layout.of(task, **{key: said[key] for key in LAYOUT if said.get(key) is not None})
    config, split = said.get("config"), said.get("split")
    if path.startswith("hf:") or config or (split and not Path(path).is_file()):
        name, _, named = path.removeprefix("hf:").partition(":")
        if (saved := _saved(Path(name), split or named or None, layout)) is not None:
            return saved
        return HubSource(name, layout, split or named or "train", config and str(config))
    if split:
        raise UserError(f"{path} is one file and has no split {split!r}: leave split out")
    return _files(path, layout)


def as_mapping(spec: str | Path | Mapping[str, Any]) -> dict[str, Any]:
    """What a user says of a source as a mapping. UserError if it is no YAML."""
    try:
        given = from_yaml(str(spec)) if isinstance(spec, (str, Path)) and str(spec).startswith("{") else spec
    except ValueError as error:
        good = "{path: shards, type: image2image}"
        raise UserError(f"the source {spec!r} is not YAML: write for example {good}") from error
    return dict(given) if isinstance(given, Mapping) else {"path": str(given)}


def _saved(folder: Path, split: str | None, layout: Layout) -> Source | None:
    files = saved_files(folder, split) if folder.is_dir() else None
    if files is None:
        return None
    source = SavedSource(tuple(files), layout)
    source.parts(0, None)
    return source


def _files(path: str, layout: Layout) -> Source:
    """The source of a file, of the files of a pattern, or of those below a folder."""
    place = Path(path)
    if place.is_dir():
        shards = sorted(place.glob(f"*{MARK}"))
        if shards:
            return EncodedSource(tuple(shards), layout.task)
        if (saved := _saved(place, None, layout)) is not None:
            return saved
    found = [place] if place.is_file() else place.rglob("*") if place.is_dir() else place.parent.glob(place.name)
    seen = sorted(
        file for file in found
        if not any(is_private(part) for part in (file.relative_to(place) if place.is_dir() else Path(file.name)).parts)
    )  # fmt: skip
    files = [file for file in seen if file.name.lower().endswith((".parquet", *tars.SUFFIXES))]
    splits = tuple(_splits(place, seen) if place.is_dir() else ())
    loose = sum(is_media(file.name) for file in seen) if place.is_dir() else 0
    parquet = tuple(file for file in files if file.suffix.lower() == ".parquet")
    if parquet and len(parquet) < len(files):
        raise UserError(f"{path} holds Parquet files and tar files: name one kind, such as {path}/*.parquet")
    if parquet and not (place.is_dir() and all(file.name == METADATA for file in parquet)):
        source: Source = ParquetSource(parquet, layout, (*splits, *_beside(loose, "used where a row names them")))
    elif files and not parquet:
        source = TarSource(tuple(files), layout, (*splits, *_beside(loose, "left out")))
        if not source.rows(files[0]):
            _ = source.census  # says what all of them lack, if they do
    elif place.is_dir() or (place.is_file() and place.suffix.lower() in tables.SUFFIXES):
        source = FolderSource((place,), layout, splits)
    else:
        good = ", ".join(["a folder", "*.parquet, *.tar, *.jsonl, *.json or *.csv files", *plugins("sources")])
        raise UserError(f"there is no data at {path}: give {good}, or hf:NAME")
    source.parts(0, None)  # reads footers and captions: errors come now
    return source


def _beside(count: int, what: str) -> list[str]:
    return [f"{count} images and videos lie beside the tables: {what}"] if count else []


def _splits(place: Path, files: Sequence[Path]) -> list[str]:
    """A word on splits and configurations, where a folder has several."""
    found, card = dict[str, None](), place / "README.md"
    for file in files:
        *folders, name = file.relative_to(place).parts
        tables = [name] if name.lower().endswith((".parquet", ".jsonl", ".csv", *tars.SUFFIXES)) else []
        found |= {match[1]: None for part in (*folders, *tables) if (match := SPLIT.fullmatch(part.lower()))}
    configs = CONFIG.findall(card.read_text(encoding="utf-8", errors="replace")) if card.is_file() else []
    splits = sorted(found, key=lambda name: name != "train") if "train" in found else []
    kinds = {"config": configs, "split": splits}
    return [
        f"{kind}s: {', '.join(names)} are all used; one alone: {{path: {place}, {kind}: {names[0]}}}"
        for kind, names in kinds.items()
        if len(names) > 1
    ]
