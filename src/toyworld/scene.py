"""A scene is data: what is in a small picture, and where. Pictures, words and questions all come from it.

    scene = sample_scene(np.random.default_rng(0), placement="loose", category="position")

Lengths: `x`, `y` are fractions of the width and height, `r` is a fraction of the shorter side.
"""

from dataclasses import dataclass, replace

import numpy as np

from openlance.errors import UserError
from toyworld.vocabulary import (
    BACKGROUNDS,
    BORDER,
    CATEGORIES,
    CELL,
    CLASHES,
    COLORS,
    DEFAULT_BACKGROUND,
    FILLS,
    GAP,
    HALF_BOX,
    HELDOUT_CATEGORIES,
    HELDOUT_PAIRS,
    HELDOUT_TRIPLES,
    LETTER_HEIGHT,
    LETTERS,
    RELATIONS,
    SHAPES,
    SIZE_JITTER,
    SIZES,
    SPACE,
)  # fmt: skip

_BACKGROUND_WEIGHTS = {"black": 0.54, "grey": 0.11, "white": 0.11, "brown": 0.08}  # the rest: a colour
_JITTER = {"canonical": 0.03, "loose": 0.15, "free": 1.0}
_ATTEMPTS = 2000
_REACH = {"circle": 1.0, "ring": 1.0, "cross": 1.07}  # radius, in r, of the circle around a shape; else the box counts


@dataclass(frozen=True, kw_only=True)
class Object:
    """One shape. `x`, `y`: its centre, in widths and heights; `r`: its radius, in shorter sides."""

    shape: str
    color: str
    fill: str = "solid"
    size: str = "medium"
    x: float = 0.5
    y: float = 0.5
    r: float = SIZES["medium"]


@dataclass(frozen=True, kw_only=True)
class Text:
    """A word of 1 to 4 capitals or digits. `x`, `y`: its centre; `height` of a letter, in shorter sides."""

    string: str
    color: str
    x: float = 0.5
    y: float = 0.5
    height: float = LETTER_HEIGHT

    def half_box(self) -> tuple[float, float]:
        """Half width and half height, in shorter sides."""
        cells = len(self.string) * CELL + (len(self.string) - 1) * SPACE
        return cells * self.height / 2, self.height / 2


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Up to four objects, or a text, on a uniform background. `aspect`: width / height it was laid out for."""

    objects: tuple[Object, ...] = ()
    background: str = DEFAULT_BACKGROUND
    text: Text | None = None
    aspect: float = 1.0
    category: str = "mixed"


def clashes(color: str, background: str) -> bool:
    """Whether an object of this colour is hard to see on this background."""
    return color == background or frozenset((color, background)) in CLASHES


def legible(color: str, background: str) -> bool:
    """Whether letters of this colour can be read on this background: they must also differ in brightness."""
    weights = (0.3, 0.59, 0.11)
    a, b = (sum(w * c for w, c in zip(weights, rgb, strict=True)) for rgb in (COLORS[color], BACKGROUNDS[background]))
    pale = {color, background} == {"white", "yellow"}
    return abs(a - b) >= 35 and not pale and not clashes(color, background)


def extent(aspect: float) -> tuple[float, float]:
    """Width and height of the picture in units of its shorter side."""
    return max(aspect, 1.0), max(1.0 / aspect, 1.0)


def half_box(item: Object | Text) -> tuple[float, float]:
    """Half width and half height of an object or a text, in shorter sides."""
    if isinstance(item, Text):
        return item.half_box()
    hx, hy = HALF_BOX[item.shape]
    return hx * item.r, hy * item.r


def relation_between(a: Object, b: Object, aspect: float = 1.0) -> str | None:
    """Where a lies as seen from b: "left", "right", "above", "below"; None where a diagonal leaves it open."""
    width, height = extent(aspect)
    dx, dy = (a.x - b.x) * width, (a.y - b.y) * height
    if abs(dx) >= 1.5 * abs(dy):
        return "left" if dx < 0 else "right"
    if abs(dy) >= 1.5 * abs(dx):
        return "above" if dy < 0 else "below"
    return None


def region_of(item: Object | Text) -> tuple[str, str] | None:
    """The cell of a 3x3 grid, as ("top"|"middle"|"bottom", "left"|"centre"|"right"); None near a grid line."""
    if min(abs(v - line) for v in (item.x, item.y) for line in (1 / 3, 2 / 3)) < 0.03:
        return None
    return ("top", "middle", "bottom")[int(item.y * 3)], ("left", "centre", "right")[int(item.x * 3)]


def heldout_pair(scene: Scene) -> bool:
    return any((o.color, o.shape) in HELDOUT_PAIRS for o in scene.objects)


def heldout_triple(scene: Scene) -> bool:
    return any(
        (a.shape, relation_between(a, b, scene.aspect), b.shape) in HELDOUT_TRIPLES
        for i, a in enumerate(scene.objects) for b in scene.objects[i + 1:]
    )  # fmt: skip


def is_heldout(scene: Scene) -> bool:
    """Whether the scene shows a colour on a shape, or an arrangement of two shapes, that is never trained."""
    return heldout_pair(scene) or heldout_triple(scene)


def is_valid(scene: Scene) -> bool:
    """Everything lies inside the picture and nothing touches."""
    width, height = extent(scene.aspect)
    items = list(scene.objects) + ([scene.text] if scene.text else [])
    for item in items:
        (hx, hy), x, y = half_box(item), item.x * width, item.y * height
        if min(x - hx, width - x - hx, y - hy, height - y - hy) < BORDER - 1e-9:
            return False
    return all(_apart(a, b, width, height) for i, a in enumerate(items) for b in items[i + 1:])  # fmt: skip


def _apart(a: Object | Text, b: Object | Text, width: float, height: float) -> bool:
    (ax, ay), (bx, by) = half_box(a), half_box(b)
    dx, dy = abs(a.x - b.x) * width, abs(a.y - b.y) * height
    if max(dx - ax - bx, dy - ay - by) >= GAP:
        return True
    reach = [_REACH.get(o.shape, 2.0) * o.r if isinstance(o, Object) else 2.0 for o in (a, b)]
    return float(np.hypot(dx, dy)) - sum(reach) >= GAP


def jitter_of(placement: str | float) -> float:
    """Half the range of a centre around its canonical place, in widths and heights; 1 is anywhere.

    A number is the place on the way from "canonical" (0) to "free" (1), in equal ratios of the jitter.
    """
    if isinstance(placement, str):
        if placement not in _JITTER:
            raise UserError(f"placement {placement!r} is unknown: use one of {', '.join(_JITTER)}")
        return _JITTER[placement]
    if not 0.0 <= placement <= 1.0:
        raise UserError(f"a spread of {placement} is out of range: use 0 (canonical) to 1 (free)")
    return float(_JITTER["canonical"] ** (1.0 - placement))


def sample_scene(
    rng: np.random.Generator,
    *,
    placement: str | float = "free",
    category: str | None = None,
    heldout: bool = False,
    aspect: float = 1.0,
) -> Scene:
    """Draw a scene; the same generator state gives the same scene.

    placement: "canonical", "loose", "free", or a spread in [0, 1], see `jitter_of`.
    category: one of CATEGORIES, or "mixed" (one to four unlike objects); None draws one.
    heldout: False never shows a held out combination, True always does, in a form that the caption names.
    aspect: width / height of the picture it will be drawn in.
    """
    jitter = jitter_of(placement)
    known = HELDOUT_CATEGORIES if heldout else (*CATEGORIES, "mixed")
    if category is None:
        category = pick(rng, known)
    if category not in known:
        what = "has no held out scenes" if heldout and category in CATEGORIES else "is unknown"
        raise UserError(f"category {category!r} {what}: use one of {', '.join(known)}")
    if not 0.25 <= aspect <= 4.0:
        raise UserError(f"an aspect of {aspect} is too extreme for a scene: use a width / height of 0.25 to 4")
    n = {"single": 1, "color": 1, "count": 2 + int(rng.integers(3)), "mixed": 1 + int(rng.integers(4))}.get(category, 2)
    for _ in range(_ATTEMPTS):  # crowded scenes fail more often, so their number is not drawn again
        scene = _draw(rng, jitter, category, n, aspect)
        if scene is not None and (_names_heldout(scene) if heldout else not is_heldout(scene)):
            return scene
    raise AssertionError(f"no {category} scene found in {_ATTEMPTS} attempts")


def _names_heldout(scene: Scene) -> bool:
    return heldout_pair(scene) or (scene.category in ("position", "mixed") and heldout_triple(scene))


def pick(rng: np.random.Generator, options):
    return options[int(rng.integers(len(options)))]


def _draw(rng: np.random.Generator, jitter: float, category: str, n: int, aspect: float) -> Scene | None:
    background = _draw_background(rng)
    if category == "text":
        return _draw_text(rng, jitter, background, aspect)
    relation = pick(rng, RELATIONS) if category == "position" else "left"
    objects = _draw_things(rng, category, n, background)
    scene = Scene(objects=tuple(objects), background=background, aspect=aspect, category=category)
    for _ in range(12):
        placed = _place(rng, scene, relation, jitter)
        if placed is None or not is_valid(placed):
            continue
        if category != "position" or relation_between(placed.objects[0], placed.objects[1], aspect) == relation:
            return placed
    return None


def _draw_background(rng: np.random.Generator) -> str:
    u = rng.random()
    for name, weight in _BACKGROUND_WEIGHTS.items():
        u -= weight
        if u < 0:
            return name
    return pick(rng, [c for c in COLORS if c != "white"])


# Chance that an object has a said fill, and a said size: what a caption leaves unsaid is solid and medium.
_SPECIAL = {
    "single": (0.0, 0.05), "color": (0.25, 0.3), "two": (0.0, 0.0), "attribute": (0.3, 0.25),
    "position": (0.12, 0.12), "count": (0.2, 0.2), "mixed": (0.25, 0.25),
}  # fmt: skip


def _draw_things(rng: np.random.Generator, category: str, n: int, background: str) -> list[Object]:
    objects = [_draw_object(rng, category, background) for _ in range(n)]
    if category == "count":
        return [_resize(rng, objects[0]) for _ in range(n)]
    if category == "mixed" and n > 2 and rng.random() < 0.4:  # two equal ones among others
        objects[1] = _resize(rng, objects[0])
    if category == "mixed":  # things of one shape and colour are alike, so that "a red circle" is always clear
        first = {(o.shape, o.color): o for o in reversed(objects)}
        return [_resize(rng, first[o.shape, o.color]) for o in objects]
    if n == 2:
        a, b = objects
        while a.shape == b.shape or (a.color == b.color and category != "two"):
            alike = a.shape == b.shape and category != "two" and a.color != b.color
            if alike and rng.random() < 0.25:  # "a red circle and a blue circle", less often
                break
            b = _draw_object(rng, category, background)
        objects = [a, b]
    return objects


def _draw_object(rng: np.random.Generator, category: str, background: str) -> Object:
    fill_chance, size_chance = _SPECIAL[category]
    color = pick(rng, [c for c in COLORS if not clashes(c, background)])
    shape = pick(rng, SHAPES)
    fill = pick(rng, FILLS[1:]) if rng.random() < fill_chance else "solid"
    size = pick(rng, ("small", "large")) if rng.random() < size_chance else "medium"
    if shape == "ring":
        fill = "solid"
    if not fill_shows(Object(shape=shape, color=color, fill=fill, size=size)):
        size = "medium"
    return _resize(rng, Object(shape=shape, color=color, fill=fill, size=size))


def fill_shows(o: Object) -> bool:
    """Whether the fill of an object can be seen: an outlined ring would be two circles, a striped one a dotted line,
    and small thin shapes have no room for it."""
    thin = o.size == "small" and o.shape in ("star", "cross", "triangle")
    return o.fill == "solid" or not (thin or o.shape == "ring")


def somewhere(o: Object, rng: np.random.Generator, aspect: float = 1.0) -> Object:
    """The object at a place anywhere in the picture."""
    (width, height), (hx, hy) = extent(aspect), half_box(o)
    x = _around(rng, 0.5, 1.0, (hx + BORDER) / width)
    return replace(o, x=x, y=_around(rng, 0.5, 1.0, (hy + BORDER) / height))


def _resize(rng: np.random.Generator, thing: Object) -> Object:
    return replace(thing, r=SIZES[thing.size] * (1 + SIZE_JITTER * (2 * rng.random() - 1)))


def anchors(n: int, relation: str = "left") -> tuple[tuple[float, float], ...]:
    """The canonical centres of n objects; two of them stand as the relation of the first to the second says."""
    pair = {
        "left": ((0.25, 0.5), (0.75, 0.5)), "right": ((0.75, 0.5), (0.25, 0.5)),
        "above": ((0.5, 0.25), (0.5, 0.75)), "below": ((0.5, 0.75), (0.5, 0.25)),
    }  # fmt: skip
    return {
        1: ((0.5, 0.5),), 2: pair[relation], 3: ((0.5, 0.26), (0.25, 0.74), (0.75, 0.74)),
        4: ((0.25, 0.25), (0.75, 0.25), (0.25, 0.75), (0.75, 0.75)),
    }[n]  # fmt: skip


def _place(rng: np.random.Generator, scene: Scene, relation: str, jitter: float) -> Scene | None:
    """The scene with its objects around their canonical centres; None where one finds no room."""
    width, height = extent(scene.aspect)
    spots = anchors(len(scene.objects), relation)
    placed: list[Object] = []
    for thing, (x, y) in zip(scene.objects, spots, strict=True):
        hx, hy = half_box(thing)
        for _ in range(8):  # a few tries per object: rejecting whole scenes alone would make crowded ones rare
            across = _around(rng, x, jitter, (hx + BORDER) / width)
            here = replace(thing, x=across, y=_around(rng, y, jitter, (hy + BORDER) / height))
            if all(_apart(here, other, width, height) for other in placed):
                placed.append(here)
                break
        else:
            return None
    return replace(scene, objects=tuple(placed))


def _around(rng: np.random.Generator, centre: float, jitter: float, margin: float) -> float:
    """Uniform within `jitter` of the centre, and at least `margin` away from both edges."""
    low, high = max(centre - jitter, margin), min(centre + jitter, 1 - margin)
    return float(low + (high - low) * rng.random()) if high > low else float(np.clip(centre, margin, 1 - margin))


def displaced(scene: Scene, by: float = 0.1) -> bool:
    """Whether something stands further than `by` from its canonical place."""
    relation: str | None = "left"
    if len(scene.objects) == 2:
        relation = relation_between(scene.objects[0], scene.objects[1], scene.aspect)
    items: tuple[Object | Text, ...] = scene.objects or ((scene.text,) if scene.text else ())
    spots = anchors(len(items), relation or "left") if items else ()
    return any(max(abs(o.x - x), abs(o.y - y)) > by for o, (x, y) in zip(items, spots, strict=True))


def _draw_text(rng: np.random.Generator, jitter: float, background: str, aspect: float) -> Scene:
    width, height = extent(aspect)
    length = 1 + int(rng.integers(4))
    string = "".join(pick(rng, LETTERS) for _ in range(length))
    light = "white" if legible("white", background) and rng.random() < 0.5 else None
    color = light or pick(rng, [c for c in COLORS if legible(c, background)])
    text = Text(string=string, color=color, height=LETTER_HEIGHT * (1 + SIZE_JITTER * (2 * rng.random() - 1)))
    room = (width / 2 - 2 / 64) / text.half_box()[0]
    if room < 1:
        text = replace(text, height=text.height * room)
    hx, hy = text.half_box()
    x = _around(rng, 0.5, jitter, (hx + BORDER) / width)
    y = _around(rng, 0.5, jitter, (hy + BORDER) / height)
    return Scene(background=background, text=replace(text, x=x, y=y), aspect=aspect, category="text")
