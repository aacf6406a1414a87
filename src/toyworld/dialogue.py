"""Dialogues of three turns about one picture: it is drawn, edited and asked about, or edited twice.

    dialogue = sample_dialogue(np.random.default_rng(0), form="draw_edit_ask")
    draw, edit, question = dialogue      # Draw, Edit, Question

Where a drawn picture puts things is up to the model, so an edit of it is judged against what is seen there:
`relocated(edit, seen)`. For that reason the edits here do not name places, and the questions not either; nor do these
ask for anything else that the prompt leaves to the model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np

from openlance.errors import UserError
from toyworld.edit_places import at, exactly
from toyworld.edits import Edit, edit_scene
from toyworld.facts import Background, Fact, Within
from toyworld.judge import nothing_else
from toyworld.questions import Question, ask, askable
from toyworld.scene import Object, Scene, pick, sample_scene
from toyworld.vocabulary import BACKGROUNDS, FILLS, SIZES
from toyworld.words import caption, said

EDITED = ("recolour", "refill", "reshape", "remove", "replace", "background")
ASKED = ("count", "color", "shape", "existence")
_DRAWN = ("attribute", "attribute", "position", "color")
_LOOKS = ("shape", "color", "fill", "size")
_ATTEMPTS = 200


@dataclass(frozen=True, kw_only=True)
class Draw:
    """The first turn: a prompt, what must hold in its picture, and one scene of which all of it is true."""

    prompt: str
    facts: tuple[Fact, ...]
    scene: Scene


Turn: TypeAlias = Draw | Edit | Question


def sample_dialogue(
    rng: np.random.Generator, *, form: str, placement: str | float = "free", height: int = 64, width: int = 64
) -> tuple[Turn, ...]:
    """Draw the turns of a dialogue, one of FORMS; nothing in it is held out. Each turn is about the scene that the one
    before leaves. Raises ValueError for another form."""
    if form not in FORMS:
        raise UserError(f"the form of dialogue {form!r} is unknown: use one of {', '.join(FORMS)}")
    for _ in range(_ATTEMPTS):
        scene = sample_scene(rng, placement=placement, category=pick(rng, _DRAWN), aspect=width / height)
        prompt, facts = caption(scene, rng)
        turns: list[Turn] = [Draw(prompt=prompt, facts=nothing_else(facts), scene=scene)]
        told = {fact for fact in facts if isinstance(fact, Background)}
        for draw in _NEXT[form]:
            turn = draw(scene, rng, height, width, Background(scene.background) in told)
            if turn is None:
                break
            turns.append(turn)
            if isinstance(turn, Edit):
                scene, told = turn.after, told | {fact for fact in turn.asked if isinstance(fact, Background)}
        else:
            return tuple(turns)
    raise AssertionError(f"no dialogue {form} found in {_ATTEMPTS} attempts")


def draw_edit(scene: Scene, rng: np.random.Generator) -> Edit | None:
    """Draw an edit of a scene that names no place; None where some attempts found none."""
    return next((edit for _ in range(12) if (edit := edit_scene(scene, rng, pick(rng, EDITED))) is not None), None)


def _edit(scene: Scene, rng: np.random.Generator, height: int, width: int, ground: bool) -> Edit | None:
    return draw_edit(scene, rng)


def _question(scene: Scene, rng: np.random.Generator, height: int, width: int, ground: bool) -> Question | None:
    """A question with the same answer in every picture of what was told; ground: whether the background was."""
    kinds = [kind for kind in askable(scene) if kind in ASKED]
    for _ in range(12 if kinds else 0):
        kind, seed = pick(rng, kinds), int(rng.integers(2**32))
        pictures = (scene, *_others(scene, ground))
        if not all(kind in askable(picture) for picture in pictures):
            continue
        asked = [ask(picture, np.random.default_rng(seed), kind, height=height, width=width) for picture in pictures]
        if len({(question.question, question.answer) for question in asked}) == 1:
            return asked[0]
    return None


def _others(scene: Scene, ground: bool) -> list[Scene]:
    """The scene with other looks where its captions leave them open: a fill or size that goes without saying, and the
    background where it was not told."""
    other = next(name for name in BACKGROUNDS if name != scene.background)
    return [
        replace(scene, background=color, objects=tuple(_open(o, fill, size) for o in scene.objects))
        for color in ((scene.background,) if ground else (scene.background, other))
        for fill in FILLS
        for size in SIZES
    ]


def _open(o: Object, fill: str, size: str) -> Object:
    told = said(o)
    return replace(o, fill=told.fill or fill, size=told.size or size)


_NEXT: dict[str, tuple[Callable[[Scene, np.random.Generator, int, int, bool], Turn | None], ...]] = {
    "draw_edit_ask": (_edit, _question), "draw_ask_edit": (_question, _edit), "draw_edit_edit": (_edit, _edit),
}  # fmt: skip
FORMS = tuple(_NEXT)


def relocated(edit: Edit, seen: Scene) -> Edit | None:
    """The edit with everything where and as it is seen in a picture; None where that shows other things.

    Only for edits of the kinds EDITED, which leave every object that they do not remove in its place.
    """
    objects = _matched(edit.before, seen)
    if objects is None:
        return None
    stay = len(edit.after.objects) == len(edit.before.objects)
    kept, after = list[Fact](), list[Object]()
    for i, (old, now) in enumerate(zip(edit.before.objects, objects, strict=True)):
        if not stay and old not in edit.after.objects:
            continue
        new = edit.after.objects[i] if stay else old
        after.append(_alike(now, old, new))
        if new == old:
            kept.append(at(now))
    ground = seen.background
    if edit.after.background != edit.before.background:
        ground = edit.after.background
    else:
        kept.append(Background(ground))
    asked = tuple(_moved(fact, edit.after, after) for fact in edit.asked)
    before = replace(edit.before, objects=tuple(objects), background=seen.background)
    scene = replace(edit.after, objects=tuple(after), background=ground)
    return replace(edit, before=before, after=scene, asked=asked, kept=tuple(kept))


def _matched(scene: Scene, seen: Scene) -> list[Object] | None:
    """For every object of the scene the one seen, each taken once."""
    left, found = list(seen.objects), list[Object]()
    for o in scene.objects:
        same = [other for other in left if (other.shape, other.color) == (o.shape, o.color)]
        if not same:
            return None
        found.append(max(same, key=lambda other: other.fill == o.fill))
        left.remove(found[-1])
    return None if left else found


def _alike(now: Object, old: Object, new: Object) -> Object:
    """What is seen now, changed as the old object is changed to the new one."""
    looks: dict[str, Any] = {name: getattr(new, name) for name in _LOOKS if getattr(new, name) != getattr(old, name)}
    return replace(now, **(looks | ({"r": new.r} if "size" in looks else {})))


def _moved(fact: Fact, scene: Scene, objects: list[Object]) -> Fact:
    """A fact about an object of a scene where it is now; a look that is left open stays open."""
    if not isinstance(fact, Within):
        return fact
    x0, y0, x1, y1 = fact.box
    for o, now in zip(scene.objects, objects, strict=True):
        if fact.thing.means(o) and x0 <= o.x <= x1 and y0 <= o.y <= y1:
            open_looks: dict[str, Any] = {name: None for name in _LOOKS if getattr(fact.thing, name) is None}
            return Within(replace(exactly(now), **open_looks), at(now).box)
    return fact
