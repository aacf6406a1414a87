"""The released dataset types: which columns a table has, and how one of its rows becomes a sample.

What a task is stays in `sequence.tasks`: a row is a text, media to read and something to make, whatever the task.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openlance.data.fit import Fit, medium
from openlance.data.source import BrokenRow, Row, Sample
from openlance.errors import UserError
from openlance.sequence.segment import Segments
from openlance.sequence.tasks import spec_of


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Names of columns. A column of media holds bytes or paths; "image" or "video" in its name says which."""

    makes: str  # "image", "video" or "text"
    text: str = "caption"
    inputs: tuple[str, ...] = ()
    output: str = ""  # picture or clip to make, or the text to answer
    system: str = ""  # may be absent
    any_input: bool = False  # one of the inputs is enough

    def needed(self) -> list[str]:
        """Columns that must be there; alternatives as "a or b"."""
        inputs = [" or ".join(self.inputs)] if self.any_input else list(self.inputs)
        return [self.text, *inputs, self.output]

    def missing(self, present: Iterable[str]) -> list[str]:
        there = set(present)
        return [name for name in self.needed() if not there & set(name.split(" or "))]


# Released code, but for the last: subject-driven clips are in the paper and have no released type.
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
    """How the rows of one source are read: task, dataset type, the source's own names of columns, where paths begin."""

    task: str
    type: str
    names: tuple[tuple[str, str], ...] = ()  # (ours, theirs)

    @classmethod
    def of(cls, task: str, type: str | None = None, names: Mapping[str, str] | None = None) -> Layout:
        """Of a task; UserError if the task or the type is unknown, or the two do not go together."""
        spec = spec_of(task)
        chosen = type or spec.columns
        if not isinstance(chosen, str) or chosen not in TYPES:
            raise UserError(f"the dataset type {chosen!r} is unknown: use one of {', '.join(TYPES)}")
        if TYPES[chosen].makes != spec.makes:
            raise UserError(
                f"the dataset type {chosen} holds {TYPES[chosen].makes}s to make but the task {task} makes "
                f"{spec.makes}: use {spec.columns}"
            )
        if not isinstance(names or {}, Mapping) or not all(isinstance(v, str) for v in (names or {}).values()):
            raise UserError(f"columns is {names!r}: write our names and yours, for example {{caption: title}}")
        return cls(task=task, type=chosen, names=tuple((names or {}).items()))

    @property
    def columns(self) -> Columns:
        return TYPES[self.type]

    def renamed(self, values: Mapping[str, Any], aliases: bool = False) -> dict[str, Any]:
        """The values under our names; `aliases` also takes the usual short ones."""
        found = {ALIASES.get(k, k) if aliases and ALIASES.get(k, k) not in values else k: v for k, v in values.items()}
        return found | {ours: values[theirs] for ours, theirs in self.names if theirs in values}

    def check(self, where: object, present: Iterable[str]) -> None:
        """UserError that says which type was expected, and the nearest, unless all its columns are present."""
        present = list(present)
        there = list(self.renamed(dict.fromkeys(present)))
        missing = self.columns.missing(there)
        if not missing:
            return
        close = {m: difflib.get_close_matches(m, there, n=1, cutoff=0.4) for m in missing}
        pairs = ", ".join(f"{m}: {found[0]}" for m, found in close.items() if found)
        other = next((name for name, c in TYPES.items() if not c.missing(there)), None)
        if other is not None:
            hint = f"these are the columns of {other}, so give it to a task of that type"
        elif pairs:
            hint = f"rename them, or name them with columns: {{{pairs}}}"
        else:
            hint = "rename them, or name them with columns: {ours: theirs}"
        raise UserError(
            f"{where} has the columns {', '.join(present) or 'none'}, but the dataset type {self.type} (task "
            f"{self.task}) also needs {', '.join(missing)}: {hint}"
        )

    def sample(self, row: Row, folder: Path, fit: Fit, aliases: bool = False) -> Sample:
        """One row as a sample. BrokenRow with the reason if it is of no use."""
        values = self.renamed(row.values, aliases)
        try:
            self.check("the row", values)
            return Sample(self._segments(values, folder, fit), row.place)
        except UserError as error:
            raise BrokenRow(row.place, error) from error

    def _segments(self, values: Mapping[str, Any], folder: Path, fit: Fit) -> Segments:
        c, spec = self.columns, spec_of(self.task)
        prompt = _text(values, c.text, may_be_empty=spec.makes == "text")
        inputs = [
            medium(one, name, folder, _kind(name))
            for name in c.inputs
            if values.get(name) is not None or not c.any_input
            for one in _several(values[name])
        ]
        if c.any_input and not inputs:
            raise UserError(f"{' and '.join(c.inputs)} are both empty: one of them must hold a picture or clip")
        if spec.makes == "text":
            said = values.get(c.system)
            said = said if isinstance(said, str) and said.strip() else None
            return fit.front.sample(spec, prompt, inputs, _text(values, c.output), said=said)
        made = medium(values[c.output], c.output, folder, spec.makes)
        return fit.front.sample(spec, prompt, inputs, made)


def _text(values: Mapping[str, Any], name: str, may_be_empty: bool = False) -> str:
    value = values.get(name)
    if value is None and may_be_empty:
        return ""
    if not isinstance(value, str):
        raise UserError(f"{name} is {'empty' if value is None else type(value).__name__}: expected a text")
    if not value.strip() and not may_be_empty:
        raise UserError(f"{name} is blank: expected a text")
    return value


def _several(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _kind(column: str) -> str:
    return "video" if "video" in column else "image"
