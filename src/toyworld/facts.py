"""What a sentence can claim about a picture: a small closed set of facts, hashable, each true or false of a scene.

`parse` reads them from a sentence, `holds` checks them against a scene, the judge checks them against pixels.
"""

from dataclasses import dataclass
from typing import TypeAlias

from toyworld.scene import Object, Scene, Text, extent, region_of


@dataclass(frozen=True)
class Thing:
    """The objects a noun phrase can mean; None leaves a property open."""

    shape: str | None = None
    color: str | None = None
    fill: str | None = None
    size: str | None = None

    def means(self, o: Object) -> bool:
        mine, its = (self.shape, self.color, self.fill, self.size), (o.shape, o.color, o.fill, o.size)
        return all(m is None or m == i for m, i in zip(mine, its, strict=True))


@dataclass(frozen=True)
class Count:
    """There are exactly n such things."""

    thing: Thing
    n: int = 1


@dataclass(frozen=True)
class Relation:
    """Thing a lies "left" | "right" | "above" | "below" of thing b."""

    a: Thing
    relation: str
    b: Thing


@dataclass(frozen=True)
class Region:
    """A thing lies in a cell of a 3x3 grid: "top" | "middle" | "bottom", "left" | "centre" | "right"."""

    thing: Thing
    vertical: str
    horizontal: str


@dataclass(frozen=True)
class Background:
    """The background has this colour, a name of BACKGROUNDS."""

    color: str


@dataclass(frozen=True)
class Lettering:
    """The picture shows this text; None leaves its colour open."""

    string: str
    color: str | None = None


@dataclass(frozen=True)
class Within:
    """The centre of a thing lies in a box: x0, y0, x1, y1 in widths and heights."""

    thing: Thing
    box: tuple[float, float, float, float]


Fact: TypeAlias = Count | Relation | Region | Background | Lettering | Within


def holds(scene: Scene, fact: Fact) -> bool:
    """Whether a fact is true of a scene. A relation holds as in GenEval: a clear part of the offset points that way."""
    if isinstance(fact, Count):
        return sum(fact.thing.means(o) for o in scene.objects) == fact.n
    if isinstance(fact, Relation):
        pairs = [(a, b) for a in scene.objects for b in scene.objects if a is not b]
        return any(fact.a.means(a) and fact.b.means(b) and _points(a, b, fact.relation, scene.aspect) for a, b in pairs)
    if isinstance(fact, Region):
        cell = (fact.vertical, fact.horizontal)
        return any(fact.thing.means(o) and region_of(o) == cell for o in scene.objects)
    if isinstance(fact, Within):
        x0, y0, x1, y1 = fact.box
        return any(fact.thing.means(o) and x0 <= o.x <= x1 and y0 <= o.y <= y1 for o in scene.objects)
    if isinstance(fact, Background):
        return scene.background == fact.color
    return _shows(scene.text, fact)


def _points(a: Object, b: Object, relation: str, aspect: float) -> bool:
    width, height = extent(aspect)
    dx, dy = (a.x - b.x) * width, (a.y - b.y) * height
    offset = {"left": -dx, "right": dx, "above": -dy, "below": dy}[relation]
    return offset > 0.5 * (dx * dx + dy * dy) ** 0.5


def _shows(text: Text | None, fact: Lettering) -> bool:
    return text is not None and text.string == fact.string and fact.color in (None, text.color)
