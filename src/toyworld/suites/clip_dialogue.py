"""Suite of the world benchmark: dialogues of three turns with clips (multi_turn_video).

A picture that the model drew is edited and set in motion, or set in motion and asked about; a clip that it made is
edited and asked about. A clip is judged by what is said to be in it and how that moves, wherever it is; one that a
picture begins also by whether it does. "turn_2" as for dialogues about pictures.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from openlance.eval.suite import Outcome, Suite, generator
from openlance.media.clip import Clip
from toyworld.clip_dialogue import FORMS, Animate, Change, ClipTurn, Film, sample_clip_dialogue
from toyworld.clip_questions import ClipQuestion, score_clip
from toyworld.clips import ClipFact
from toyworld.dialogue import Draw
from toyworld.edits import Edit
from toyworld.judge_clips import judge_clip, verdict
from toyworld.judge_edits import psnr
from toyworld.suites.clips import FIRST_FRAME_PSNR, strip
from toyworld.suites.dialogue import Act, Talk, converse, draw, edit

if TYPE_CHECKING:
    from toyworld.suites.asked import Asked

_DIALOGUE = 14  # number of the suite: it sets the requests


def clip_dialogues(form: str, bench: Asked) -> Iterator[tuple[ClipTurn, ...]]:
    """The dialogues of one form: always the same for a seed, and the first n the same whatever `samples` is."""
    rng, aspect = generator(_DIALOGUE, FORMS.index(form), bench), bench.width / bench.height
    for _ in range(bench.samples):
        yield sample_clip_dialogue(rng, form=form, placement=bench.placement, aspect=aspect, frames=bench.frames)


def _talk(model: Any, form: str, bench: Asked) -> Iterator[Outcome]:
    yield from converse(model, clip_dialogues(form, bench), (_DIALOGUE, FORMS.index(form)), _TURNS, bench)


def _show(talk: Talk, clip: Clip) -> None:
    talk.clip = clip
    talk.pictures.append(strip(clip.pixels))


def _animate(model: Any, talks: Sequence[Talk], n: int, bench: Asked, how: dict[str, Any]) -> None:
    first = [Clip(np.asarray(talk.pictures[-1])[None]) for talk in talks]
    prompts = [talk.turns[n].prompt for talk in talks]
    clips = model.animate(first, prompts, num_frames=bench.frames, **how)
    for talk, given, clip in zip(talks, first, clips, strict=True):
        turn = talk.turns[n]
        begins = psnr(clip.pixels[0], given.pixels[0]) >= FIRST_FRAME_PSNR
        talk.right.append(begins and all(judge_clip(clip.pixels, turn.moves).values()))
        talk.note(prompt=turn.prompt)
        _show(talk, clip)


def _film(model: Any, talks: Sequence[Talk], n: int, bench: Asked, how: dict[str, Any]) -> None:
    prompts = [talk.turns[n].prompt for talk in talks]
    size = {"num_frames": bench.frames, "height": bench.height, "width": bench.width}
    for talk, clip in zip(talks, model.generate_video(prompts, **size, **how), strict=True):
        talk.right.append(_holds(clip.pixels, talk.turns[n].facts))
        talk.note(prompt=talk.turns[n].prompt)
        _show(talk, clip)


def _change(model: Any, talks: Sequence[Talk], n: int, bench: Asked, how: dict[str, Any]) -> None:
    instructions = [talk.turns[n].instruction for talk in talks]
    clips = model.edit([talk.clip for talk in talks], instructions, **how)
    for talk, clip in zip(talks, clips, strict=True):
        talk.right.append(_holds(clip.pixels, talk.turns[n].facts))
        talk.note(instruction=talk.turns[n].instruction)
        _show(talk, clip)


def _holds(pixels: np.ndarray, facts: tuple[ClipFact, ...]) -> bool:
    found = verdict(pixels, facts)
    return found.objects and found.motion


def _ask(model: Any, talks: Sequence[Talk], n: int, bench: Asked, how: dict[str, Any]) -> None:
    answers = model.ask([talk.clip for talk in talks], [talk.turns[n].question for talk in talks])
    for talk, answer in zip(talks, answers, strict=True):
        turn = talk.turns[n]
        talk.right.append(score_clip(turn, answer))
        talk.note(question=turn.question, answer=answer, **{"right answer": turn.answer})


_TURNS: dict[type, Act] = {
    Draw: draw, Edit: edit, Animate: _animate, Film: _film, Change: _change, ClipQuestion: _ask,
}  # fmt: skip
MULTI_TURN_VIDEO = Suite(name="multi_turn_video", categories=FORMS, outcomes=_talk)
