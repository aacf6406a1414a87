"""The release's own inputs as segments: its interleaved JSON requests, and the answers of its training rows.

A request lists elements (texts, images, videos) and says of each whether it is a target. Two quirks of the released
code decide what becomes of the list, whatever the style of the prompts, and everything after this file is the same for
all requests:

- a text that is listed first moves behind everything else, so that the usual order is media, then text;
- only the text that is listed last counts as the prompt that guidance drops.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from openlance.config.model import Size
from openlance.config.sampling import RELEASED_RUN, PromptStyle
from openlance.config.values import brief
from openlance.data.front import NO_SIZE
from openlance.errors import UserError
from openlance.sequence import tasks
from openlance.sequence.segment import Kind, Role, Segment, Segments

# (element, "image" or "video") -> its `tasks.Views`
Views = Callable[[Any, str], Any]

MEDIA = ("image", "video")
ARRAYS = ("interleave_array", "element_dtype_array", "istarget_in_interleave")


@dataclass(frozen=True)
class Element:
    """One entry of a request: kind is "text", "image" or "video"; value a string (a list for an answer) or a medium."""

    kind: str
    value: Any
    target: bool = False


def elements(data: Any) -> list[Element]:
    """The entries of a request in the release's JSON form: a plain prompt, or the three parallel arrays.

    UserError if the arrays do not pair up or hold an unknown kind.
    """
    if isinstance(data, str):
        return [Element("text", data)]
    if not isinstance(data, Mapping) or any(name not in data for name in ARRAYS[:2]):
        raise UserError(f"a request is a prompt or an object with {', '.join(ARRAYS)}: it is {type(data).__name__}")
    values, kinds = data[ARRAYS[0]], data[ARRAYS[1]]
    targets = data.get(ARRAYS[2], [0] * len(values))
    if not len(values) == len(kinds) == len(targets) or not values:
        counts = f"{len(values)} elements, {len(kinds)} kinds and {len(targets)} marks"
        raise UserError(f"a request has {counts}: pair them up")
    unknown = [kind for kind in kinds if kind not in ("text", *MEDIA)]
    if unknown:
        raise UserError(f"an element of kind {unknown[0]!r} is unknown: use text, image or video")
    found = [Element(kind, value, bool(t)) for kind, value, t in zip(kinds, values, targets, strict=True)]
    for e in found:
        _check(e)
    return found


def _check(e: Element) -> None:
    """UserError unless a text is a string, or, as an answer, [system prompt, question, answer] too."""
    if e.kind != "text" or isinstance(e.value, str):
        return
    if not (e.target and isinstance(e.value, list)):
        raise UserError(f"a text is a string, not {brief(e.value)}: put it in quotes")
    if len(e.value) < 3 or not all(isinstance(text, str) for text in e.value[:3]):
        raise UserError(f"an answer is a string or [system prompt, question, answer], not {brief(e.value)}")


def request(
    task: str, data: Any, views: Views, *, size: Size | None = None, caption: int = 0, style: PromptStyle = RELEASED_RUN
) -> Segments:
    """Build one request of the release; a visual target is empty, an answer holds the listed text.

    Args:
        task: A key of `tasks.TASKS`.
        data: A prompt, or the three arrays (see `elements`).
        views: Reads a medium.
        size: Frames, height and width of the run, for targets whose size is not that of an input.
        caption: Which of the caption prompts stands in for a missing question (the release draws one).
        style: How it is worded.

    Raises:
        UserError: If the request cannot be met.
    """
    spec, listed = tasks.spec_of(task), elements(data)
    if spec.makes == "text":
        return _answer(spec, listed, views, caption, style)
    if not spec.reads and not any(e.kind == "text" for e in listed):
        raise UserError("the request has no text to draw from: add one to its elements")
    parts, media = _user(spec, listed, views, style)
    front = tasks.prior(spec, style, last=listed[-1].kind)
    return [*front, *spec.template("", parts, _size(spec, media, size), None)]


def _user(
    spec: tasks.TaskSpec, listed: Sequence[Element], views: Views, style: PromptStyle
) -> tuple[list[Any], list[Any]]:
    """The parts of the user turn, a leading text last, and the media among them."""
    texts = [e for e in listed if e.kind == "text"]
    read = [e for e in listed if e.kind == "text" or not e.target]
    parts = [_text(e.value, e is texts[-1], style) if e.kind == "text" else views(e.value, e.kind) for e in read]
    media = [part for part in parts if not isinstance(part, Segment)]
    if spec.reads and not media:
        raise UserError("the request lists no image or video to start from: add one to its elements")
    if parts and isinstance(parts[0], Segment):
        parts = parts[1:] + parts[:1]
    return parts, media


def _text(text: str, prompt: bool, style: PromptStyle) -> Segment:
    """A user's text; only the prompt is dropped by guidance."""
    text = text.strip() if style.strips else text
    return tasks.say(text) if prompt else Segment(Kind.TEXT, Role.REFERENCE, text)


def _size(spec: tasks.TaskSpec, media: list[Any], size: Size | None) -> Size:
    """Of the target: the input's, the input's height and width with the frames of the run, or the run's."""
    if spec.sized_by_source:
        frames, height, width = media[-1].kept.pixels.shape[:3]
        return (1 if spec.makes == "image" else frames, height, width)
    if size is None:
        raise UserError("the request does not say how large its target is: pass size=(frames, height, width)")
    if spec.keeps_size:
        return (size[0], *media[0].kept.pixels.shape[1:3])
    return (1, *size[1:]) if spec.makes == "image" else size


def _answer(spec: tasks.TaskSpec, listed: list[Element], views: Views, caption: int, style: PromptStyle) -> Segments:
    """Media, question and answer; texts that are no target are not read (released code)."""
    answers = [e.value for e in listed if e.kind == "text" and e.target]
    if not answers:
        raise UserError("the request has no text target: mark the text with 1 in istarget_in_interleave")
    media = [views(e.value, e.kind) for e in listed if e.kind in MEDIA]
    kind = listed[0].kind if listed[0].kind in MEDIA else spec.kind
    said, question, text = triple(answers[-1], style, kind, caption)
    return tasks.request(spec, question, media, NO_SIZE, text, style, said=said)


def triple(answer: Any, style: PromptStyle, kind: str, caption: int = 0) -> tuple[str, str, str]:
    """(system prompt, question, answer) of an answer in the release's form, for requests and training rows alike: a
    list of the three, or a text alone, which describes a medium of a kind."""
    if isinstance(answer, str):
        return style.captions[caption % len(style.captions)].format(m=kind), "", answer
    return answer[0], answer[1], answer[2]
