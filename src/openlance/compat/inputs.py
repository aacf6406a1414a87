"""The release's own input files: every JSON form that its commands and its benchmarks read, as a list of entries.

    {"000000.png": "a prompt"}                                   config/examples of the text tasks
    {"0001": {"interleave_array": [...], "element_dtype_array": [...], "istarget_in_interleave": [...]}}
    {"index": 7, "prompt_en": ["a prompt"]}                      one object per line (VBench)
    {"index": 7, "data": ...}                                    one object per line; data as in the first two forms
    {"index": 7, "image_path": ..., "system_prompt": ..., "user_prompt": ..., "gt": ...}     questions, one per line

A benchmark's own lines (`{"prompt": ...}`) and plain lists of prompts are taken too; what has no index counts from 0.
One broken entry does not spoil the others: it says why, and the rest can run.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from openlance.compat.interleave import ARRAYS, elements
from openlance.config.values import lines_of, read_text
from openlance.errors import UserError

LONGEST_NAME = 200  # bytes of an output's name without its ending; file systems take 255
ENDINGS = (".mp4", ".jpg", ".png", ".jpeg", ".webp")
NAMES = ("index", "id", "key")  # of an entry in a line of its own
PROMPTS = ("prompt", "caption", "text")
EXAMPLE = "config/examples/{task}_example.json"  # of a task, in the release and, with media of ours, in this package
SHIPPED = Path(str(files("openlance"))) / "assets"


@dataclass(frozen=True)
class Entry:
    """One request. key: as the file says; name: stem of its outputs; data: see `interleave.elements`; error: why it
    cannot run, or nothing."""

    key: str
    name: str
    data: Any
    error: str = ""


def located(path: str | Path) -> Path:
    """A file of requests: the one that a path names or, where there is none, the shipped one of that name, such as
    `config/examples/t2v_example.json`."""
    shipped = SHIPPED / path
    return shipped if shipped.is_file() and not Path(path).exists() else Path(path)


def example_of(task: str) -> Path:
    """The example of a task. UserError if it has none."""
    path = located(EXAMPLE.format(task=task))
    if not path.is_file():
        raise UserError(f"there is no example for {task}: give a JSON or JSON-lines file of requests")
    return path


def read_entries(path: str | Path) -> list[Entry]:
    """The entries of a file in their order. UserError if it is missing, no JSON at all, or empty."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"there is no file {path}: give a JSON or JSON-lines file of requests")
    text = read_text(path, " JSON")
    entries, taken = list[Entry](), dict[str, str]()
    for key, data in _pairs(text, path):
        entry = _entry(key, data)
        if not entry.error and entry.name in taken:
            why = f"it writes to the same {entry.name} as {taken[entry.name]!r}: give it another key"
            entry = Entry(key, entry.name, None, why)
        taken.setdefault(entry.name, key)
        entries.append(entry)
    if not entries:
        raise UserError(f"{path} holds no requests: write at least one, such as {{'000000.png': 'a red circle'}}")
    return entries


class Table(dict):
    """A JSON object that remembers keys which stand in it again."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__()
        self.repeated = list[str]()
        for key, value in pairs:
            if key in self:
                self.repeated.append(key)
            self.setdefault(key, value)


@dataclass(frozen=True)
class Broken:
    """Stands where an entry could not be read."""

    why: str


def _pairs(text: str, path: Path) -> Iterator[tuple[str, Any]]:
    """(key, data) of every entry, whatever the form of the file."""
    try:
        whole = json.loads(text, object_pairs_hook=Table, strict=False)  # texts may hold tabs as they are
    except json.JSONDecodeError as error:
        yield from _lines(text, path, error)
        return
    except (ValueError, RecursionError) as error:  # a number without end, or lists within lists
        raise UserError(f"{path} is JSON that cannot be read ({error}): mend that place") from None
    if isinstance(whole, Mapping) and not _is_record(whole):
        for key, value in whole.items():
            # A value that is an object without the arrays is a record whose key stands outside.
            yield key, _data(value) if isinstance(value, Mapping) and _is_record(value) else value
        for key in getattr(whole, "repeated", ()):
            yield key, Broken("its key stands in the file already: give it another one")
        return
    for number, value in enumerate(whole if isinstance(whole, list) else [whole]):
        yield _record(value, number)


def _lines(text: str, path: Path, error: json.JSONDecodeError) -> Iterator[tuple[str, Any]]:
    """JSON lines. If already the first is none, the file is JSON with a mistake in it."""
    lines = [line for line in enumerate(lines_of(text), start=1) if line[1].strip()]
    for position, (number, line) in enumerate(lines):
        try:
            yield _record(json.loads(line, strict=False), position)
        except (ValueError, RecursionError) as wrong:
            if position == 0:
                raise UserError(f"{path} is not valid JSON ({error}): mend that place") from None
            yield str(position), Broken(f"line {number} is not valid JSON ({wrong})")


def _is_record(value: Mapping) -> bool:
    """Whether an object is one request rather than a table of them."""
    known = {*NAMES, "data", "prompt_en", "interleave_array", "image_path", "video_path", "user_prompt"}
    texts = all(isinstance(value[name], str) for name in PROMPTS if name in value)
    return bool(known & value.keys()) or (bool(set(PROMPTS) & value.keys()) and texts)


def _record(value: Any, number: int) -> tuple[str, Any]:
    """The key and data of a line, or of an element of a list."""
    if not isinstance(value, Mapping):
        return str(number), value
    key = next((value[name] for name in NAMES if name in value), number)
    return str(key), _data(value)


def _data(record: Mapping) -> Any:
    """What is asked for, as a prompt or as the three arrays."""
    if "data" in record:
        return record["data"]
    if "interleave_array" in record:
        return record
    if "prompt_en" in record:
        prompt = record["prompt_en"]
        first = prompt[0] if isinstance(prompt, list) and prompt else prompt
        return first if isinstance(first, str) and first else Broken("its prompt_en is no text")
    for kind in ("image", "video"):
        if f"{kind}_path" in record:
            said = [record.get("system_prompt", ""), record.get("user_prompt", ""), record.get("gt", "")]
            return dict(zip(ARRAYS, ([record[f"{kind}_path"], said], [kind, "text"], [0, 1])))
    for name in PROMPTS:
        if name in record:
            return record[name]
    return Broken(f"it has none of data, interleave_array, prompt_en, image_path, {', '.join(PROMPTS)}")


def _entry(key: str, data: Any) -> Entry:
    name = output_name(key)
    if not name or name.startswith(".") or any(mark in name for mark in ("/", "\\", "\0")):
        return Entry(key, name, None, "its key cannot name a file: use letters and digits")
    if isinstance(data, Broken):
        return Entry(key, name, None, data.why)
    try:
        length = len(name.encode())
        json.dumps(data, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return Entry(ascii(key), ascii(name), None, "it holds half a character: write it anew as UTF-8")
    if length > LONGEST_NAME:
        return Entry(key, name, None, f"its key is too long to name a file: use at most {LONGEST_NAME} letters")
    flat = [a for a in ARRAYS if isinstance(data, Mapping) and not isinstance(data.get(a, []), list)]
    if flat:
        return Entry(key, name, None, f"its {flat[0]} is no list")
    try:
        found = elements(data)
    except UserError as error:
        return Entry(key, name, None, str(error))
    empty = [e for e in found if e.kind == "text" and isinstance(e.value, str) and not e.target and not e.value.strip()]
    return Entry(key, name, data, "its prompt is empty" if empty else "")


def output_name(key: str) -> str:
    """The stem of an entry's outputs: numbers with six digits, whatever ending the key has (released code)."""
    for ending in ENDINGS:
        key = key.replace(ending, "")
    return f"{int(key):06d}" if key.isascii() and key.isdigit() and len(key) <= LONGEST_NAME else key
