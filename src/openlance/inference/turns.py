"""What a turn of a conversation asks for, and what earlier turns become: one reading for `Dialogue`, the server's chat
and whoever else holds a conversation.

wanted("draw a red circle")                     # t2i: "a red circle"
wanted("film a red circle moving left")         # t2v: "a red circle moving left"
wanted("animate: it moves up", [image])         # i2v of the image: "it moves up"
wanted("what moves?", [video])                  # x2t_video, about the video
wanted("make it blue", [video])                 # video_edit of the video
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from openlance.data.front import Front
from openlance.errors import UserError
from openlance.inference.inputs import question_about
from openlance.media.clip import Clip
from openlance.sequence import tasks
from openlance.sequence.segment import Segments

KINDS = ("text", "image", "video")  # what a turn may make

# The rule for free words, in the order of `wanted`. What a pattern matches is the order, the rest what is made.
_IT = r"(?:it|this|that|(?:the|this)\s+(?:picture|image|photo|drawing))\b"
_MOVING = r"(?:a|an|the)\s+(?:short\s+)?(?:video|clip|film|movie|animation)\s+(?:of|from)\s+"
_TELL = r"(?:draw|generate|create|make|film)\s+(?:me\s+)?"
ANIMATE = re.compile(
    rf"(?:please\s+)?(?:animate\b(?:\s+{_IT})?|(?:{_TELL})?{_MOVING}{_IT})[\s:,]*(?:so\s+that\s+)?", re.IGNORECASE
)
FILM = re.compile(rf"(?:please\s+)?(?:(?:{_TELL})?(?={_MOVING})|film(?:\s*:\s*|\s+(?:me\s+)?))", re.IGNORECASE)
DRAW = re.compile(
    r"(?:please\s+)?(?:(?:draw|generate|create)\s+(?:me\s+)?|(?=(?:a|an|the)\s+(?:picture|image|photo)\s+of\b))",
    re.IGNORECASE,
)
QUESTION = re.compile(
    r"(?:what|which|who|whose|where|when|why|how|is|are|was|were|does|do|did|has|have|can|count|describe|locate|read)\b"
    r"|.*\?\s*$",
    re.IGNORECASE | re.DOTALL,
)


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What a turn asks for.

    Attributes:
        spec: The task; of a question `understand`, also where there is nothing to look at.
        text: Its words.
        clips: Its images and videos, in order.
    """

    spec: tasks.TaskSpec
    text: str
    clips: tuple[Clip, ...] = ()


def draw(text: str, kind: str = "image") -> Wanted:
    """Draw an image anew, or film a video."""
    return Wanted(spec=tasks.the_task(tasks.text_to_visual, kind), text=text)


def animate(text: str, clips: Sequence[Clip]) -> Wanted:
    """Make a video that begins with an image, and ends with a second one; UserError for anything else."""
    if any(clip.frames > 1 for clip in clips):
        raise UserError("a video moves already: say how to change it, film a new one, or draw an image to animate")
    if len(clips) > 2:
        raise UserError(f"a video begins with one image and ends with another, and {len(clips)} are given: give two")
    template = tasks.image_to_video if len(clips) == 1 else tasks.first_and_last
    return Wanted(spec=tasks.the_task(template, "video"), text=text, clips=tuple(clips))


def edit(text: str, clips: Sequence[Clip]) -> Wanted:
    """Change the newest video of these; without one all images, whose last gives the size."""
    sources = [clip for clip in clips if clip.frames > 1][-1:] or list(clips)
    kind = tasks.kind_of(sources[-1].frames)
    return Wanted(spec=tasks.the_task(tasks.edit, kind), text=text, clips=tuple(sources))


def ask(text: str, clips: Sequence[Clip]) -> Wanted:
    """Ask about all of these, or about nothing that can be seen."""
    spec = question_about(clips) if clips else tasks.the_task(tasks.understand, "image")
    return Wanted(spec=spec, text=text, clips=tuple(clips))


def wanted(
    text: str, table: Sequence[Clip] = (), *, shown: Sequence[Clip] = (), modalities: Collection[str] = KINDS
) -> Wanted:
    """Read free words. The first that fits counts:

    1. "animate ...", "a video of it ...": a video that begins with the image; with nothing there it is filmed.
    2. "film ...", "a video of ...": a new video; with an image shown beside the words it begins with that.
    3. "draw ...", "generate ...", "create ...", "a picture of ...": a new image, unless media are shown beside them.
    4. A leading question word or a question mark at the end: an answer about what is there.
    5. Anything else changes what is there, or draws where nothing is.

    An order whose result may not come is none: its words are read on.

    Args:
        text: What was said.
        table: What the conversation is about so far: what was made or shown last.
        shown: What was shown together with the words; takes the place of the table.
        modalities: What may come of it, of `KINDS`. Without "image" images are animated and words are filmed.

    Raises:
        UserError: If nothing that may come can be made of it.
    """
    text, there = text.strip(), tuple(shown or table)
    moving, may = any(clip.frames > 1 for clip in there), set(modalities)
    if may == {"text"}:
        return ask(text, there)
    still = "image" if "image" in may else "video"
    if "video" in may and (order := ANIMATE.match(text)):
        rest = _moves(text, order)
        return animate(rest, there) if there else draw(rest, "video")
    if "video" in may and not (shown and moving) and (order := FILM.match(text)):
        rest = _moves(text, order)
        return animate(rest, there) if shown else draw(rest, "video")
    if not shown and (order := DRAW.match(text)):
        return draw(text[order.end() :], still)
    if not there:
        return draw(text, still)
    if "text" in may and QUESTION.match(text):
        return ask(text, there)
    if moving and "video" not in may:
        said = 'modalities: a video is to be changed, which makes a video: ask for "video"'
        raise UserError(said, param="modalities")
    return edit(text, there) if moving or still == "image" else animate(text, there)


def _moves(text: str, order: re.Match[str]) -> str:
    """What a video is to show. UserError if there is an order alone."""
    if rest := text[order.end() :]:
        return rest
    raise UserError(
        f'{text!r} does not say what happens: write for example "{text.rstrip(" ,:")}: the circle moves up"'
    )


def ordered(text: str) -> str | None:
    """ "image" or "video" where words order one, whatever is there."""
    text = text.strip()
    return "video" if ANIMATE.match(text) or FILM.match(text) else "image" if DRAW.match(text) else None


# What is said and what was answered, as segments.


def plain(text: str, answer: str | None = None, *, said: str = "") -> Segments:
    """A turn of words alone, with its answer or to be answered; `said` is a system prompt."""
    return [*tasks.system(said), *([tasks.say(text)] if text else []), tasks.reply(answer)]


def filled(request: Segments, value: Any) -> Segments:
    """A request with what came of it in its target."""
    return [s.filled(value) if s.is_empty else s for s in request]


def newest(past: Sequence[Segments], history: int) -> list[Segments]:
    """The last turns that a model looks back at; those that only brought media along are none."""
    told = [turn for turn in past if turn]
    return told[max(len(told) - history, 0) :]


@dataclass(kw_only=True)
class Heard:
    """A turn of a conversation that somebody else kept: what was said and shown, and what was answered and made."""

    text: str = ""
    shown: list[Clip] = field(default_factory=list)
    answer: str | None = None
    made: list[Clip] = field(default_factory=list)


def table(turns: Sequence[Heard]) -> list[Clip]:
    """What turns leave on the table: what was made last, or shown after that."""
    return next((found for turn in reversed(turns) if (found := turn.made or turn.shown)), [])


def retold(front: Front, turns: Sequence[Heard]) -> list[Segments]:
    """The requests of such turns with their targets filled, as they would be if this model had answered them: each
    result is read as what its words ask for, given that it came."""
    found = list[Segments]()
    for n, turn in enumerate(turns):
        before = table(turns[:n])
        for clip in turn.made:
            kind = tasks.kind_of(clip.frames)
            try:
                meant = wanted(turn.text, before, shown=turn.shown, modalities=[kind])
            except UserError:  # not what this model would have made of it
                meant = draw(turn.text.strip(), kind)
            found.append(front.sample(meant.spec, meant.text, meant.clips, clip))
        if turn.answer is not None:
            meant = ask(turn.text.strip(), turn.shown or before)
            told = front.sample(meant.spec, meant.text, meant.clips, turn.answer) if meant.clips else None
            found.append(told or plain(meant.text, turn.answer))
    return found
