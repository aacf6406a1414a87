"""Which facts of a prompt hold in a picture, from its pixels alone.

    text, facts = caption(scene, rng)
    judge(pixels, facts)                 # {Count(Thing("circle", "red"), 1): True, ...}
    is_right(pixels, facts)              # all of them, and nothing else in the picture

The judge does not know the scene: it looks at the picture (`analyse`), writes down what it sees as a scene, and asks
that scene. It is strict about counts, shapes, colours and relations, where a stray blob counts as an object, and
tolerant of soft edges and noise.
"""

from collections.abc import Callable, Iterable

import numpy as np

from toyworld.analyse import Analysis, Found, analyse
from toyworld.facts import Count, Fact, Lettering, Region, Thing, holds
from toyworld.read_text import read_text, same_text
from toyworld.scene import Object, Scene, Text

REGION_SLACK = 0.04  # how far over a line of the 3x3 grid a centre may lie, in widths and heights
_CELL = {"top": 0, "middle": 1, "bottom": 2, "left": 0, "centre": 1, "right": 2}

__all__ = ["Analysis", "Found", "analyse", "is_right", "judge", "nothing_else", "seen_scene"]


def judge(
    pixels: np.ndarray,
    facts: Iterable[Fact],
    seen: Analysis | None = None,
    read: Callable[[np.ndarray, np.ndarray], str] = read_text,
) -> dict[Fact, bool]:
    """Which facts hold in a picture, uint8 (H, W, 3); `seen`: its analysis where that is known already.

    Text is read only where a fact asks for it, by `read` (the usual one takes an optical character reader: UserError
    where it is not installed). Raises ValueError for an array that is no picture.
    """
    facts = tuple(facts)
    seen = seen or analyse(pixels)
    scene = seen_scene(seen, pixels.shape[1] / pixels.shape[0])
    string = read(pixels, seen.paint) if any(isinstance(f, Lettering) for f in facts) else ""
    return {fact: _holds(scene, fact, string, seen.ink) for fact in facts}


def is_right(pixels: np.ndarray, facts: Iterable[Fact]) -> bool:
    """Whether every fact holds and the picture shows nothing but what they name."""
    return all(judge(pixels, nothing_else(facts)).values())


def nothing_else(facts: Iterable[Fact]) -> tuple[Fact, ...]:
    """The facts, and that there are no more objects than they count.

    Not for texts, whose letters are blobs of paint as well: a stray object beside them spoils the reading instead.
    """
    facts = tuple(facts)
    counts = [f for f in facts if isinstance(f, Count)]
    if not counts or any(isinstance(f, Lettering) or f == Count(Thing(), getattr(f, "n", 0)) for f in facts):
        return facts
    return (*facts, Count(Thing(), sum(f.n for f in counts)))


def seen_scene(seen: Analysis, aspect: float = 1.0) -> Scene:
    """What was seen as a scene; a shape, fill or colour that could not be told is "unknown" there."""
    objects = tuple(
        Object(shape=o.shape, color=o.color, fill=o.fill, size=o.size, x=o.x, y=o.y, r=o.r) for o in seen.objects
    )
    return Scene(objects=objects, background=seen.background, aspect=aspect)


def _holds(scene: Scene, fact: Fact, string: str, ink: str) -> bool:
    if isinstance(fact, Region):
        return any(fact.thing.means(o) and _in_region(o, fact) for o in scene.objects)
    if isinstance(fact, Lettering):
        read = fact.string if same_text(string, fact.string) else string
        return holds(Scene(background=scene.background, text=Text(string=read, color=ink)), fact)
    return holds(scene, fact)


def _in_region(o: Object, fact: Region) -> bool:
    return all(
        cell / 3 - REGION_SLACK <= place <= (cell + 1) / 3 + REGION_SLACK
        for place, cell in ((o.y, _CELL[fact.vertical]), (o.x, _CELL[fact.horizontal]))
    )
