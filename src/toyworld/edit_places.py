"""Which object an edit is about and where it puts one: names that mean no other object, free places, their facts."""

from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np

from toyworld.edit_words import STEPS
from toyworld.facts import Fact, Relation, Thing, Within
from toyworld.questions import clear_names
from toyworld.scene import Object, Scene, extent, half_box, is_valid, pick, region_of, relation_between
from toyworld.vocabulary import BORDER, RELATIONS
from toyworld.words import REGION_WORDS, RELATION_WORDS, noun_phrase, plural

SLACK = 0.06  # how far the centre of an object that stays may drift, in widths and heights
CELL_SLACK = 0.04  # how far over a line of the 3x3 grid a centre may lie
STEP = (0.22, 0.34)  # how far "to the right" goes, in widths; LEAST_STEP is asked for
LEAST_STEP = 0.1

Rng: TypeAlias = np.random.Generator


@dataclass(frozen=True)
class Target:
    """Objects of a scene, by their places in it, and the words that mean exactly these."""

    places: tuple[int, ...]
    words: str


def exactly(o: Object) -> Thing:
    """Everything that can be said of an object."""
    return Thing(o.shape, o.color, o.fill, o.size)


def at(o: Object, slack: float = SLACK) -> Within:
    """The fact that this object is where it is."""
    return Within(exactly(o), (o.x - slack, o.y - slack, o.x + slack, o.y + slack))


def draw_target(scene: Scene, rng: Rng, several: bool = False) -> Target | None:
    """An object, or with `several` perhaps all that are alike, and its name; None where nothing has a clear one."""
    alike: dict[str, tuple[int, ...]] = {}
    for o in scene.objects if several else ():
        places = tuple(i for i, other in enumerate(scene.objects) if other.shape == o.shape)
        if len(places) > 1 and len({exactly(scene.objects[i]) for i in places}) == 1:
            alike[plural(o.shape)] = places
    named = [(scene.objects.index(o), thing) for o, thing in clear_names(scene)]
    number = int(rng.integers(len(named) + 2 * len(alike))) if named or alike else -1
    if number >= len(named):
        noun = pick(rng, list(alike))
        return Target(alike[noun], pick(rng, (f"the {noun}", f"the {noun}", f"all {noun}")))
    if number < 0:
        return None
    place, thing = named[number]
    if len(scene.objects) == 1 and rng.random() < 0.4:
        return Target((place,), pick(rng, ("it", "it", "the object", "the shape")))
    return Target((place,), noun_phrase(thing, article="the", rng=rng))


Placed: TypeAlias = tuple[Object, str, list[Fact]]  # the object there, the words for its place, what they claim


def draw_step(o: Object, rng: Rng) -> Placed:
    side, far = pick(rng, RELATIONS), STEP[0] + (STEP[1] - STEP[0]) * rng.random()
    dx, dy = {"left": (-1, 0), "right": (1, 0), "above": (0, -1), "below": (0, 1)}[side]
    new = replace(o, x=float(o.x + far * dx), y=float(o.y + far * dy))
    x0, y0, x1, y1 = (o.x - 2 * SLACK, o.y - 2 * SLACK, o.x + 2 * SLACK, o.y + 2 * SLACK)
    if dx:
        x0, x1 = (o.x + LEAST_STEP, 1.0) if dx > 0 else (0.0, o.x - LEAST_STEP)
    else:
        y0, y1 = (o.y + LEAST_STEP, 1.0) if dy > 0 else (0.0, o.y - LEAST_STEP)
    return new, pick(rng, STEPS[side]), [Within(exactly(o), (x0, y0, x1, y1))]


def draw_place(
    scene: Scene, o: Object, beside: Target | None, rng: Rng, *, anywhere: float = 0.0, moved: int = -1
) -> Placed | None:
    """A free place for an object: beside another one, else in a cell of the 3x3 grid or, now and then, anywhere."""
    width, height = extent(scene.aspect)
    (hx, hy), free = half_box(o), rng.random() < anywhere
    relation, cell = pick(rng, RELATIONS), (int(rng.integers(3)), int(rng.integers(3)))
    others = tuple(other for i, other in enumerate(scene.objects) if i != moved)
    for _ in range(10):
        if beside is not None or free:
            x, y = rng.random(2)
        else:
            x, y = ((c + 0.5 + 0.4 * (2 * rng.random() - 1)) / 3 for c in reversed(cell))
        x, y = (float(np.clip(v, m, 1 - m)) for v, m in ((x, (hx + BORDER) / width), (y, (hy + BORDER) / height)))
        new = replace(o, x=x, y=y)
        if not is_valid(replace(scene, objects=(*others, new))):
            continue
        if beside is not None:
            anchor = scene.objects[beside.places[0]]
            if relation_between(new, anchor, scene.aspect) == relation:
                where = pick(rng, RELATION_WORDS[relation])
                return new, f"{where} {beside.words}", [Relation(exactly(new), relation, exactly(anchor))]
        elif free:
            return new, "", []
        else:
            here = region_of(new)
            if here is not None:
                return new, pick(rng, REGION_WORDS[here]), [_in_cell(new)]
    return None


def _in_cell(o: Object) -> Within:
    """The fact that an object lies in its cell of the 3x3 grid, or a little over its lines."""
    x, y = int(o.x * 3), int(o.y * 3)
    box = (x / 3 - CELL_SLACK, y / 3 - CELL_SLACK, (x + 1) / 3 + CELL_SLACK, (y + 1) / 3 + CELL_SLACK)
    return Within(exactly(o), box)
