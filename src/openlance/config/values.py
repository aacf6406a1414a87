"""Plain data (YAML, the command line) to typed frozen dataclasses and back, errors that name the field; text files.

    build(Stage, {"lr": "1e-4"})          # YAML reads 1e-4 as a string; the type of the field decides
    override(stage, ["mixture.t2v=10"])    # dotted fields, values in YAML's notation
    differences(one, other)                # {"lr": (1e-4, 2.5e-5)}

Every error is a UserError of one sentence: which field, what was expected, what is nearest.
"""

from __future__ import annotations

import difflib
import json
import math
import operator
import os
import re
import types
from collections.abc import Callable, Iterable, Mapping, Set
from contextlib import suppress
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from openlance.errors import UserError

T = TypeVar("T")

EXPECTED = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
# Names of the types of number in which a model computes, and what torch calls them.
NUMBER_TYPES = {
    "float32": "float32", "fp32": "float32", "bfloat16": "bfloat16", "bf16": "bfloat16", "float16": "float16",
    "fp16": "float16",
}  # fmt: skip
LONGEST_SHOWN = 80  # characters of a value in an error
WORDS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}

# Texts come as the programs of the world write them: UTF-8, with or without a byte order mark, lines ended by LF, CRLF
# or CR and by nothing else. (`str.splitlines` also splits at U+2028, U+0085, form feeds and more, which texts hold.)
MARK = "\ufeff"
LINE_END = re.compile(r"\r\n|\r|\n")
OTHER_MARKS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}  # UTF-32 begins with the former, too


def read_json(path: Path) -> dict[str, Any]:
    """Read the object in a JSON file of a checkpoint folder.

    Raises:
        UserError: If it is missing, damaged, or no object.
    """
    if not path.is_file():
        raise UserError(f"{path.parent} lacks {path.name}: pass a complete checkpoint folder")
    text = read_text(path)
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON ({error}): restore the file") from None
    if not isinstance(found, dict):
        raise UserError(f"{path} must hold a JSON object, not a {type(found).__name__}: restore the file")
    return found


def read_text(path: str | Path, more: str = "") -> str:
    """Read the text of a file, without its byte order mark, every line end as a line feed.

    Args:
        path: A file.
        more: What to do beside saving it as UTF-8, for the error.

    Raises:
        UserError: If it cannot be read, or is no UTF-8.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}; check the path") from error
    return decoded(data, path, more)


def decoded(data: bytes, name: object, more: str = "") -> str:
    """Decode the text of bytes; arguments and errors as of `read_text`, `name` for the errors."""
    what = OTHER_MARKS.get(data[:2])
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        place = f"it is {what}" if what else f"byte {error.start}"
        raise UserError(f"{name} is not UTF-8 text ({place}): save it as UTF-8{more}") from None
    if "\0" in text:  # what UTF-16 without a mark looks like
        raise UserError(f"{name} is not UTF-8 text (it has zero bytes, as UTF-16 has): save it as UTF-8{more}")
    return LINE_END.sub("\n", text)


def lines_of(text: str) -> list[str]:
    """Split a text into lines without their ends, the empty one after the last end included. A byte order mark in front
    of a line is left by files that were put together, and dropped."""
    return [line.removeprefix(MARK) for line in LINE_END.split(text)]


def append_line(path: str | Path, line: str) -> None:
    """Add a line to a file, whole or not at all.

    Raises:
        UserError: If it cannot be written.
    """
    rest = memoryview(f"{line}\n".encode())
    try:
        with open(path, "ab", buffering=0) as file:
            before = file.seek(0, os.SEEK_END)
            try:
                while rest:  # a disk that fills up takes a part
                    rest = rest[file.write(rest) :]
            except OSError:
                with suppress(OSError):
                    file.truncate(before)
                raise
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}; free some space") from error


def brief(value: Any) -> str:
    """Show a value in an error: on one line, its end left out where it is long."""
    if isinstance(value, (str, bytes, bytearray)):
        value = value[:LONGEST_SHOWN]
    try:
        said = " ".join(repr(value).split())
    except ValueError:  # an integer of thousands of digits
        return f"of type {type(value).__name__} and too long to show"
    return said if len(said) <= LONGEST_SHOWN else f"{said[: LONGEST_SHOWN - 3]}..."


def whole(name: str, value: Any, least: int = 1, most: int | None = None) -> int:
    """Read a whole number of any type that means one.

    Raises:
        UserError: For anything else, or one out of range.
    """
    number: int = convert(int, value, name)
    within(name, number, least, most)
    return number


def within(name: str, value: float, least: float, most: float | None = None, hint: str = "") -> None:
    """Check a range; UserError, with a hint such as ": 1 is off", for a value outside of it."""
    wrong = f"at least {least}" if value < least else f"at most {most}" if most is not None and value > most else ""
    if wrong:
        raise UserError(f"{name} must be {wrong}, got {brief(value)}{hint}", param=name)


def one_of(name: str, value: str, choices: Iterable[str]) -> None:
    """Check a choice; UserError that lists them for anything else."""
    choices = tuple(choices)
    if value not in choices:
        raise UserError(f"{name} is {brief(value)}", expected=f"one of {', '.join(choices)}", param=name)


def flag(name: str, value: Any) -> bool:
    """Read true or false in any form that means one; UserError for anything else."""
    found: bool = convert(bool, value, name)
    return found


def number(name: str, value: Any) -> float:
    """Read a finite number of any type that means one; UserError for anything else."""
    found: float = convert(float, value, name)
    return found


def path_of(name: str, value: Any) -> Path:
    """Read a path as text or in any form of a path; UserError for anything else, or what can be none."""
    if not isinstance(value, (str, os.PathLike)) or not os.fspath(value) or "\0" in str(value):
        raise UserError(f"{name} is {brief(value)}", expected="the path of a folder or file", param=name)
    try:
        path = Path(value)
        path.exists()
    except (OSError, TypeError) as error:  # a name too long, or of bytes
        why = getattr(error, "strerror", None) or error
        raise UserError(f"{name} is {brief(value)}, which is no path ({why}): expected one of a folder") from None
    return path


def no_others(given: Iterable[str], known: Iterable[str]) -> None:
    """Check names of options; UserError that lists the known ones for any other."""
    names = list(known)
    for name in sorted(set(given) - set(names)):
        raise UserError(f"there is no option {name!r}: use one of {', '.join(names)}", param=name)


hints: Callable[[Any], dict[str, Any]] = cache(get_type_hints)  # types of the fields of a dataclass, by name


def checked(value: Any) -> None:
    """Convert the fields of a frozen dataclass of plain values to their types; UserError for one that means none."""
    for name, kind in hints(value.__class__).items():
        object.__setattr__(value, name, convert(kind, getattr(value, name), name))


def known(kind: type[T], values: Mapping[str, Any]) -> dict[str, Any]:
    """Pick the entries that are fields of a configuration, lists as tuples."""
    return {k: tuple(v) if isinstance(v, list) else v for k, v in values.items() if k in hints(kind)}


def build(cls: type[T], data: Any, where: str = "") -> T:
    """Make an instance of a dataclass from a mapping; `where` is the dotted path that errors begin with."""
    kinds, prefix = hints(cls), f"{where}." if where else ""
    if not isinstance(data, Mapping):
        example = ", ".join(f"{name}: .." for name in [*kinds][:2])
        raise UserError(f"{where or cls.__name__} is {brief(data)}: expected fields and values, such as {{{example}}}")
    for name in data:
        if name not in kinds:
            raise UserError(unknown("field", f"{prefix}{name}", kinds, str(name)), param=f"{prefix}{name}")
    return cls(**{name: convert(kinds[name], value, prefix + name) for name, value in data.items()})


def unknown(what: str, name: str, known: Iterable[str], written: str | None = None) -> str:
    """Word the sentence for a name that is not known: the nearest one, or all."""
    known = [str(k) for k in known]
    close = difflib.get_close_matches(written or name, known, n=1, cutoff=0.5)
    return f"there is no {what} {name!r}: " + (f"use {close[0]!r}?" if close else f"use one of {', '.join(known)}")


def convert(kind: Any, value: Any, where: str) -> Any:
    """Convert a value to a type.

    Args:
        kind: A plain type, T | None, tuple, dict[str, T], a dataclass, or Any, whose reader checks it.
        value: Anything. numpy's and torch's numbers mean numbers, and "2e4" means 20000 also where it is whole.
        where: The name that errors begin with.

    Raises:
        UserError: If it does not mean one.
    """
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return None if value is None else convert(next(k for k in inner if k is not type(None)), value, where)
    if kind is Any:
        return value
    if isinstance(kind, type) and is_dataclass(kind):
        return value if isinstance(value, kind) else build(kind, value, where)
    if origin is tuple:
        return _tuple(inner, value, where)
    if origin is dict:
        if not isinstance(value, Mapping):
            raise UserError(f"{where} is {brief(value)}", expected="names and values, such as {name: 1}", param=where)
        return {str(name): convert(inner[1], v, f"{where}.{name}") for name, v in value.items()}
    return _plain(kind, value, where)


def _tuple(inner: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    if inner[-1] is Ellipsis and isinstance(value, (str, int, float)):
        value = [value]  # one entry may go without brackets
    unordered = isinstance(value, (str, bytes, bytearray, Set, Mapping)) or not hasattr(value, "__len__")
    if unordered or getattr(value, "ndim", 1) == 0:  # an array of one number says that it can be iterated over
        like = ", ".join(".." for _ in inner)
        raise UserError(f"{where} is {brief(value)}", expected=f"a list, such as [{like}]", param=where)
    values = list(value)
    if inner[-1] is Ellipsis:
        inner = inner[:1] * len(values)
    if len(values) != len(inner):
        raise UserError(f"{where} has {len(values)} values", expected=str(len(inner)), param=where)
    return tuple(convert(kind, v, f"{where}.{n}") for n, (kind, v) in enumerate(zip(inner, values)))


def plain(value: Any) -> Any:
    """Turn a single number of numpy or torch into one of Python; anything else stays as it is."""
    return value.item() if getattr(value, "ndim", None) == 0 and hasattr(value, "item") else value


def _plain(kind: type, value: Any, where: str) -> Any:
    given, value = value, plain(value)
    if kind is bool and isinstance(value, str):
        value = WORDS.get(value.lower(), value)
    elif kind in (int, float) and not isinstance(value, bool):
        value = _number(value, kind)
    if type(value) is kind and not (isinstance(value, float) and not math.isfinite(value)):
        return value
    if kind is str and isinstance(value, str):
        return str(value)
    raise UserError(f"{where} is {brief(given)}", expected=EXPECTED[kind], param=where)


def _number(value: Any, kind: type) -> Any:
    """The number that a value means, or the value itself where it means none; a whole number may be written 2e4."""
    if hasattr(value, "__len__") and not isinstance(value, str):
        return value  # bytes, and arrays of one number
    if kind is int:
        with suppress(TypeError, ValueError):  # exact, where there are more digits than a float has
            return int(value) if isinstance(value, str) else operator.index(value)
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return value
    if not math.isfinite(number) or (kind is int and number != int(number)):
        return value
    return value if type(value) is kind else kind(number)


def as_data(value: Any) -> Any:
    """Make the plain data that `build` reads: dataclasses become dicts, tuples lists."""
    if is_dataclass(value):
        return {f.name: as_data(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {name: as_data(v) for name, v in value.items()}
    return [as_data(v) for v in value] if isinstance(value, (tuple, list)) else value


def from_yaml(text: str) -> Any:
    """Read the plain data of a text in YAML.

    Raises:
        UserError: Where it is none, which PyYAML tells in several ways: "2024-13-45" is a date without such a month,
            thousands of brackets are too deep.
    """
    import yaml

    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        place = getattr(error, "problem_mark", None)
        where = f"line {place.line + 1}, column {place.column + 1}" if place else error
        raise UserError(f"not YAML ({where}): write `field: value` lines") from error


def read_yaml(path: Path) -> dict[str, Any]:
    """Read the fields of a YAML or JSON file. UserError if it cannot be read, or holds none."""
    text = read_text(path)
    try:
        found = from_yaml(text)
    except UserError as error:
        raise UserError(f"{path} is {error}") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} holds {type(found).__name__} and no fields: write `field: value` lines")
    return found


def override(value: T, settings: Iterable[str]) -> T:
    """Copy a dataclass with `a.b=c` applied in order.

    Args:
        value: The dataclass.
        settings: c is read as YAML, list entries go by number (`a.0=c`), and a dict takes new names.

    Raises:
        UserError: If a setting does not fit; it is named.
    """
    data = as_data(value)
    for setting in settings:
        path, equals, text = setting.partition("=")
        if not equals or not path.strip():
            raise UserError(f"{setting!r} is not a setting: write field=value, such as {next(iter(data))}=..")
        try:
            new = from_yaml(text)
        except UserError as error:
            raise UserError(f"the value of {path} cannot be read: {text!r} is not YAML") from error
        _put(data, path.strip().split("."), new, path.strip())
    return build(type(value), data)


def _put(data: Any, path: list[str], value: Any, whole: str) -> None:
    """Set a place in nested plain data; every name before the last must be there."""
    name, rest = path[0], path[1:]
    if isinstance(data, list):
        if not name.isdigit() or int(name) >= len(data):
            raise UserError(f"there is no entry {name!r} in {whole!r}: its list has entries 0 to {len(data) - 1}")
        key: Any = int(name)
    elif isinstance(data, dict):
        key = name
        if rest and name not in data:
            raise UserError(unknown("field", whole, data, name))
    else:
        raise UserError(f"there is no field {whole!r}: what stands before {name!r} is the single value {brief(data)}")
    if rest:
        _put(data[key], rest, value, whole)
    else:
        data[key] = value


def differences(one: Any, other: Any, where: str = "") -> dict[str, tuple[Any, Any]]:
    """List the dotted fields in which two values of one kind differ, with both values; a missing entry is None."""
    one, other = as_data(one), as_data(other)
    if not (isinstance(one, dict) and isinstance(other, dict)):
        return {} if one == other else {where: (one, other)}
    found: dict[str, tuple[Any, Any]] = {}
    for name in dict.fromkeys([*one, *other]):
        found |= differences(one.get(name), other.get(name), f"{where}.{name}" if where else name)
    return found
