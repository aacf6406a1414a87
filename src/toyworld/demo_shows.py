"""What `openlance demo` shows beside pictures and questions: clips, edits and subjects, each made from what the model
drew before. Only what the checkpoint was trained for is shown."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from openlance.media import Clip

# (pipeline, what it begins with, words, seed) -> a picture, a clip or an answer.
Call = Callable[[Any, Any, str, int], Any]


def whole(clip: Clip) -> list[Clip]:
    return [clip]


def ends(clip: Clip) -> list[Clip]:
    """The first and the last frame."""
    return [clip.with_pixels(clip.pixels[:1]), clip.with_pixels(clip.pixels[-1:])]


@dataclass(frozen=True, kw_only=True)
class Show:
    """One thing to make. uses: the words of an earlier picture or clip that it begins with; shows: what of that the
    model sees. expects: what the result must show, in words that the judge of pixels knows, or the right answer."""

    task: str
    text: str
    call: Call
    uses: str = ""
    shows: Callable[[Clip], list[Clip]] = whole
    expects: str = ""


@dataclass(frozen=True, kw_only=True)
class Shown:
    """What came of it. given: what it began with; holds: what the judge says, None where it says nothing."""

    show: Show
    given: list[Clip]
    result: Clip | str
    seconds: float
    holds: bool | None


def film(pipe: Any, _: Any, text: str, seed: int) -> Any:
    return pipe.generate_video(text, seed=seed)[0]


def animate(pipe: Any, given: Clip, text: str, seed: int) -> Any:
    return pipe.animate(given, text, seed=seed)[0]


def between(pipe: Any, given: Clip, text: str, seed: int) -> Any:
    """Again from the first and the last frame of a clip alone."""
    first, last = ends(given)
    return pipe.animate(first, text, last=last, num_frames=given.frames, seed=seed)[0]


def edit(pipe: Any, given: Clip, text: str, seed: int) -> Any:
    return pipe.edit(given, text, seed=seed)[0]


def place(pipe: Any, given: Clip, text: str, seed: int) -> Any:
    return pipe.subject(given, text, seed=seed)[0]


def place_in_clip(pipe: Any, given: Clip, text: str, seed: int) -> Any:
    return pipe.subject(given, text, num_frames=pipe.defaults.num_frames, seed=seed)[0]


def ask(pipe: Any, given: Clip, text: str, _: int) -> Any:
    return pipe.ask(given, text)


def checked(pipe: Any, _: Any, text: str, seed: int) -> Any:
    """Drawn until the model finds no fault, four times at most."""
    return pipe.generate(text, seed=seed, check=4)[0]


MOVING = "a red circle moves left"
SHOWS = [
    Show(task="t2i", text='the text "Q8"', call=checked),
    Show(task="t2i", text="a red ring and a blue cross", call=checked, expects="a red ring and a blue cross"),
    Show(task="t2v", text=MOVING, call=film, expects=MOVING),
    Show(task="t2v", text="a yellow star grows", call=film, expects="a yellow star grows"),
    Show(task="i2v", text="a red circle moves up", call=animate, uses="a red circle", expects="a red circle moves up"),
    Show(task="flf2v", text=MOVING, call=between, uses=MOVING, shows=ends, expects=MOVING),
    Show(
        task="image_edit", text="make the circle green", call=edit, uses="a red circle left of a blue square",
        expects="a green circle left of a blue square",
    ),
    Show(
        task="image_edit", text="remove the ring", call=edit, uses="a yellow triangle above a purple ring",
        expects="a yellow triangle",
    ),
    Show(
        task="image_edit", text="make the background white", call=edit, uses="three orange circles",
        expects="three orange circles on a white background",
    ),
    Show(task="video_edit", text="make the circle blue", call=edit, uses=MOVING, expects="a blue circle moves left"),
    Show(
        task="image_idip", text="the given object on a white background", call=place, uses="a striped green square",
        expects="a striped green square on a white background",
    ),
    Show(
        task="video_idip", text="the given object moves right", call=place_in_clip, uses="a red circle",
        expects="a red circle moves right",
    ),
    Show(task="x2t_video", text="which way does the circle move?", call=ask, uses=MOVING, expects="left"),
]  # fmt: skip


def perform(pipe: Any, table: dict[str, Clip], seed: int) -> list[Shown]:
    """Everything that the model was trained for. table: earlier pictures by their words; clips made here join it."""
    from tqdm import tqdm

    found, table = list[Shown](), dict(table)
    known = [show for show in SHOWS if pipe.defaults.knows(show.task)]
    for show in tqdm(known, unit="task", delay=2.0, disable=None, leave=False):
        if show.uses and show.uses not in table:
            continue
        given, start = table.get(show.uses), time.perf_counter()
        result = as_result(show.call(pipe, given, show.text, seed))
        seconds = time.perf_counter() - start
        if not given and not isinstance(result, str):
            table[show.text] = result
        holds = holds_in(result, show.expects)
        seen = show.shows(given) if given else []
        found.append(Shown(show=show, given=seen, result=result, seconds=seconds, holds=holds))
    return found


def as_result(made: Any) -> Clip | str:
    from openlance.media.inputs import as_clip

    return made if isinstance(made, str) else as_clip(made)


def holds_in(result: Clip | str, expects: str) -> bool | None:
    """Whether the answer is the right one, or a judge that sees only pixels finds what was expected, nothing else."""
    from toyworld.clips import parse_clip
    from toyworld.judge import is_right, nothing_else
    from toyworld.judge_clips import verdict
    from toyworld.questions import normalise
    from toyworld.words import parse

    if not expects:
        return None
    if isinstance(result, str):
        return normalise(result) == normalise(expects)
    if result.frames == 1:
        return is_right(result.pixels[0], nothing_else(parse(expects)))
    seen = verdict(result.pixels, parse_clip(expects))
    return seen.objects and seen.motion
