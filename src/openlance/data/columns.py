"""The released dataset types: which columns a table has, and how one of its rows becomes a sample.

What a task is stays in `sequence.tasks`: a row is a text, media to read and something to make, whatever the task.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openlance.data.front import Fit
from openlance.data.source import BrokenRow, Row, Sample
from openlance.errors import UserError
from openlance.media.clip import Clip
from openlance.media.image import read_image
from openlance.media.inputs import as_clip, read_video
from openlance.sequence.segment import Segments
from openlance.sequence.tasks import spec_of


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Names of the columns of a dataset type. One of media holds bytes or paths; its name says of "image" or "video".

    Args:
        makes: "image", "video" or "text".
        text: The prompt or question.
        inputs: Media that are read.
        output: The image or video to make, or the text to answer.
        system: A system prompt, which may be absent.
        any_input: One of the inputs is enough.
    """

    makes: str
    text: str = "caption"
    inputs: tuple[str, ...] = ()
    output: str = ""
    system: str = ""
    any_input: bool = False

    def missing(self, present: Iterable[str]) -> list[str]:
        """Return the columns that are needed and not present; alternatives as "a or b"."""
        there, inputs = set(present), [" or ".join(self.inputs)] if self.any_input else self.inputs
        return [name for name in (self.text, *inputs, self.output) if not there & set(name.split(" or "))]


# Released code, but for the last: subject-driven videos are in the paper and have no released type.
TYPES = {
    "text2image_general": Columns(makes="image", output="image_bytes"),
    "text2video_general": Columns(makes="video", output="video_bytes"),
    "image2image": Columns(makes="image", inputs=("input_image_bytes",), output="output_image_bytes"),
    "video2video": Columns(makes="video", inputs=("input_video_bytes",), output="output_video_bytes"),
    "x2t_general": Columns(
        makes="text", text="caption_q", inputs=("image_bytes", "video_bytes"), output="caption_a", system="caption_i",
        any_input=True,
    ),
    "image2video": Columns(makes="video", inputs=("input_image_bytes",), output="output_video_bytes"),
}  # fmt: skip
# What folders, WebDataset shards and Hugging Face datasets call these columns.
ALIASES = {
    "text": "caption", "prompt": "caption", "instruction": "caption", "image": "image_bytes", "video": "video_bytes",
    "input_image": "input_image_bytes", "output_image": "output_image_bytes", "input_video": "input_video_bytes",
    "output_video": "output_video_bytes", "question": "caption_q", "answer": "caption_a", "system": "caption_i",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How the rows of one source are read.

    Args:
        task: What the samples are for.
        type: Dataset type, a key of `TYPES`.
        names: Pairs of our name of a column and the source's own.
    """

    task: str
    type: str
    names: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(cls, task: str, type: str | None = None, names: Mapping[str, str] | None = None) -> Layout:
        """Return the layout of a task; UserError if task or type is unknown, or the two do not go together."""
        spec, names = spec_of(task), names or {}
        chosen = str(type or spec.columns)
        if chosen not in TYPES:
            raise UserError(f"the dataset type {chosen!r} is unknown: use one of {', '.join(TYPES)}")
        makes = TYPES[chosen].makes
        if makes != spec.makes:
            said = f"the dataset type {chosen} holds {makes}s to make but the task {task} makes {spec.makes}"
            raise UserError(f"{said}: use {spec.columns}")
        if not isinstance(names, Mapping) or not all(isinstance(v, str) for v in names.values()):
            raise UserError(f"columns is {names!r}: write our names and yours, for example {{caption: title}}")
        return cls(task=task, type=chosen, names=tuple(names.items()))

    @property
    def columns(self) -> Columns:
        return TYPES[self.type]

    def renamed(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return the values under our names, which the usual short ones stand for as well."""
        found = {ALIASES.get(k, k) if ALIASES.get(k, k) not in values else k: v for k, v in values.items()}
        return found | {ours: values[theirs] for ours, theirs in self.names if theirs in values}

    def check(self, where: object, present: Iterable[str]) -> None:
        """Raise a UserError that says which type was expected, and the nearest, unless all its columns are present."""
        present = list(present)
        there = list(self.renamed(dict.fromkeys(present)))
        missing = self.columns.missing(there)
        if not missing:
            return
        close = {m: difflib.get_close_matches(m, there, n=1, cutoff=0.4) for m in missing}
        pairs = ", ".join(f"{m}: {found[0]}" for m, found in close.items() if found) or "ours: theirs"
        other = next((name for name, c in TYPES.items() if not c.missing(there)), None)
        named = f"rename them, or name them with columns: {{{pairs}}}"
        hint = named if other is None else f"these are the columns of {other}, so give it to a task of that type"
        said = f"{where} has the columns {', '.join(present) or 'none'}, but the dataset type {self.type}"
        raise UserError(f"{said} (task {self.task}) also needs {', '.join(missing)}: {hint}")

    def sample(self, row: Row, fit: Fit) -> Sample:
        """Decode a row; BrokenRow with the reason if it cannot be used."""
        try:
            return Sample(self._segments(self.renamed(row.values), row.folder, fit), row.place)
        except UserError as error:
            raise BrokenRow(row.place, error) from error

    def _segments(self, values: dict[str, Any], folder: Path, fit: Fit) -> Segments:
        self.check("the row", values)
        c, spec = self.columns, spec_of(self.task)
        answers = spec.makes == "text"
        prompt = _text(values, c.text, may_be_empty=answers)
        columns = [name for name in c.inputs if values.get(name) is not None or not c.any_input]
        if c.any_input and not columns:
            raise UserError(f"{' and '.join(c.inputs)} are both empty: one of them must hold an image or video")
        inputs = [
            read_value(one, name, folder, "video" if "video" in name else "image")
            for name in columns
            for one in (values[name] if isinstance(values[name], (list, tuple)) else [values[name]])
        ]
        if answers:
            said = values.get(c.system)
            said = said if isinstance(said, str) and said.strip() else None
            return fit.front.sample(spec, prompt, inputs, _text(values, c.output), said=said)
        return fit.front.sample(spec, prompt, inputs, read_value(values[c.output], c.output, folder, spec.makes))


def _text(values: Mapping[str, Any], name: str, may_be_empty: bool = False) -> str:
    value = values.get(name)
    if value is None and may_be_empty:
        return ""
    if not isinstance(value, str):
        raise UserError(f"{name} is {'empty' if value is None else type(value).__name__}: expected a text")
    if not value.strip() and not may_be_empty:
        raise UserError(f"{name} is blank: expected a text")
    return value


def read_value(value: Any, column: str, folder: Path, kind: str) -> Clip:
    """Read an image or video in any form in which a table holds one.

    Args:
        value: The bytes of a file, its path, Hugging Face's {"bytes", "path"}, or what else `as_clip` takes.
        column: Its name, for errors.
        folder: Where a relative path begins.
        kind: "image" or "video", what a file is expected to be.

    Raises:
        UserError: If it is empty, damaged or of another type.
    """
    if isinstance(value, dict):
        value = next((value[key] for key in ("bytes", "path") if value.get(key) is not None), value)
    read = read_video if kind == "video" else read_image
    if isinstance(value, (bytes, bytearray, memoryview)):
        return read(bytes(value), column)
    if isinstance(value, str) and value:
        return read(folder / value)
    if value is None or isinstance(value, (str, dict, int, float)):
        what = f"of type {type(value).__name__}" if value not in (None, "") else "empty"
        raise UserError(f"{column} is {what}: expected the bytes or the path of a file of type {kind}")
    return as_clip(value, column)
