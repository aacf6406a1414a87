"""Subject-driven pictures: "the given object left of a blue square", with a picture of the object beside the prompt.

    subject = sample_subject(np.random.default_rng(0), n=1)
    subject.references                   # scenes with one object each, on their own backgrounds
    subject.prompt, subject.facts        # what is asked, and what must hold in the picture (judge.is_right)

The object keeps its colour, fill and shape; where it stands, how large it is and what it stands on are new.
"""

from dataclasses import dataclass, replace

import numpy as np

from openlance.errors import UserError
from toyworld.edit_words import a_new, dress
from toyworld.facts import Background, Count, Fact, Region, Relation, Thing
from toyworld.scene import (
    Object,
    Scene,
    clashes,
    fill_shows,
    pick,
    region_of,
    relation_between,
    sample_scene,
    somewhere,
)
from toyworld.vocabulary import BACKGROUNDS, DEFAULT_BACKGROUND, SIZES
from toyworld.words import REGION_WORDS, RELATION_WORDS, said, say_background

SUBJECTS = {"one": 1, "two": 2}
ONE = ("the given object", "the given object", "the object", "this object", "the same object")
TWO = (("the first object", "the second object"), ("the first object", "the second object"),
        ("object one", "object two"))  # fmt: skip
_OPENINGS = ("", "", "", "draw ", "a picture of ")
_ABOUT = {1: ("color", "position", "attribute"), 2: ("position", "position", "attribute")}
_ATTEMPTS = 500


@dataclass(frozen=True, kw_only=True)
class Subject:
    """references: one scene per given object; facts: what must hold in the picture, whose true scene is `scene`."""

    references: tuple[Scene, ...]
    scene: Scene
    prompt: str
    facts: tuple[Fact, ...]


def sample_subject(
    rng: np.random.Generator, *, n: int = 1, placement: str | float = "free", heldout: bool = False, aspect: float = 1.0
) -> Subject:
    """Draw a request with n (1 or 2) given objects.

    heldout: the objects, or how they stand, are combinations that are never trained: neither given nor asked for.
    placement: of the objects in the picture asked for, as in `sample_scene`; aspect: width / height of all pictures.
    """
    if n not in SUBJECTS.values():
        raise UserError(f"{n} given objects cannot be drawn: use 1 or 2")
    for _ in range(_ATTEMPTS):
        category = pick(rng, _ABOUT[n])
        scene = sample_scene(rng, placement=placement, category=category, heldout=heldout, aspect=aspect)
        if rng.random() < 0.5:  # the given object is the second one as often as the first
            scene = replace(scene, objects=scene.objects[::-1])
        given = scene.objects[:n]
        unlike = len({(o.shape, o.color) for o in scene.objects}) == len(scene.objects)
        if unlike and all(o.size == "medium" for o in given):
            break
    else:
        raise AssertionError(f"no request with {n} given objects found in {_ATTEMPTS} scenes")
    prompt, facts = _say(scene, n, rng)
    references = tuple(alone(o, rng, aspect, scene.background) for o in given)
    return Subject(references=references, scene=scene, prompt=dress(prompt, rng), facts=facts)


def alone(o: Object, rng: np.random.Generator, aspect: float, other_than: str = "") -> Scene:
    """A picture to give: the object alone, anywhere and of any size, on any background but one."""
    background = pick(rng, [name for name in BACKGROUNDS if name != other_than and not clashes(o.color, name)])
    size = pick(rng, list(SIZES))
    new = replace(o, size=size, r=SIZES[size])
    if not fill_shows(new):
        new = replace(new, size="medium", r=SIZES["medium"])
    new = somewhere(new, rng, aspect)
    return Scene(objects=(new,), background=background, aspect=aspect, category="single")


def _say(scene: Scene, n: int, rng: np.random.Generator) -> tuple[str, tuple[Fact, ...]]:
    """The prompt, with words for the given objects, and its facts, which know how these look."""
    given = pick(rng, TWO) if n == 2 else (pick(rng, ONE),)
    names = [*given, *(a_new(o, rng) for o in scene.objects[n:])]
    things = [Thing(o.shape, o.color, o.fill) for o in scene.objects[:n]] + [said(o) for o in scene.objects[n:]]
    facts: list[Fact] = [Count(thing) for thing in things]
    order = rng.permutation(len(names))
    body = " and ".join(names[i] for i in order)
    cell = region_of(scene.objects[0])
    if len(names) == 1 and cell is not None and rng.random() < 0.35:
        body += " " + pick(rng, REGION_WORDS[cell])
        facts.append(Region(things[0], *cell))
    elif len(names) == 2 and scene.category == "position":
        a, b = order
        relation = relation_between(scene.objects[a], scene.objects[b], scene.aspect)
        assert relation is not None, "scenes of this category are in a clear relation"
        body = f"{names[a]} {pick(rng, RELATION_WORDS[relation])} {names[b]}"
        facts.append(Relation(things[a], relation, things[b]))
    if len(names) == 1 or scene.background != DEFAULT_BACKGROUND or rng.random() < 0.15:
        body += say_background(scene.background, rng)
        facts.append(Background(scene.background))
    return pick(rng, _OPENINGS) + body, tuple(facts)
