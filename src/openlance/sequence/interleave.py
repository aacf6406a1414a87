"""The release's own inputs as segments: its interleaved JSON requests, and the rows of its training data.

A request lists elements (texts, pictures, clips) and says of each whether it is a target. What the release makes of the
list depends on a few habits per task; they are data here (`FORMS`), and everything after this file is the same for all.
Habits of the released code that are kept because they decide which tokens a checkpoint has seen:

- a text that is listed first moves behind everything else, so that the usual order is media, then text;
- only the text that is listed last counts as the prompt that guidance drops;
- edits and subject-driven tasks name the kind of the last listed element in their system prompt, even "text";
- training rotates the listed blocks by one whatever they are, and strips captions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from openlance.errors import UserError
from openlance.sequence import tasks
from openlance.sequence.segment import Kind, Role, Segment, Segments

Size = tuple[int, int, int]
# (element, "image" or "video") -> the clip as the ViT and as the VAE sees it; a view that is not needed may be None.
Views = Callable[[Any, str], tuple[Any, Any]]

MEDIA = ("image", "video")


@dataclass(frozen=True, kw_only=True)
class Form:
    """What the release makes of the elements of one task.

    Args:
        prior: field of `SystemPrompts` that holds the system prompt.
        makes: "image", "video" or "text".
        shown: how an input medium enters the sequence; empty if it does not (image-to-video fills the first frame).
        role: what an input medium is to the target.
        names_last: `{m}` in the system prompt is the kind of the last listed element, not that of the target.
        sized_by: where the size of a visual target comes from: "request", "source" (the last input medium), or
            "first frame" (its height and width, the frames of the request).
    """

    prior: str
    makes: str
    shown: tuple[Kind, ...] = ()
    role: Role = Role.REFERENCE
    names_last: bool = False
    sized_by: str = "request"


BOTH = (Kind.PATCHES, Kind.LATENTS)
_EDIT = Form(prior="edit", makes="image", shown=BOTH, role=Role.SOURCE, names_last=True, sized_by="source")
_SUBJECT = Form(prior="subject", makes="image", shown=BOTH, names_last=True)
_ANSWER = Form(prior="captions", makes="text", shown=(Kind.PATCHES,))

FORMS = {
    "t2i": Form(prior="image", makes="image"),
    "t2v": Form(prior="video", makes="video"),
    "i2v": Form(prior="video", makes="video", sized_by="first frame"),
    "image_edit": _EDIT,
    "video_edit": replace(_EDIT, makes="video"),
    "image_idip": _SUBJECT,
    "video_idip": replace(_SUBJECT, makes="video"),
    "x2t_image": _ANSWER,
    "x2t_video": _ANSWER,
}


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
    names = ("interleave_array", "element_dtype_array", "istarget_in_interleave")
    if not isinstance(data, Mapping) or any(name not in data for name in names[:2]):
        raise UserError(f"a request is a prompt or an object with {', '.join(names)}: it is {type(data).__name__}")
    values, kinds = data[names[0]], data[names[1]]
    targets = data.get(names[2], [0] * len(values))
    if not len(values) == len(kinds) == len(targets) or not values:
        raise UserError(
            f"a request has {len(values)} elements, {len(kinds)} kinds and {len(targets)} marks: pair them up"
        )
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
        raise UserError(f"a text is a string, not {_short(e.value)}: put it in quotes")
    if len(e.value) < 3 or not all(isinstance(text, str) for text in e.value[:3]):
        raise UserError(f"an answer is a string or [system prompt, question, answer], not {_short(e.value)}")


def _short(value: Any) -> str:
    said = repr(value)
    return said if len(said) <= 60 else f"{said[:57]}..."


def form_of(task: str) -> Form:
    if task not in FORMS:
        raise UserError(f"the task {task!r} is unknown: use one of {', '.join(FORMS)}")
    return FORMS[task]


def request(
    task: str,
    data: Any,
    views: Views,
    *,
    size: Size | None = None,
    caption: int = 0,
    prompts: tasks.SystemPrompts = tasks.RELEASED,
) -> Segments:
    """One request of the release as segments; a visual target is a hole, an answer holds the listed text.

    size: (frames, height, width) of the run, for targets whose size is not that of an input. caption: which of the
    caption prompts stands in for a missing question (the release draws one). UserError on a request that cannot be met.
    """
    form, listed = form_of(task), elements(data)
    if form.makes == "text":
        return _answer(form, listed, views, caption, prompts)
    if not form.shown and form.sized_by == "request" and not any(e.kind == "text" for e in listed):
        raise UserError("the request has no text to draw from: add one to its elements")
    user, last = _user(form, listed, views)
    word = listed[-1].kind if form.names_last else form.makes
    prior = tasks.system(getattr(prompts, form.prior).format(m=word))
    return [*prior, *_leading_text_last(user), _target(form, last, size)]


def _user(form: Form, listed: Sequence[Element], views: Views) -> tuple[list[Segments], Any]:
    """The blocks of the user turn as listed, and the VAE's view of the last input medium."""
    blocks, last = list[Segments](), None
    texts = [e for e in listed if e.kind == "text"]
    for e in listed:
        if e.kind == "text":
            blocks.append([_text(e.value, prompt=e is texts[-1])])
        elif not e.target:
            seen, last = views(e.value, e.kind)
            blocks.append(_show(form.shown, form.role, seen, last))
    return [block for block in blocks if block], last


def _text(text: str, prompt: bool) -> Segment:
    """A user's text; only the prompt is dropped by guidance."""
    return tasks.say(text) if prompt else Segment(Kind.TEXT, Role.REFERENCE, text)


def _show(shown: Sequence[Kind], role: Role, seen: Any, kept: Any) -> Segments:
    view = {Kind.PATCHES: seen, Kind.LATENTS: kept}
    return [Segment(kind, role, view[kind]) for kind in shown]


def _leading_text_last(blocks: list[Segments]) -> Segments:
    if blocks and blocks[0][0].kind is Kind.TEXT:
        blocks = blocks[1:] + blocks[:1]
    return [segment for block in blocks for segment in block]


def _target(form: Form, source: Any, size: Size | None) -> Segment:
    if form.sized_by == "request":
        if size is None:
            raise UserError("the request does not say how large its target is: pass size=(frames, height, width)")
        return tasks.make((1, *size[1:]) if form.makes == "image" else size)
    if source is None:
        raise UserError("the request lists no picture or clip to start from: add one to its elements")
    frames, height, width = source.pixels.shape[:3]
    if form.sized_by == "source":
        return tasks.make((1 if form.makes == "image" else frames, height, width))
    if size is None:
        raise UserError("the request does not say how many frames to make: pass size=(frames, height, width)")
    first = source if frames == 1 else source.with_pixels(source.pixels[:1])
    return tasks.make((size[0], height, width), given=first)


def _answer(form: Form, listed: list[Element], views: Views, caption: int, prompts: tasks.SystemPrompts) -> Segments:
    """Media, question and answer; texts that are no target are not read (released code)."""
    answers = [e.value for e in listed if e.kind == "text" and e.target]
    if not answers:
        raise UserError("the request has no text target: mark the text with 1 in istarget_in_interleave")
    media = [
        block for e in listed if e.kind in MEDIA for block in _show(form.shown, form.role, *views(e.value, e.kind))
    ]
    return _dialogue(media, answers[-1], listed[0].kind, caption, prompts)


def _dialogue(user: Segments, answer: Any, word: str, caption: int, prompts: tasks.SystemPrompts) -> Segments:
    """[system, question, answer], or an answer alone that gets a caption prompt for the kind `word`."""
    if isinstance(answer, str):
        answer = [prompts.captions[caption].format(m=word), "", answer]
    prior, question, text = answer[:3]
    asked = [tasks.say(question)] if question else []
    return [Segment(Kind.TEXT, Role.SYSTEM, prior), *user, *asked, tasks.reply(text)]


# How a training row relates conditions and target (released code, "sample_task"): the system prompt and the role.
RELATIONS = {"t2v": ("video", Role.REFERENCE), "idip": ("subject", Role.REFERENCE), "edit": ("edit", Role.SOURCE)}


def training_sample(
    listed: Segments, target: Segment, relation: str, *, prompts: tasks.SystemPrompts = tasks.RELEASED
) -> Segments:
    """A row of visual training data: condition blocks in listed order, and the filled visual target.

    The release rotates the kinds of the blocks by one and fills the visual ones in their own order, which is meant to
    bring a leading text to the end.
    """
    if relation not in RELATIONS:
        raise UserError(f"the relation {relation!r} is unknown: use one of {', '.join(RELATIONS)}")
    prior, _ = RELATIONS[relation]
    assert target.size is not None
    word = tasks.kind_of(target.size[0])
    visuals = iter([s for s in listed if s.kind is not Kind.TEXT])
    turned = [s if s.kind is Kind.TEXT else next(visuals) for s in listed[1:] + listed[:1]]
    return [*tasks.system(getattr(prompts, prior).format(m=word)), *turned, target]


def training_answer(
    user: Segments, answer: Any, word: str, *, caption: int = 0, prompts: tasks.SystemPrompts = tasks.RELEASED
) -> Segments:
    """A row of understanding data: the user's blocks in listed order, then question and answer.

    word: "video" if one of the media is one, else "image"; an answer without a question needs it.
    """
    return _dialogue(user, answer, word, caption, prompts)


def caption_text(text: str, prompt: bool = True) -> Segment:
    """A caption of a training row, stripped as the release strips it."""
    return _text(text.strip(), prompt)
