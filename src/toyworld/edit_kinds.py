"""What each kind of edit does to a scene, one function per kind: draw a target and its name, change it, say so.

A function returns None where its draw makes no sense, such as a colour that is there already; the
caller, `toyworld.edits`, draws again.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from toyworld import edit_words as words
from toyworld.edit_places import SLACK, Placed, Rng, Target, at, draw_place, draw_step, draw_target, exactly
from toyworld.facts import Background, Count, Fact, Lettering, Thing, Within, holds
from toyworld.read_text import same_text
from toyworld.scene import Object, Scene, clashes, fill_shows, legible, pick
from toyworld.tones import TONES, toned
from toyworld.vocabulary import BACKGROUNDS, COLORS, FILLS, LETTERS, SHAPES, SIZE_JITTER, SIZES

MOST_OBJECTS = 4


@dataclass(frozen=True, kw_only=True)
class Change:
    """What one kind of edit proposes. touched: which objects of the scene before do not stay as they are; stay: what
    of them does."""

    after: Scene
    said: str
    asked: Sequence[Fact]
    touched: tuple[int, ...] = ()
    stay: Sequence[Fact] = ()


def _put(scene: Scene, new: dict[int, Object]) -> Scene:
    return replace(scene, objects=tuple(new.get(i, o) for i, o in enumerate(scene.objects)))


def _changed(scene: Scene, target: Target, **properties: Any) -> tuple[Scene, list[Fact]]:
    """The scene with other properties of the target, and the facts that tell them."""
    new = {i: replace(scene.objects[i], **properties) for i in target.places}
    return _put(scene, new), [at(o) for o in new.values()]


def _recolour(scene: Scene, rng: Rng) -> Change | None:
    color = pick(rng, list(COLORS))
    if scene.text is not None:
        if color == scene.text.color or not legible(color, scene.background):
            return None
        after = replace(scene, text=replace(scene.text, color=color))
        said = words.fill(rng, words.RECOLOUR, x=pick(rng, ("the text", "the letters")), new=color)
        return Change(after=after, said=said, asked=[Lettering(scene.text.string, color)])
    target = draw_target(scene, rng, several=True)
    if target is None or clashes(color, scene.background) or scene.objects[target.places[0]].color == color:
        return None
    after, asked = _changed(scene, target, color=color)
    said = words.fill(rng, words.RECOLOUR, x=target.words, new=color)
    return Change(after=after, said=said, asked=asked, touched=target.places)


def _refill(scene: Scene, rng: Rng) -> Change | None:
    target, fill = draw_target(scene, rng, several=True), pick(rng, FILLS)
    if target is None or scene.objects[target.places[0]].fill == fill:
        return None
    after, asked = _changed(scene, target, fill=fill)
    if not all(fill_shows(o) for o in after.objects):
        return None
    said = words.fill(rng, words.REFILL[fill], x=target.words)
    return Change(after=after, said=said, asked=asked, touched=target.places)


def _reshape(scene: Scene, rng: Rng) -> Change | None:
    target, shape = draw_target(scene, rng), pick(rng, SHAPES)
    if target is None or scene.objects[target.places[0]].shape == shape:
        return None
    after, _ = _changed(scene, target, shape=shape)
    new = after.objects[target.places[0]]
    if not fill_shows(new):
        return None
    # How large a star is that has the size of a square is open: the size is not asked.
    asked = Within(replace(exactly(new), size=None), at(new).box)
    said = words.fill(rng, words.RESHAPE, x=target.words, new=words.a(shape))
    return Change(after=after, said=said, asked=[asked], touched=target.places)


def _other_thing(scene: Scene, rng: Rng) -> Object | None:
    """A new object, unlike every other in shape and colour, somewhere in the picture."""
    o = Object(
        shape=pick(rng, SHAPES), color=pick(rng, list(COLORS)),
        fill=pick(rng, FILLS[1:]) if rng.random() < 0.12 else "solid",
        size=pick(rng, ("small", "large")) if rng.random() < 0.25 else "medium",
    )  # fmt: skip
    taken = any((o.shape, o.color) == (other.shape, other.color) for other in scene.objects)
    if taken or clashes(o.color, scene.background) or not fill_shows(o):
        return None
    return _scaled(o, o.size, rng)


def _scaled(o: Object, size: str, rng: Rng) -> Object:
    return replace(o, size=size, r=SIZES[size] * (1 + SIZE_JITTER * (2 * rng.random() - 1)))


def _replace(scene: Scene, rng: Rng) -> Change | None:
    target, new = draw_target(scene, rng), _other_thing(scene, rng)
    if target is None or new is None:
        return None
    i = target.places[0]
    new = replace(new, x=scene.objects[i].x, y=scene.objects[i].y)
    said = words.fill(rng, words.REPLACE, x=target.words, new=words.a_new(new, rng))
    return Change(after=_put(scene, {i: new}), said=said, asked=[at(new)], touched=(i,))


def _remove(scene: Scene, rng: Rng) -> Change | None:
    target = draw_target(scene, rng, several=True)
    if target is None or len(target.places) == len(scene.objects):
        return None
    stay = tuple(o for i, o in enumerate(scene.objects) if i not in target.places)
    gone = {exactly(scene.objects[i]) for i in target.places}
    asked = [Count(Thing(), len(stay)), *(Count(thing, sum(thing.means(o) for o in stay)) for thing in gone)]
    said = words.fill(rng, words.REMOVE, x=target.words)
    return Change(after=replace(scene, objects=stay), said=said, asked=asked, touched=target.places)


def _add(scene: Scene, rng: Rng) -> Change | None:
    new = _other_thing(scene, rng)
    if new is None or len(scene.objects) >= MOST_OBJECTS:
        return None
    beside = draw_target(scene, rng) if rng.random() < 0.45 else None
    found = draw_place(scene, new, beside, rng, anywhere=0.3)
    if found is None:
        return None
    new, where, facts = found
    asked = [Count(exactly(new)), *facts]
    said = words.fill(rng, words.ADD if where else words.ADD[:2], new=words.a_new(new, rng), where=where)
    return Change(after=replace(scene, objects=(*scene.objects, new)), said=said, asked=asked)


def _move(scene: Scene, rng: Rng) -> Change | None:
    target = draw_target(scene, rng)
    if target is None:
        return None
    i = target.places[0]
    old = scene.objects[i]
    found: Placed | None = draw_step(old, rng)
    if rng.random() < 0.6:
        beside = draw_target(scene, rng) if rng.random() < 0.4 else None
        if beside is not None and beside.places == target.places:
            return None
        found = draw_place(scene, old, beside, rng, moved=i)
    if found is None:
        return None
    new, where, facts = found
    if max(abs(new.x - old.x), abs(new.y - old.y)) < 2 * SLACK or all(holds(scene, fact) for fact in facts):
        return None
    said = words.fill(rng, words.MOVE, x=target.words, where=where)
    return Change(after=_put(scene, {i: new}), said=said, asked=facts, touched=(i,))


def _resize(scene: Scene, rng: Rng) -> Change | None:
    target, size = draw_target(scene, rng), pick(rng, list(SIZES))
    if target is None:
        return None
    old = scene.objects[target.places[0]]
    new = _scaled(old, size, rng)
    if old.size == size or not fill_shows(new):
        return None
    # Only from the middle is there one next size: else the instruction names the new one.
    forms = words.RESIZE[size] + (words.COMPARE[size] * 2 if old.size == "medium" else ())
    said = pick(rng, forms).format(x=target.words)
    return Change(after=_put(scene, {target.places[0]: new}), said=said, asked=[at(new)], touched=target.places)


def _background(scene: Scene, rng: Rng) -> Change | None:
    new = pick(rng, ("black", "grey", "white", "brown") if rng.random() < 0.6 else list(BACKGROUNDS))
    seen = all(not clashes(o.color, new) for o in scene.objects)
    if new == scene.background or not seen or (scene.text is not None and not legible(scene.text.color, new)):
        return None
    said = words.fill(rng, words.BACKGROUND, new=new)
    return Change(after=replace(scene, background=new), said=said, asked=[Background(new)])


def _text(scene: Scene, rng: Rng) -> Change | None:
    if scene.text is None:
        return None
    same_length = rng.random() < 0.4
    length = len(scene.text.string) if same_length else 1 + int(rng.integers(3))
    new = "".join(pick(rng, LETTERS) for _ in range(length))
    if same_text(new, scene.text.string):
        return None
    text = replace(scene.text, string=new)
    said = words.fill(rng, words.TEXT, old=scene.text.string, new=new)
    return Change(after=replace(scene, text=text), said=said, asked=[Lettering(new, text.color)])


def _tone(scene: Scene, rng: Rng) -> Change | None:
    tone = pick(rng, TONES)
    after = toned(scene, tone)
    if after is None:
        return None
    asked: list[Fact] = [Background(after.background)]
    asked += [Within(Thing(color=o.color), at(o).box) for o in after.objects]
    if after.text is not None and after.text != scene.text:
        asked.append(Lettering(after.text.string, after.text.color))
    stay = [Within(replace(exactly(o), color=None), at(o).box) for o in after.objects]
    everything = tuple(range(len(scene.objects)))
    return Change(after=after, said=pick(rng, words.TONE[tone]), asked=asked, touched=everything, stay=stay)


CHANGES: dict[str, Callable[[Scene, Rng], Change | None]] = {
    "recolour": _recolour, "refill": _refill, "reshape": _reshape, "add": _add, "remove": _remove,
    "replace": _replace, "move": _move, "resize": _resize, "background": _background, "text": _text, "tone": _tone,
}  # fmt: skip
