"""Dialogues of three turns with clips: a picture is drawn, set in motion and asked about, or a clip is filmed, edited
and asked about.

    dialogue = sample_clip_dialogue(np.random.default_rng(0), form="draw_animate_ask")
    draw, animate, question = dialogue   # Draw, Animate, ClipQuestion

Where things stand is up to the model, so that nothing here names or asks for a place; a clip is judged by the things in
it and how they move (`judge_clips`), and one that begins with a picture also by whether it does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np

from openlance.errors import UserError
from toyworld.clip_edits import ClipEdit, edit_clip
from toyworld.clip_questions import ClipQuestion, ask_clip, askable_clip
from toyworld.clips import ClipFact, Moves, caption_clip, clip_facts
from toyworld.dialogue import Draw, draw_edit
from toyworld.edits import Edit
from toyworld.facts import Background
from toyworld.judge import nothing_else
from toyworld.motion import RESIZING, STILL, ClipScene, clip_is_heldout, clip_is_valid, draw_motion, sample_clip
from toyworld.scene import pick
from toyworld.words import caption

EDITED = ("recolour", "reshape", "remove", "replace")  # what leaves places and motions as they are
ASKED = ("direction", "count")
_SCENES = ("color", "color", "attribute")
_ATTEMPTS = 400


@dataclass(frozen=True, kw_only=True)
class Animate:
    """A turn that sets the picture of the one before in motion: what is asked, and how things then move."""

    prompt: str
    moves: tuple[Moves, ...]
    clip: ClipScene


@dataclass(frozen=True, kw_only=True)
class Film:
    """A turn that makes a clip from words, and what must hold in it."""

    prompt: str
    facts: tuple[ClipFact, ...]
    clip: ClipScene


@dataclass(frozen=True, kw_only=True)
class Change:
    """A turn that edits the clip of the one before, and what must hold in the clip after."""

    instruction: str
    facts: tuple[ClipFact, ...]
    clip: ClipScene


ClipTurn: TypeAlias = Draw | Edit | Animate | Film | Change | ClipQuestion


def sample_clip_dialogue(
    rng: np.random.Generator, *, form: str, placement: str | float = "free", aspect: float = 1.0, frames: int = 9
) -> tuple[ClipTurn, ...]:
    """Draw the turns of a dialogue, one of FORMS; nothing in it is held out.

    Raises:
        UserError: For another form.
    """
    if form not in _FORMS:
        raise UserError(f"the form of dialogue {form!r} is unknown: use one of {', '.join(FORMS)}")
    for _ in range(_ATTEMPTS):
        clip = sample_clip(rng, placement=placement, category=pick(rng, _SCENES), aspect=aspect, frames=frames)
        unlike = len({(o.shape, o.color) for o in clip.scene.objects}) == len(clip.scene.objects)
        # A picture has sizes of its own, so that nothing in it can be told to grow into one.
        if not unlike or {m.kind for m in clip.motions} <= {STILL, *RESIZING}:
            continue
        turns = _FORMS[form](clip, rng)
        if turns is not None:
            return turns
    raise AssertionError(f"no dialogue {form} found in {_ATTEMPTS} attempts")


def _draw(clip: ClipScene, rng: np.random.Generator) -> Draw:
    prompt, facts = caption(clip.scene, rng)
    return Draw(prompt=prompt, facts=nothing_else(facts), scene=clip.scene)


def _animate(clip: ClipScene, rng: np.random.Generator) -> Animate:
    prompt, facts = caption_clip(clip, rng, "the")
    return Animate(prompt=prompt, moves=tuple(f for f in facts if isinstance(f, Moves)), clip=clip)


def _question(clip: ClipScene, rng: np.random.Generator) -> ClipQuestion | None:
    kinds = [kind for kind in askable_clip(clip) if kind in ASKED]
    return ask_clip(clip, rng, pick(rng, kinds)) if kinds else None


_Turns: TypeAlias = tuple[ClipTurn, ...] | None


def _draw_animate_ask(clip: ClipScene, rng: np.random.Generator) -> _Turns:
    question = _question(clip, rng)
    return None if question is None else (_draw(clip, rng), _animate(clip, rng), question)


def _draw_edit_animate(clip: ClipScene, rng: np.random.Generator) -> _Turns:
    draw = _draw(clip, rng)
    edit = draw_edit(clip.scene, rng)
    if edit is None or not edit.after.objects:
        return None
    motions = [draw_motion(rng, ("left", "right", "up", "down")) for _ in edit.after.objects]
    after = replace(clip, scene=edit.after, motions=tuple(motions))
    if not clip_is_valid(after) or clip_is_heldout(after):
        return None
    return draw, edit, _animate(after, rng)


def _film_edit_ask(clip: ClipScene, rng: np.random.Generator) -> _Turns:
    prompt, facts = caption_clip(clip, rng)
    told = any(isinstance(fact, Background) for fact in facts)
    edit = _change(clip, rng)
    if edit is None:
        return None
    question = _question(edit.after, rng)
    if question is None:
        return None
    change = Change(instruction=edit.instruction, facts=clip_facts(edit.after, told), clip=edit.after)
    return Film(prompt=prompt, facts=facts, clip=clip), change, question


def _change(clip: ClipScene, rng: np.random.Generator) -> ClipEdit | None:
    found = (edit_clip(clip, rng, pick(rng, EDITED)) for _ in range(12))
    return next((edit for edit in found if edit is not None), None)


_FORMS: dict[str, Callable[[ClipScene, np.random.Generator], _Turns]] = {
    "draw_animate_ask": _draw_animate_ask, "draw_edit_animate": _draw_edit_animate, "film_edit_ask": _film_edit_ask,
}  # fmt: skip
FORMS = tuple(_FORMS)
