"""The released dataset types: which columns a table has, and how one of its rows becomes a sample.

What a task is stays in `sequence.tasks`: a row is a text, media to read and something to make, whatever the task.
"""

from __future__ import annotations

import base64
import difflib
import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from openlance.config.values import MARK, brief, one_of, whole
from openlance.data.cache import Missing, named, resolved
from openlance.data.front import Fit
from openlance.data.names import CAPTION, plain, recognised
from openlance.data.source import BrokenRow, Row, Sample, digest
from openlance.data.turns import PLACE, turns_of
from openlance.errors import UserError
from openlance.media.clip import MODEL_FPS, Clip
from openlance.media.image import read_image
from openlance.media.inputs import as_clip, read_video, read_window, spare_seconds
from openlance.sequence.segment import Role, Segment, Segments
from openlance.sequence.tasks import reply, say, spec_of
from openlance.sequence.tasks import system as prompted


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
# A table of dialogues holds whole ones in a column of its own; a chain of edits is a list of images.
TURNS, CHAIN, HISTORY = "turns", "chain", "history"
CLIPS = ("window", "whole", "start")
Held = tuple[Any, str]  # one of the media, as a column holds it, and the column's name or "image" or "video"


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How the rows of one source are read.

    Args:
        task: What the samples are for.
        type: Dataset type, a key of `TYPES`.
        names: Pairs of our name of a column and the source's own.
        caption: The text of what has none of its own; for tasks that answer, the question.
        clips: What is taken of a video longer than the stage's: a "window" of it, at another place each time, its
            "start", or the "whole" of it, frames evenly spread.
        stride: Of windows: every n-th of the model's 12 frames a second.
        media: Folder in which the relative paths of lists begin, if it is not the list's own.
        least: Images with a shorter side of fewer pixels are left out of folders.
    """

    task: str
    type: str
    names: tuple[tuple[str, str], ...] = ()
    caption: str = ""
    clips: str = "whole"
    stride: int = 1
    least: int = 16
    media: str = ""

    @classmethod
    def of(
        cls, task: str, type: str | None = None, columns: Mapping[str, str] | None = None, *, caption: str = "",
        clips: str | None = None, stride: Any = 1, min_side: Any = 16, media: str = "",
    ) -> Layout:  # fmt: skip
        """Return the layout of a task; UserError if task or type is unknown, or the two do not go together."""
        spec, names = spec_of(task), columns or {}
        if spec.in_part:
            said = f"the task {task} is about regions, of which tables and folders say nothing"
            raise UserError(f"{said}: give a source of its own that makes segments with regions")
        chosen = str(type or spec.columns)
        if chosen not in TYPES:
            raise UserError(f"the dataset type {chosen!r} is unknown: use one of {', '.join(TYPES)}")
        makes = TYPES[chosen].makes
        if makes != spec.makes:
            said = f"the dataset type {chosen} holds {makes}s to make but the task {task} makes {spec.makes}"
            raise UserError(f"{said}: use {spec.columns}")
        if not isinstance(names, Mapping) or not all(isinstance(v, str) for v in names.values()):
            raise UserError(f"columns is {names!r}: write our names and yours, for example {{caption: title}}")
        c = TYPES[chosen]
        known = [name for name in (c.text, *c.inputs, c.output, c.system, TURNS, CHAIN, HISTORY) if name]
        for ours in names:
            one_of("what columns names", ours, known)
        if same := [v for v in names.values() if list(names.values()).count(v) > 1]:
            said = f"columns names {same[0]} twice ({', '.join(k for k, v in names.items() if v == same[0])})"
            raise UserError(f"{said}: what is read and what is made must be two columns")
        clips = clips or ("window" if makes == "video" else "whole")
        one_of("clips", clips, CLIPS)
        return cls(
            task=task, type=chosen, names=tuple(names.items()), caption=str(caption), clips=clips,
            stride=whole("stride", stride), least=whole("min_side", min_side, 0), media=str(media),
        )  # fmt: skip

    def rule(self, frames: int) -> str:
        """Say what is taken of videos, for a stage with videos of at most so many frames."""
        if self.clips == "whole":
            return f"the whole of each, at most {frames} frames evenly spread: what is longer runs faster"
        where = "at another place each time" if self.clips == "window" else "at its start"
        pace = f"{MODEL_FPS / self.stride:g} a second" + (f", {self.stride} times as fast" if self.stride > 1 else "")
        return f"a window of at most {frames} frames of each, {pace}, {where}"

    @property
    def columns(self) -> Columns:
        return TYPES[self.type]

    def named(self, present: Iterable[str]) -> dict[str, str]:
        """Return the names of a source by ours: those that were given, and what is recognized (`data.names`)."""
        return _named(self, tuple(present))

    def renamed(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return the values that have a role, under our names."""
        return {ours: values[theirs] for ours, theirs in self.named(values).items()}

    def missing(self, present: Iterable[str]) -> list[str]:
        """Return which of our columns a source of such names lacks."""
        return self._missing(self.named(present))

    def _missing(self, named: Mapping[str, str]) -> list[str]:
        c, there = self.columns, set(named)
        if TURNS in there:
            return []
        if CHAIN in there:
            there |= {*c.inputs, c.output}
        if self.caption or (c.text == "caption_q" and plain(named.get(c.output, "")) in CAPTION):
            there.add(c.text)  # without a question, a caption answers that a description was asked for
        return c.missing(there)

    def check(self, where: object, present: Iterable[str]) -> None:
        """Raise a UserError that says which type was expected, and the nearest, unless all its columns are present."""
        present = list(present)
        if lost := [theirs for _, theirs in self.names if theirs not in present]:
            held = ", ".join(present) or "none"
            raise UserError(f"columns names {lost[0]}, and {where} has {held}: name one of these")
        self.check_row(where, present)

    def check_row(self, where: object, present: Iterable[str]) -> None:
        """The same for columns that may have our names."""
        present = list(present)
        named = self.named(present)
        if not (missing := self._missing(named)):
            return
        free, pairs = [name for name in present if name not in named.values()], []
        for ours in missing:
            if near := _nearest(ours, free):
                pairs.append(f"{ours}: {near}")
                free.remove(near)
        hint = f"rename them, or name them with columns: {{{', '.join(pairs) or 'ours: theirs'}}}"
        others = [t for t in TYPES if t != self.type and not replace(self, type=t, caption="").missing(present)]
        if others:
            hint = f"these are the columns of {others[0]}, so give it to a task of that type"
        said = f"{where} has the columns {', '.join(present) or 'none'}, but the dataset type {self.type}"
        raise UserError(f"{said} (task {self.task}) also needs {', '.join(missing)}: {hint}")

    def sample(self, row: Row, fit: Fit, rng: np.random.Generator | None = None) -> Sample:
        """Decode a row, with the draws of `rng` where it leaves a choice; BrokenRow with the reason if it cannot be
        used."""
        try:
            return Sample(self._segments(row.values, row.folder, fit, rng or np.random.default_rng(0)), row.place)
        except UserError as error:
            raise BrokenRow(row.place, error) from error

    def _segments(self, raw: Mapping[str, Any], folder: Path, fit: Fit, rng: np.random.Generator) -> Segments:
        self.check_row("the row", raw)
        values, c, spec = self.renamed(raw), self.columns, spec_of(self.task)
        read = Reads(folder, fit.max_frames, self.clips, self.stride, Draw(float(rng.random())))
        if values.get(TURNS) is None and c.makes == "text":
            values = _as_dialogue(values, c)
        if values.get(TURNS) is not None:
            return self._dialogue(values, read, fit)
        if values.get(CHAIN) is not None and not any(values.get(name) is not None for name in c.inputs):
            values = _step(values, c, rng)
        answers = spec.makes == "text"
        prompt = _text(values, c.text, rng, may_be_empty=answers, usual=self.caption)
        columns = [name for name in c.inputs if values.get(name) is not None or not c.any_input]
        if c.any_input and not columns:
            raise UserError(f"{' and '.join(c.inputs)} are both empty: one of them must hold an image or video")
        inputs = [
            (one, name)
            for name in columns
            for one in (values[name] if isinstance(values[name], (list, tuple)) else [values[name]])
        ]
        if answers:
            said = values.get(c.system)
            said = said if isinstance(said, str) and said.strip() else None
            return self._worded(fit, read, prompt, inputs, _text(values, c.output, rng), said)
        made = values[c.output]
        if isinstance(made, (list, tuple)) and (len(made) == 1 or c.makes == "image"):
            if len(made) != 1:
                raise UserError(f"{c.output} holds {len(made)} images: expected the one that is made")
            [made] = made
        return self._worded(fit, read, prompt, inputs, (made, c.output), None)

    def _worded(
        self, fit: Fit, read: Reads, prompt: str, inputs: Sequence[Held], fill: Held | str, said: str | None
    ) -> Segments:
        """Build a sample of media in columns, from a cache where they are in it."""
        front, cache, origin = fit.front, fit.cache, ""
        media = [*inputs] if isinstance(fill, str) else [*inputs, fill]
        if cache is not None and (contents := read.contents(media)):
            origin = cache.origin(self.task, front.transform, *contents)
            with suppress(Missing):
                held = cache.shown(origin, len(inputs), fill if isinstance(fill, str) else None)
                return resolved(front.worded(self.task, prompt, held, said=said))
        read = read.together(media)
        shown = front.shown(self.task, [read(*one) for one in inputs], fill if isinstance(fill, str) else read(*fill))
        if cache is None or not origin or read.place.needed:
            return front.worded(self.task, prompt, shown, said=said)
        segments = front.worded(self.task, prompt, named(shown, origin), said=said)
        cache.remember(segments)
        return segments

    def _dialogue(self, values: Mapping[str, Any], read: Reads, fit: Fit) -> Segments:
        system, turns = turns_of(values[TURNS], _beside(values, self.columns))
        said = values.get(self.columns.system)
        said, found = system or (said if isinstance(said, str) and said.strip() else None), list[Segment]()
        for t in turns:
            if t.media:
                one = self._worded(fit, read, t.question, t.media, t.answer, said)
            else:  # words alone are answered without a system prompt, as in a conversation
                one = [*prompted(said or ""), *([say(t.question)] if t.question else []), reply(t.answer)]
            found += [s for s in one if not found or s.role is not Role.SYSTEM]
        return found


def _nearest(name: str, others: Iterable[str]) -> str:
    """The most similar of some names; nothing where two are as similar, which would be a guess."""
    like = sorted((difflib.SequenceMatcher(None, name, other).ratio(), other) for other in others)[-2:]
    sure = like and like[-1][0] >= 0.4 and (len(like) < 2 or like[0][0] < like[1][0])
    return like[-1][1] if sure else ""


@lru_cache(maxsize=256)
def _named(layout: Layout, present: tuple[str, ...]) -> dict[str, str]:
    c = layout.columns
    given = {ours: theirs for ours, theirs in layout.names if theirs in present}
    wanted = [name for name in (c.text, *c.inputs, c.output, c.system) if name and name not in given]
    pairs = bool(c.inputs) and not c.any_input
    wanted += [CHAIN] * (pairs and c.makes == "image") + [TURNS, HISTORY] * (c.makes == "text")
    return given | recognised([name for name in present if name not in given.values()], wanted)


def holds(value: Any) -> bool:
    """Whether a table holds something: no empty text or list, and no number that is none, as pandas writes for both."""
    if isinstance(value, (list, tuple)):
        return any(map(holds, value))
    return value is not None and value == value and not (isinstance(value, str) and not value.strip())


def _as_dialogue(values: dict[str, Any], c: Columns) -> dict[str, Any]:
    """A question and its answer as turns, where it says in words at which place media stand, or turns go before."""
    asked, before = values.get(c.text), values.get(HISTORY)
    if not before and not (isinstance(asked, str) and PLACE.search(asked)):
        return values
    return values | {TURNS: [*(before or ()), {"user": asked or "", "assistant": values.get(c.output)}]}


def told(value: Any) -> bool:
    """Whether a value of a table is a text, or has some, as `_text` takes them."""
    if isinstance(value, (Mapping, list, tuple)):
        some = value.values() if isinstance(value, Mapping) else value
        return any(told(one) for one in some if not isinstance(one, Mapping))
    return isinstance(value, str) and bool(value.strip())


def _beside(values: Mapping[str, Any], c: Columns) -> list[Held]:
    """What columns show beside a dialogue."""
    return [
        (one, "video" if "video" in name else "image")
        for name in c.inputs
        for one in (values[name] if isinstance(values.get(name), (list, tuple)) else [values.get(name)])
        if one is not None and one != ""
    ]


def media_of(values: Mapping[str, Any], c: Columns) -> list[Any]:
    """Return what a row of a list shows, that of a dialogue in its turns. UserError if it is no dialogue."""
    values = _as_dialogue(dict(values), c) if values.get(TURNS) is None and c.makes == "text" else values
    if values.get(TURNS) is not None:
        _, turns = turns_of(values[TURNS], _beside(values, c))
        return [held for turn in turns for held, _ in turn.media]
    return [values[name] for name in (*c.inputs, c.output) if name.endswith("_bytes") and holds(values.get(name))]


def _step(values: dict[str, Any], c: Columns, rng: np.random.Generator) -> dict[str, Any]:
    """One step of a chain of edits (BAGEL: `image_list`, `instruction_list`), any of them as likely."""
    images, orders = values[CHAIN], values.get(c.text)
    orders = orders if isinstance(orders, (list, tuple)) else [orders]
    if not isinstance(images, (list, tuple)) or len(images) != len(orders) + 1:
        count = len(images) if isinstance(images, (list, tuple)) else 1
        raise UserError(f"a chain of {count} images has {len(orders)} instructions: expected one less than images")
    at = int(rng.integers(len(orders)))
    return values | {c.inputs[0]: images[at], c.output: images[at + 1], c.text: orders[at]}


def _text(
    values: Mapping[str, Any], name: str, rng: np.random.Generator, may_be_empty: bool = False, usual: str = ""
) -> str:
    """A text of a column; of several, any."""
    value = values.get(name)
    if isinstance(value, str) and value.lstrip().startswith("{"):  # BAGEL: captions by their kind, as JSON
        with suppress(ValueError):
            value = [one for one in json.loads(value).values() if isinstance(one, str)]
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        whole = [one for one in value if isinstance(one, str) and one.strip()]
        value = whole[int(rng.integers(len(whole)))] if whole else None
    if usual and (value is None or (isinstance(value, str) and not value.strip())):
        return usual
    if value is None and may_be_empty:
        return ""
    if not isinstance(value, str):
        raise UserError(f"{name} is {'empty' if value is None else type(value).__name__}: expected a text")
    if not value.strip() and not may_be_empty:
        raise UserError(f"{name} is blank: expected a text")
    return value.removeprefix(MARK)


@dataclass
class Draw:
    """A number from 0 to 1 that knows whether anything depends on it."""

    value: float
    needed: bool = False

    def __float__(self) -> float:
        self.needed = True
        return self.value


class Reads(NamedTuple):
    """How the media of one row are read.

    Args:
        folder: Where a relative path begins.
        frames: The longest video.
        clips, stride: As of `Layout`.
        place: Where a window of a longer video lies, from its start (0) to its end (1): one for all of a row.
        spare: Seconds before the last place where it may begin, of the shortest video of a row.
    """

    folder: Path
    frames: int
    clips: str
    stride: int
    place: Draw
    spare: float = math.inf

    def together(self, media: Sequence[Held]) -> Reads:
        """So that windows of several videos begin at one time."""
        if self.clips != "window" or sum("video" in column for _, column in media) < 2:
            return self
        files = [self._found(value, column) for value, column in media if "video" in column]
        found = [spare_seconds(file, self.frames, self.stride) for file in files if isinstance(file, (Path, bytes))]
        return self._replace(spare=min(found, default=math.inf))

    def contents(self, media: Sequence[Held]) -> list[object]:
        """Tell what media of columns hold, and how they are read, by a hash; empty for what is in no file."""
        found: list[object] = [self[1:4]]
        for value, column in media:
            value = _plain(value)
            if isinstance(value, (bytes, bytearray, memoryview)):
                value = hashlib.blake2b(value, digest_size=16).hexdigest()
            elif isinstance(value, str) and not value.startswith("data:"):
                try:
                    value = digest(self.folder / value.removeprefix("file://"))
                except UserError:  # reading it says what is wrong
                    return []
            if not isinstance(value, str):
                return []
            found += ["video" if "video" in column else "image", value]
        return found

    def __call__(self, value: Any, column: str) -> Clip:
        """Read an image or video in any form in which a table holds one.

        Args:
            value: The bytes of a file, its path, Hugging Face's {"bytes", "path"}, a data URL, or what else `as_clip`
                takes.
            column: Its name, for errors; it says of "image" or "video".

        Raises:
            UserError: If it is empty, damaged or of another type.
        """
        value, kind = self._found(value, column), "video" if "video" in column else "image"
        if isinstance(value, (Path, bytes)):
            return self._file(value, kind, column if isinstance(value, bytes) else None)
        if value is None or isinstance(value, (str, dict, int, float)):
            what = f"of type {type(value).__name__}" if value not in (None, "") else "empty"
            raise UserError(f"{column} is {what}: expected the bytes or the path of a file of type {kind}")
        return as_clip(value, column)

    def _found(self, value: Any, column: str) -> Any:
        """The path or the bytes of a file where a value means one; else the value."""
        value = _plain(value)
        if isinstance(value, str) and value.startswith("data:"):
            value = _inline(value, column)
        if isinstance(value, (bytes, bytearray, memoryview)):
            return bytes(value)
        if not isinstance(value, str) or not value:
            return value
        if value.startswith(("http://", "https://")):
            raise UserError(f"{column} is {brief(value)}, on the network: download it and name the file")
        return self.folder / value.removeprefix("file://")

    def _file(self, file: Path | bytes, kind: str, name: str | None) -> Clip:
        if kind == "image":
            return read_image(file, name)
        if self.clips == "whole":
            return read_video(file, name)
        place = 0.0 if self.clips == "start" else self.place
        return read_window(file, name, frames=self.frames, place=place, stride=self.stride, spare=self.spare)


def _plain(value: Any) -> Any:
    """Take the file, or its path, out of Hugging Face's form of one."""
    if not isinstance(value, dict):
        return value
    return next((value[key] for key in ("bytes", "path", "url") if value.get(key) is not None), value)


def _inline(value: str, column: str) -> bytes:
    head, _, data = value.partition(",")
    try:
        if not head.endswith(";base64"):
            raise ValueError("it is not base64")
        return base64.b64decode(data, validate=True)
    except ValueError as error:
        raise UserError(f"{column} is a data URL that cannot be read ({error}): write base64, or a file") from error
