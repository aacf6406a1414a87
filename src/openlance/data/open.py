"""From what a user names to a source: a path, `hf:NAME`, a plugin, or a mapping with more to say.

open_source("shards/*.parquet", "image_edit")
open_source({"path": "photos", "columns": {"caption": "title"}}, "t2i")
open_source("hf:someone/pictures:train", "t2i")
open_source("latents", "t2i")                         # what `openlance encode` wrote
open_source({"path": "world", "kinds": {"text": 8}}, "t2i")     # a source of an installed package, with its keys
"""

from __future__ import annotations

from collections.abc import Mapping
from inspect import signature
from pathlib import Path
from typing import Any

from openlance.config.plugins import plugin, plugins
from openlance.config.values import from_yaml
from openlance.data.columns import Layout
from openlance.data.source import Source
from openlance.errors import UserError

KEYS = ("path", "type", "columns")
TAR_SUFFIXES = (".tar", ".tgz", ".tar.gz")


def open_source(spec: str | Path | Mapping[str, Any], task: str) -> Source:
    """The source that a spec names, for a task. Mapping: path, and optionally type (a dataset type) and columns (our
    name: theirs), or whatever keys a plugin's source knows. UserError if there is nothing of the kind, or it holds
    something else than the task needs."""
    said: dict[str, Any] = dict(spec) if isinstance(spec, Mapping) else _mapping(str(spec))
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
        from openlance.data.hub import HubSource

        name, _, split = path.removeprefix("hf:").partition(":")
        return HubSource(name, layout, split or "train")
    return _files(path, layout)


def _mapping(spec: str) -> dict[str, Any]:
    """A path, or a mapping in YAML's notation, as the command line has it."""
    if not spec.startswith("{"):
        return {"path": spec}
    try:
        return dict(from_yaml(spec))
    except ValueError as error:
        raise UserError(
            f"the source {spec!r} is not YAML: write for example {{path: shards, type: image2image}}"
        ) from error


def _files(path: str, layout: Layout) -> Source:
    from openlance.data.encoded import MARK, EncodedSource
    from openlance.data.folder import FolderSource
    from openlance.data.parquet import ParquetSource
    from openlance.data.webdataset import TarSource

    place = Path(path)
    if place.is_dir() and any(place.glob(f"*{MARK}")):
        return EncodedSource(tuple(sorted(place.glob(f"*{MARK}"))), layout.task)
    files = _found(place)
    tables = tuple(file for file in files if file.suffix == ".parquet")
    if tables:
        table = ParquetSource(tables, layout)
        assert table.groups is not None  # reads the footers: errors come now
        return table
    shards = tuple(file for file in files if file.name.endswith(TAR_SUFFIXES))
    if shards:
        return TarSource(shards, layout)
    if place.is_dir():
        folder = FolderSource(place, layout)
        assert folder.found
        return folder
    raise UserError(
        f"there is no data at {path}: give a folder, *.parquet or *.tar files, "
        f"{''.join(f'{name}, ' for name in plugins('sources'))}or hf:NAME"
    )


def _found(place: Path) -> list[Path]:
    """The file, the files of a pattern, or the files below a folder."""
    if place.is_file():
        return [place]
    if place.is_dir():
        return sorted(p for p in place.rglob("*") if p.name.endswith((".parquet", *TAR_SUFFIXES)))
    folder = place.parent
    return sorted(folder.glob(place.name)) if folder.is_dir() else []
