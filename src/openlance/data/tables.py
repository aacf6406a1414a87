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
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from openlance.config.values import lines_of, read_text
from openlance.data.names import TURNS, plain
from openlance.data.tabular import parquet
from openlance.errors import UserError
from openlance.media.files import IMAGE_SUFFIXES, VIDEO_SUFFIXES

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".txt", ".parquet")
DELIMITERS = ("\t", "|", ";", ",")
HELD = ("data", "annotations", "items", "samples", "rows", "records")  # keys under which a JSON file has its list
LONGEST = 1 << 27  # characters of one field of a CSV: a dialogue may be long
Rows = Iterator[tuple[str, dict[str, Any]]]
_ENDS = "|".join(re.escape(end) for end in sorted((*IMAGE_SUFFIXES, *VIDEO_SUFFIXES), key=len, reverse=True))
# The name of a file at the beginning of a line, which may have blanks or stand between quotes, and what ends it.
ENTRY = re.compile(rf'\s*("?)(.+?(?:{_ENDS}))\1(?:\s*$| *([\t|;,]) *| +)', re.IGNORECASE)
EXCEL = re.compile(r"sep=(.)\s*", re.IGNORECASE)  # a first line that tells Excel what stands between fields


def read_table(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """Read all rows of a file, each with its place. UserError if it is damaged, or no table."""
    suffix = path.suffix.lower()
    if suffix in (".jsonl", ".ndjson", ".json"):
        return _json(path, [_whole, _lines] if suffix == ".json" else [_lines, _whole])
    if suffix == ".parquet":
        with parquet(path) as table:
            return [(f"{path}, row {n}", values) for n, values in enumerate(table.read().to_pylist())]
    return list(_delimited(path))


def _json(path: Path, forms: Sequence[Callable[[Path, str], Rows]]) -> list[tuple[str, dict[str, Any]]]:
    """One value, or one to a line: people give either the name of the other."""
    text, errors = read_text(path), list[UserError]()
    for form in forms:
        try:
            return list(form(path, text))
        except UserError as error:
            errors.append(error)
    raise errors[0]


def _lines(path: Path, text: str) -> Rows:
    for number, line in enumerate(lines_of(text)):
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


def _whole(path: Path, text: str) -> Rows:
    try:
        held = json.loads(text, strict=False)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON ({error}): mend it, or leave it out") from error
    if isinstance(held, dict) and isinstance(held.get("images"), list) and isinstance(held.get("annotations"), list):
        held = _coco(held)
    if isinstance(held, dict):
        held = _inside(path, held)
    for number, values in enumerate(held if isinstance(held, list) else [held]):
        if not isinstance(values, dict):
            raise UserError(f"{path}, row {number}, is not an object: expected a list of objects, or one by file name")
        yield f"{path}, row {number}", values


def _inside(path: Path, held: dict[str, Any]) -> list[Any]:
    """The rows in an object: the list that it has, what it says of files by their names, or itself."""
    if (inner := next((held[key] for key in HELD if isinstance(held.get(key), list)), None)) is not None:
        return inner
    if any(map(names_a_file, held)) or (held and all(isinstance(value, Mapping) for value in held.values())):
        return [_keyed(key, value) for key, value in held.items()]
    lists = [
        key for key, value in held.items()
        if isinstance(value, list) and any(isinstance(one, Mapping) for one in value) and plain(key) not in TURNS
    ]  # fmt: skip
    if len(lists) > 1:
        raise UserError(f"{path} holds several lists ({', '.join(lists)}): save the one that is meant in a file")
    return held[lists[0]] if lists else [held]


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
    text = read_text(path)
    lines = [line for line in lines_of(text) if line.strip()]
    if not lines:
        return
    first, said = entry(lines[0]), EXCEL.fullmatch(lines[0])
    csv_like = path.suffix.lower() != ".txt" or (first is None and entry((*lines, "")[1]) is not None)  # with a head
    if first is None and not csv_like:
        raise UserError(
            f"{path} is no list of media: expected lines such as clip.mp4|what is seen, not {lines[0][:40]!r}"
        )
    if first is not None and not (csv_like and first[1]):  # the rest of each line is the text
        for number, line in enumerate(lines):
            name, _, words = entry(line) or (line.strip(), "", "")
            words = _unquoted(words)
            yield f"{path}, row {number}", {"file_name": name} | ({"caption": words} if words else {})
        return
    if said is not None:
        mark, text = said[1], text.partition("\n")[2]
    elif first is not None:
        mark = first[1]
    else:
        mark = "\t" if path.suffix.lower() == ".tsv" else next((d for d in DELIMITERS if d in lines[0]), ",")
    csv.field_size_limit(LONGEST)
    # Without a head all behind the name is the text, with the blanks behind its commas.
    table = csv.reader(io.StringIO(text, newline=""), delimiter=mark, skipinitialspace=first is None, strict=True)
    try:
        yield from _fields(path, [fields for fields in table if any(map(str.strip, fields))], mark, first is not None)
    except csv.Error as error:
        raise UserError(f"{path} is not CSV (line {table.line_num}: {error}): mend it, or leave it out") from error


def _fields(path: Path, table: list[list[str]], mark: str, headless: bool) -> Rows:
    """Rows of columns that the first of them names; without such a head, of a file and its text."""
    names = [] if headless else [name.strip() for name in table.pop(0)]
    if twice := [name for name in names if name and names.count(name) > 1]:
        raise UserError(f"{path} has two columns {twice[0]!r}: give each a name of its own")
    for number, fields in enumerate(table):
        place = f"{path}, row {number}"
        if headless:
            words = _unquoted(mark.join(fields[1:]).strip())
            yield place, {"file_name": fields[0].strip()} | ({"caption": words} if words else {})
            continue
        if any(map(str.strip, fields[len(names) :])):
            said = f"{place}, has {len(fields)} fields and the head {len(names)}"
            raise UserError(f"{said}: put texts that hold {mark!r} between double quotes")
        yield place, dict(zip_longest(names, fields[: len(names)]))


def _unquoted(words: str) -> str:
    """A text that stands between double quotes, as in a CSV, without these."""
    return words[1:-1].replace('""', '"') if len(words) > 1 and words[0] == words[-1] == '"' else words


def entry(line: str) -> tuple[str, str, str] | None:
    """The file that a line begins with, what ends its name, and the rest; None where it begins with none."""
    found = ENTRY.match(line)
    return None if found is None else (found[2].strip(), found[3] or "", line[found.end() :].strip())


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
