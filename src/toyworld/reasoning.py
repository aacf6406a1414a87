"""Questions of two steps: a thing is named by where it lies as seen from another, and then asked about or compared.

    question = sample_reasoning(np.random.default_rng(0), category="size")
    question.question, question.answer   # "is the thing left of the red circle larger than the star?", "yes"

A picture has such a question where exactly one thing lies that way and no diagonal leaves another open.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from openlance.errors import UserError
from toyworld.facts import Thing
from toyworld.questions import Question, clear_names
from toyworld.scene import Object, Scene, pick, relation_between, sample_scene
from toyworld.words import noun_phrase

REASONING = "reasoning"
STEPS = ("size", "color", "shape", "same", "count")
LARGER = 1.15  # ratio of two radii from which on one is said to be larger; sizes jitter by less
_SIDES = {
    "left": ("left of", "to the left of"), "right": ("right of", "to the right of"), "above": ("above", "over"),
    "below": ("below", "under"),
}  # fmt: skip
_THING = ("the thing", "the object", "the shape")
_ABOUT = ("mixed", "mixed", "attribute", "position")
_ATTEMPTS = 5000


class _Found(NamedTuple):
    """A thing that is told by its place alone: the only one on that side of another, which has a name."""

    thing: Object
    side: str
    other: Object
    name: Thing

    def said(self, rng: np.random.Generator) -> str:
        return f"{pick(rng, _THING)} {pick(rng, _SIDES[self.side])} {noun_phrase(self.name, article='the', rng=rng)}"


def _sides(scene: Scene, other: Object) -> dict[str, list[Object]] | None:
    """What lies on each side of a thing; None where a diagonal leaves one open."""
    found: dict[str, list[Object]] = {side: [] for side in _SIDES}
    for o in scene.objects:
        if o is other:
            continue
        side = relation_between(o, other, scene.aspect)
        if side is None:
            return None
        found[side].append(o)
    return found


def _told(scene: Scene) -> Iterator[_Found]:
    for other, name in clear_names(scene):
        for side, things in (_sides(scene, other) or {}).items():
            if len(things) == 1:
                yield _Found(things[0], side, other, name)


_Said = tuple[str, str]


def _names_of(scene: Scene, o: Object) -> list[Thing]:
    return [name for other, name in clear_names(scene) if other is o]


def _compared(scene: Scene, good: Callable[[Object, Object], bool]) -> Iterator[tuple[_Found, Object]]:
    """Things that are told, each with another that has a name, if a comparison of the two makes sense."""
    for found in _told(scene):
        yield from ((found, o) for o in scene.objects if o is not found.thing and good(found.thing, o) and
                    _names_of(scene, o))  # fmt: skip


def _unlike(a: Object, b: Object) -> bool:
    return max(a.r, b.r) / min(a.r, b.r) >= LARGER


def _ask_size(scene: Scene, rng: np.random.Generator) -> _Said | None:
    pairs = list(_compared(scene, _unlike))
    if not pairs:
        return None
    found, o = pick(rng, pairs)
    word, larger = pick(rng, (("larger", True), ("bigger", True), ("smaller", False)))
    named = noun_phrase(pick(rng, _names_of(scene, o)), article="the", rng=rng)
    return f"is {found.said(rng)} {word} than {named}?", "yes" if (found.thing.r > o.r) == larger else "no"


def _ask_same(what: str, answer: str) -> Callable[[Scene, np.random.Generator], _Said | None]:
    def ask(scene: Scene, rng: np.random.Generator) -> _Said | None:
        some = list(_compared(scene, lambda a, b: (getattr(a, what) == getattr(b, what)) == (answer == "yes")))
        if not some:
            return None
        found, o = pick(rng, some)
        named = noun_phrase(pick(rng, _names_of(scene, o)), article="the", rng=rng)
        return f"does {found.said(rng)} have the same {what} as {named}?", answer

    return ask


def _ask_look(what: str) -> Callable[[Scene, np.random.Generator], _Said | None]:
    def ask(scene: Scene, rng: np.random.Generator) -> _Said | None:
        told = list(_told(scene))
        if not told:
            return None
        found = pick(rng, told)
        return f"what {what} is {found.said(rng)}?", str(getattr(found.thing, what))

    return ask


def _ask_count(scene: Scene, rng: np.random.Generator) -> _Said | None:
    known = [(name, sides) for other, name in clear_names(scene) if (sides := _sides(scene, other)) is not None]
    if not known or len(scene.objects) < 2:
        return None
    name, sides = pick(rng, known)
    side = pick(rng, tuple(sides)) if rng.random() < 0.4 else pick(rng, [s for s, things in sides.items() if things])
    noun, named = pick(rng, ("things", "objects", "shapes")), noun_phrase(name, article="the", rng=rng)
    return f"how many {noun} are {pick(rng, _SIDES[side])} {named}?", str(len(sides[side]))


_ASKERS: dict[str, tuple[Callable[[Scene, np.random.Generator], _Said | None], ...]] = {
    "size": (_ask_size,),
    "color": (_ask_look("color"),),
    "shape": (_ask_look("shape"),),
    "same": tuple(_ask_same(what, answer) for what in ("color", "shape") for answer in ("yes", "no")),
    "count": (_ask_count,),
}


def sample_reasoning(
    rng: np.random.Generator, *, category: str | None = None, placement: str | float = "free", heldout: bool = False,
    height: int = 64, width: int = 64,
) -> Question:  # fmt: skip
    """Draw a question of two steps and a scene for it (its `.scene`); arguments as of `sample_scene`.

    Raises:
        UserError: For another category.
    """
    category = category or pick(rng, STEPS)
    if category not in STEPS:
        raise UserError(f"no question of two steps of category {category!r}: use one of {', '.join(STEPS)}")
    # Chosen before the scene: few have two things of one color, and "yes" is to be right as often as "no".
    ask = pick(rng, _ASKERS[category]) if len(_ASKERS[category]) > 1 else _ASKERS[category][0]
    for _ in range(_ATTEMPTS):
        about, aspect = pick(rng, _ABOUT), width / height
        scene = sample_scene(rng, placement=placement, category=about, heldout=heldout, aspect=aspect)
        # Three things in most pictures: with two, the one that is told is always the other one.
        if len(scene.objects) < 2 or (len(scene.objects) == 2 and rng.random() < 0.85):
            continue
        said = ask(scene, rng)
        if said is None:
            continue
        question, answer = said
        if rng.random() < 0.15:
            question = question[0].upper() + question[1:]
        return Question(category=REASONING, question=question, answer=answer, scene=scene, height=height, width=width)
    raise AssertionError(f"no question of two steps {category} found in {_ATTEMPTS} scenes")
