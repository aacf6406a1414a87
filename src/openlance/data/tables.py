"""Lists of media and texts in files of their own: JSON, JSON lines, CSV and plain lines, as rows of columns.

read_table(Path("metadata.csv"))           # file_name,text
read_table(Path("llava.json"))             # [{"image": .., "conversations": [..]}, ..]
read_table(Path("meta_cap.json"))          # kohya: {"dog": {"caption": .., "tags": ..}}, or {"dog.png": "a dog"}
read_table(Path("list.txt"))               # dog.mp4|a dog, and the same with a tab or a comma
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from openlance.config.values import lines_of, read_text
from openlance.data.tabular import parquet
from openlance.errors import UserError
from openlance.media.files import IMAGE_SUFFIXES, VIDEO_SUFFIXES

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".txt", ".parquet")
DELIMITERS = ("\t", "|", ";", ",")
HELD = ("data", "annotations", "items", "samples", "rows", "records")  # keys under which a JSON file has its list
LONGEST = 1 << 27  # characters of one field of a CSV: a dialogue may be long
Rows = Iterator[tuple[str, dict[str, Any]]]


def read_table(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """Read all rows of a file, each with its place. UserError if it is damaged, or no table."""
    suffix = path.suffix.lower()
    if suffix in (".jsonl", ".ndjson"):
        return list(_lines(path))
    if suffix == ".json":
        return list(_json(path))
    if suffix == ".parquet":
        with parquet(path) as table:
            return [(f"{path}, row {n}", values) for n, values in enumerate(table.read().to_pylist())]
    return list(_delimited(path))


def _lines(path: Path) -> Rows:
    for number, line in enumerate(lines_of(read_text(path))):
        if not line.strip():
            continue
        place = f"{path}, row {number}"
        try:
            values = json.loads(line, strict=False)  # texts may hold tabs as they are
        except (ValueError, RecursionError) as error:
            raise UserError(f"{place}, is not JSON ({error}): write one object per line") from error
        if not isinstance(values, dict):
            raise UserError(f"{place}, is not an object: write {{'file_name': .., 'text': ..}}")
        yield place, values


def _json(path: Path) -> Rows:
    try:
        held = json.loads(read_text(path), strict=False)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON ({error}): mend it, or leave it out") from error
    if isinstance(held, dict) and isinstance(held.get("images"), list) and isinstance(held.get("annotations"), list):
        held = _coco(held)
    if isinstance(held, dict):
        inner = next((held[key] for key in HELD if isinstance(held.get(key), list)), None)
        held = [_keyed(key, value) for key, value in held.items()] if inner is None else inner
    for number, values in enumerate(held if isinstance(held, list) else [held]):
        if not isinstance(values, dict):
            raise UserError(f"{path}, row {number}, is not an object: expected a list of objects, or one by file name")
        yield f"{path}, row {number}", values


def _keyed(key: str, value: Any) -> dict[str, Any] | None:
    """What a file says of an image under its name: its caption, several, or kohya's caption and tags."""
    if isinstance(value, (str, list)):
        return {"file_name": key, "caption": value}
    if not isinstance(value, Mapping):
        return None
    texts = [value[name] for name in ("caption", "tags") if isinstance(value.get(name), str) and value[name].strip()]
    own = {name: held for name, held in value.items() if name not in ("caption", "tags")}
    return {"file_name": key} | own | ({"caption": ", ".join(texts)} if texts else {})  # joined as kohya does


def _coco(held: dict[str, Any]) -> list[Any]:
    """COCO's captions: images and what is said of them, by number."""
    said: dict[Any, list[str]] = {}
    for one in held["annotations"]:
        if isinstance(one, dict) and isinstance(one.get("caption"), str):
            said.setdefault(one.get("image_id"), []).append(one["caption"])
    return [
        {"file_name": one.get("file_name"), "caption": said.get(one.get("id"))} if isinstance(one, dict) else one
        for one in held["images"]
    ]


def _delimited(path: Path) -> Rows:
    lines = [line for line in lines_of(read_text(path)) if line.strip()]
    if not lines:
        return
    mark = headless(lines[0])
    if mark is not None:  # the rest of each line is the text
        for number, line in enumerate(lines):
            name, _, text = line.partition(mark)
            name, text = name.strip().strip('"'), text.strip()
            text = text[1:-1].replace('""', '"') if len(text) > 1 and text[0] == text[-1] == '"' else text
            yield f"{path}, row {number}", {"file_name": name} | ({"caption": text} if text else {})
        return
    if path.suffix.lower() == ".txt":
        raise UserError(
            f"{path} is no list of media: expected lines such as clip.mp4|what is seen, not {lines[0][:40]!r}"
        )
    mark = "\t" if path.suffix.lower() == ".tsv" else next((d for d in DELIMITERS if d in lines[0]), ",")
    csv.field_size_limit(LONGEST)
    text = read_text(path)
    try:
        for number, values in enumerate(csv.DictReader(io.StringIO(text, newline=""), delimiter=mark)):
            yield f"{path}, row {number}", {k.strip(): v for k, v in values.items() if k is not None}
    except csv.Error as error:
        raise UserError(f"{path} is not CSV ({error}): mend it, or leave it out") from error


def headless(line: str) -> str | None:
    """What ends the name of a file at the beginning of a line, where one stands there; None where none does."""
    return next((mark for mark in (*DELIMITERS, " ") if names_a_file(line.split(mark)[0])), None)


def names_a_file(text: str) -> bool:
    """Whether a text ends as a file of an image or video is named."""
    return text.strip().strip('"').lower().endswith(IMAGE_SUFFIXES + VIDEO_SUFFIXES)


def beside(names: Path, texts: Path) -> Rows:
    """Rows of two files of lines that belong together. UserError if they have not as many."""
    media, said = ([line.strip() for line in lines_of(read_text(p))] for p in (names, texts))
    for lines in (media, said):
        while lines and not lines[-1]:
            lines.pop()
    if len(media) != len(said):
        raise UserError(f"{names} has {len(media)} lines and {texts} {len(said)}: expected one text for each file")
    for number, (name, text) in enumerate(zip(media, said)):
        yield f"{names}, row {number}", {"file_name": name, "caption": text}
