"""A second judge of pictures, which shares nothing with the first (`judge`) but the facts that it is asked about.

    look(pixels)                         # "black", (Outlined(color="red", shape="circle", x=20.1, y=33.0), ...)
    second_opinion(pixels, facts)        # True, False, or None where a fact is none that it can read

It finds shapes with OpenCV: what stands out from the border's color, its outline, convex hull and holes, the nearest of
colors that were written down for it. It reads solid things of any size: texts, fills and sizes it leaves to the first.
How often it is right on true pictures: `benchmarks/foreign.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from openlance.errors import UserError
from toyworld.clips import Moves
from toyworld.facts import Background, Count, Fact, Region, Relation, Thing, Within

COLORS = {
    "red": (220, 40, 40), "green": (40, 170, 60), "blue": (40, 80, 220), "yellow": (240, 220, 50),
    "purple": (150, 60, 190), "orange": (245, 140, 30), "cyan": (60, 200, 220), "white": (245, 245, 245),
    "black": (10, 10, 10), "grey": (128, 128, 128), "brown": (110, 70, 40),
}  # fmt: skip
SCALE = 8  # pictures are enlarged before outlines are taken
APART = 60.0  # RGB distance from the border's color from which something is no ground
LEAST = 0.006  # of the picture, which a thing covers at least
LEAST_WAY = 0.1  # in shorter sides, from which something moves
WAYS = ("left", "right", "up", "down", "still")  # motions that it reads
SLACK = 0.05  # by which a middle may miss its place, in widths and heights
_THIRDS = {"top": 0, "middle": 1, "bottom": 2, "left": 0, "centre": 1, "right": 2}


@dataclass(frozen=True)
class Outlined:
    """A thing that was seen; x, y: the middle of its box, in widths and heights."""

    color: str
    shape: str
    x: float
    y: float


def opencv() -> Any:
    """Load OpenCV. UserError where it is not installed."""
    try:
        import cv2
    except ImportError as missing:
        raise UserError("the second judge needs OpenCV: pip install 'openlance[eval]'") from missing
    return cv2


def second_opinion(pixels: np.ndarray, facts: Iterable[Fact]) -> bool | None:
    """Whether all facts hold in a picture, uint8 (H, W, 3); None where it cannot read one of them.

    Raises:
        UserError: OpenCV is not installed.
    """
    facts = tuple(facts)
    if not all(map(readable, facts)):
        return None
    ground, things = look(pixels)
    return all(_holds(fact, ground, things, pixels.shape[1] / pixels.shape[0]) for fact in facts)


def second_opinion_of_clip(pixels: np.ndarray, facts: Iterable[Fact | Moves]) -> bool | None:
    """Whether all facts hold in a clip, uint8 (T, H, W, 3); None where it cannot read one of them.

    Things and ground are looked at in the first, the middle and the last frame; a motion is the way of a thing's middle
    from the first to the last. What grows or shrinks it leaves to the first judge, and equal things that move.

    Raises:
        UserError: OpenCV is not installed.
    """
    facts = tuple(facts)
    moves, still = [f for f in facts if isinstance(f, Moves)], [f for f in facts if not isinstance(f, Moves)]
    known = all(move.motion in WAYS and move.n == 1 and readable(Count(move.thing)) for move in moves)
    if not known or not all(map(readable, still)):
        return None
    aspect = pixels.shape[2] / pixels.shape[1]
    seen = [look(frame) for frame in (pixels[0], pixels[len(pixels) // 2], pixels[-1])]
    there = all(_holds(fact, ground, things, aspect) for ground, things in seen for fact in still)
    return there and all(_way(move.thing, seen[0][1], seen[-1][1], aspect) == move.motion for move in moves)


def _way(thing: Thing, first: Sequence[Outlined], last: Sequence[Outlined], aspect: float) -> str | None:
    """Where the one thing that looks so went; None where it is not there, or went askew."""
    ends = [[t for t in things if (t.color, t.shape) == (thing.color, thing.shape)] for things in (first, last)]
    if any(len(found) != 1 for found in ends):
        return None
    (before,), (after,) = ends
    x, y = (after.x - before.x) * max(aspect, 1.0), (after.y - before.y) / min(aspect, 1.0)
    if max(abs(x), abs(y)) < LEAST_WAY:
        return "still"
    clear = min(abs(x), abs(y)) <= 0.5 * max(abs(x), abs(y))
    return (
        ("left" if x < 0 else "right") if clear and abs(x) > abs(y) else ("up" if y < 0 else "down") if clear else None
    )


def readable(fact: Fact) -> bool:
    """Whether this judge can tell if a fact holds."""
    if isinstance(fact, Background):
        return True
    if not isinstance(fact, (Count, Relation, Region, Within)):
        return False
    things = (fact.a, fact.b) if isinstance(fact, Relation) else (fact.thing,)
    return all(thing.size is None and thing.fill in (None, "solid") for thing in things)


def look(pixels: np.ndarray) -> tuple[str, tuple[Outlined, ...]]:
    """The color of the ground and the things of a picture, uint8 (H, W, 3)."""
    cv2 = opencv()
    height, width = pixels.shape[:2]
    large = cv2.resize(pixels, (width * SCALE, height * SCALE), interpolation=cv2.INTER_CUBIC)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]]).astype(float)
    ground = np.median(border, axis=0)
    mask = (np.linalg.norm(large.astype(float) - ground, axis=-1) > APART).astype(np.uint8)
    mask = cv2.morphologyEx(mask, cv2.MORPH_OPEN, np.ones((SCALE, SCALE), np.uint8))
    outlines, nested = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    things = list[Outlined]()
    for n, outline in enumerate(outlines):
        if nested[0][n][3] >= 0 or cv2.contourArea(outline) < LEAST * mask.size:
            continue
        alone = cv2.drawContours(np.zeros_like(mask), outlines, n, 1, cv2.FILLED)
        inside = cv2.erode(alone & mask, np.ones((SCALE, SCALE), np.uint8)).astype(bool)
        if not inside.any():
            continue
        x, y, wide, high = cv2.boundingRect(outline)
        hole = 1 - float((alone & mask).sum()) / float(alone.sum())
        color = _nearest(np.median(large[inside], axis=0))
        middle = (x + wide / 2) / mask.shape[1], (y + high / 2) / mask.shape[0]
        things.append(Outlined(color, _shape(outline, hole), *middle))
    return _nearest(ground), tuple(things)


def _nearest(color: np.ndarray) -> str:
    return min(COLORS, key=lambda name: float(((np.array(COLORS[name], float) - color) ** 2).sum()))


def _shape(outline: np.ndarray, hole: float) -> str:
    """One of six, by holes, the hull and what fills it."""
    cv2 = opencv()
    if hole > 0.1:
        return "ring"
    area, hull = cv2.contourArea(outline), cv2.convexHull(outline)
    triangle, _ = cv2.minEnclosingTriangle(outline)
    if area / cv2.contourArea(hull) < 0.85:
        return "star" if _arms(outline, 5) > _arms(outline, 4) else "cross"
    if area / triangle > 0.8:
        return "triangle"
    _, sides, _ = cv2.minAreaRect(outline)
    return "square" if area / (sides[0] * sides[1]) > 0.88 else "circle"


def _arms(outline: np.ndarray, count: int) -> float:
    """How strongly the distance from the middle repeats so many times on the way around."""
    m = opencv().moments(outline)
    x, y = (outline[:, 0] - [m["m10"] / m["m00"], m["m01"] / m["m00"]]).T
    return float(abs(np.mean(np.hypot(x, y) * np.exp(1j * count * np.arctan2(y, x)))))


def _holds(fact: Fact, ground: str, things: Sequence[Outlined], aspect: float) -> bool:
    def those(thing: Thing) -> list[Outlined]:
        return [t for t in things if thing.color in (None, t.color) and thing.shape in (None, t.shape)]

    if isinstance(fact, Background):
        return ground == fact.color
    if isinstance(fact, Count):
        return len(those(fact.thing)) == fact.n
    if isinstance(fact, Relation):
        pairs = [(a, b) for a in those(fact.a) for b in those(fact.b) if a is not b]
        return any(_lies((a.x - b.x) * aspect, a.y - b.y, fact.relation) for a, b in pairs)
    assert isinstance(fact, (Region, Within))
    if isinstance(fact, Within):
        box = fact.box
    else:
        column, row = _THIRDS[fact.horizontal], _THIRDS[fact.vertical]
        box = (column / 3, row / 3, (column + 1) / 3, (row + 1) / 3)
    left, top, right, bottom = box[0] - SLACK, box[1] - SLACK, box[2] + SLACK, box[3] + SLACK
    return any(left <= t.x <= right and top <= t.y <= bottom for t in those(fact.thing))


def _lies(x: float, y: float, relation: str) -> bool:
    """GenEval's rule: more than half of the distance points that way."""
    return {"left": -x, "right": x, "above": -y, "below": y}[relation] > 0.5 * math.hypot(x, y)
