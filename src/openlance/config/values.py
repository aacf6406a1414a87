"""Plain data (YAML, the command line) to typed frozen dataclasses and back, with errors that name the field.

    build(Stage, {"lr": "1e-4"})          # YAML reads 1e-4 as a string; the type of the field decides
    override(stage, ["mixture.t2v=10"])    # dotted fields, values in YAML's notation
    differences(one, other)                # {"lr": (1e-4, 2.5e-5)}

Every error is a ValueError of one sentence: which field, what was expected, what is nearest.
"""

from __future__ import annotations

import difflib
import json
import math
import types
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from openlance.errors import UserError

T = TypeVar("T")

EXPECTED = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
WORDS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file of a checkpoint folder; UserError if it is missing or damaged."""
    if not path.is_file():
        raise UserError(f"{path.parent} lacks {path.name}: pass a complete checkpoint folder")
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON ({error}): restore the file") from None
    if not isinstance(found, dict):
        raise UserError(f"{path} must hold a JSON object, not a {type(found).__name__}: restore the file")
    return found


def known(kind: type[T], values: Mapping[str, Any]) -> dict[str, Any]:
    """The entries that are fields of a configuration, lists as tuples."""
    names = {f.name for f in fields(kind)}  # type: ignore[arg-type]
    return {k: tuple(v) if isinstance(v, list) else v for k, v in values.items() if k in names}


def build(cls: type[T], data: Any, where: str = "") -> T:
    """An instance of a dataclass from a mapping; `where` is the dotted path that errors begin with."""
    if not isinstance(data, Mapping):
        raise ValueError(f"{where or cls.__name__} is {data!r}: expected fields and values, such as {_example(cls)}")
    hints = get_type_hints(cls)
    for name in data:
        if name not in hints:
            raise ValueError(unknown("field", f"{where}.{name}" if where else str(name), hints, str(name)))
    return cls(
        **{name: convert(hints[name], value, f"{where}.{name}" if where else name) for name, value in data.items()}
    )


def unknown(what: str, name: str, known: Iterable[str], written: str | None = None) -> str:
    """The sentence for a name that is not known: the nearest one, or all."""
    known = [str(k) for k in known]
    close = difflib.get_close_matches(written or name, known, n=1, cutoff=0.5)
    return f"there is no {what} {name!r}: " + (f"use {close[0]!r}?" if close else f"use one of {', '.join(known)}")


def convert(kind: Any, value: Any, where: str) -> Any:
    """A value as the type `kind`: a plain type, T | None, tuple, dict[str, T] or a dataclass."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return None if value is None else convert(next(k for k in inner if k is not type(None)), value, where)
    if isinstance(kind, type) and is_dataclass(kind):
        return value if isinstance(value, kind) else build(kind, value, where)
    if origin is tuple:
        return _tuple(inner, value, where)
    if origin is dict:
        if not isinstance(value, Mapping):
            raise ValueError(f"{where} is {value!r}: expected names and values, such as {{name: 1}}")
        return {str(name): convert(inner[1], v, f"{where}.{name}") for name, v in value.items()}
    return _plain(kind, value, where)


def _tuple(inner: tuple[Any, ...], value: Any, where: str) -> tuple:
    if inner[-1] is Ellipsis and isinstance(value, (str, int, float)):
        value = [value]  # one entry may go without brackets
    if isinstance(value, (str, Mapping)) or not isinstance(value, Iterable):
        raise ValueError(f"{where} is {value!r}: expected a list, such as [{', '.join('..' for _ in inner)}]")
    values = list(value)
    if inner[-1] is Ellipsis:
        inner = inner[:1] * len(values)
    if len(values) != len(inner):
        raise ValueError(f"{where} has {len(values)} values: expected {len(inner)}")
    return tuple(convert(kind, v, f"{where}.{n}") for n, (kind, v) in enumerate(zip(inner, values)))


def _plain(kind: type, value: Any, where: str) -> Any:
    if kind is bool and isinstance(value, str):
        value = WORDS.get(value.lower(), value)
    elif kind in (int, float) and not isinstance(value, bool):
        value = _number(value, kind)
    if type(value) is kind and not (isinstance(value, float) and not math.isfinite(value)):
        return value
    raise ValueError(f"{where} is {value!r}: expected {EXPECTED[kind]}")


def _number(value: Any, kind: type) -> Any:
    """The number that a value means, or the value itself where it means none; a whole number may be written 2e4."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return value
    if not math.isfinite(number) or (kind is int and number != int(number)):
        return value
    return value if type(value) is kind else kind(number)


def _example(cls: type) -> str:
    return "{" + ", ".join(f"{f.name}: .." for f in fields(cls)[:2]) + "}"


def as_data(value: Any) -> Any:
    """The plain data that `build` reads: dataclasses become dicts, tuples lists."""
    if is_dataclass(value):
        return {f.name: as_data(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {name: as_data(v) for name, v in value.items()}
    return [as_data(v) for v in value] if isinstance(value, (tuple, list)) else value


def from_yaml(text: str) -> Any:
    """The plain data of a text in YAML. ValueError where it is none, which PyYAML tells in several ways: "2024-13-45"
    is a date without such a month, thousands of brackets are too deep."""
    import yaml

    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(str(error)) from error


def override(value: T, settings: Iterable[str]) -> T:
    """A copy of a dataclass with `a.b=c` applied in order: c is read as YAML, list entries go by number (`a.0=c`), and
    a dict takes new names. ValueError naming the setting if it does not fit."""
    data = as_data(value)
    for setting in settings:
        path, equals, text = setting.partition("=")
        if not equals or not path.strip():
            raise ValueError(f"{setting!r} is not a setting: write field=value, such as {_first_field(value)}=..")
        try:
            new = from_yaml(text)
        except ValueError as error:
            raise ValueError(f"the value of {path} cannot be read: {text!r} is not YAML") from error
        _put(data, path.strip().split("."), new, path.strip())
    return build(type(value), data)


def _first_field(value: Any) -> str:
    return fields(value)[0].name


def _put(data: Any, path: list[str], value: Any, whole: str) -> None:
    """Set a place in nested plain data; every name before the last must be there."""
    name, rest = path[0], path[1:]
    if isinstance(data, list):
        if not name.isdigit() or int(name) >= len(data):
            raise ValueError(f"there is no entry {name!r} in {whole!r}: its list has entries 0 to {len(data) - 1}")
        key: Any = int(name)
    elif isinstance(data, dict):
        key = name
        if rest and name not in data:
            raise ValueError(unknown("field", whole, data, name))
    else:
        raise ValueError(f"there is no field {whole!r}: what stands before {name!r} is the single value {data!r}")
    if rest:
        _put(data[key], rest, value, whole)
    else:
        data[key] = value


def differences(one: Any, other: Any, where: str = "") -> dict[str, tuple[Any, Any]]:
    """Dotted fields in which two values of one kind differ, with both values; a missing entry is None."""
    one, other = as_data(one), as_data(other)
    if not (isinstance(one, dict) and isinstance(other, dict)):
        return {} if one == other else {where: (one, other)}
    found: dict[str, tuple[Any, Any]] = {}
    for name in dict.fromkeys([*one, *other]):
        found |= differences(one.get(name), other.get(name), f"{where}.{name}" if where else name)
    return found
