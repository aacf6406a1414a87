"""Sentences about a scene, and back: `caption` varies its wording, `describe` says everything in one fixed way,
`parse` turns either of them into facts.

    caption(scene, rng)   ->  'there is a red circle to the left of a blue square', (Count(...), ..., Relation(...))
    describe(scene)       ->  'a red circle and a blue square on a black background'

What is left unsaid has one usual look: solid, medium, on black. A colour that is left unsaid can be any.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from openlance.errors import UserError
from toyworld.facts import Background, Count, Fact, Lettering, Region, Relation, Thing, holds
from toyworld.scene import Object, Scene, displaced, region_of, relation_between
from toyworld.vocabulary import BACKGROUNDS, COLORS, DEFAULT_BACKGROUND, FILLS, SHAPES, SIZES

NUMBERS = ("no", "one", "two", "three", "four")
_SIZE_WORDS = {word: word for word in SIZES} | {"tiny": "small", "little": "small", "big": "large"}
_SPELLINGS = {"gray": "grey", "center": "centre", "hollow": "outlined", "filled": "solid", "stripy": "striped"}
_OPENINGS = ("a picture of", "an image of", "a photo of", "a drawing of", "draw", "there is")
RELATION_WORDS = {
    "left": ("left of", "to the left of", "on the left of"),
    "right": ("right of", "to the right of", "on the right of"),
    "above": ("above", "over", "on top of"),
    "below": ("below", "under", "beneath"),
}
REGION_WORDS = {
    ("top", "left"): ("at the top left", "in the top left corner", "in the upper left corner"),
    ("top", "centre"): ("at the top",),
    ("top", "right"): ("at the top right", "in the top right corner", "in the upper right corner"),
    ("middle", "left"): ("on the left",),
    ("middle", "centre"): ("in the centre", "in the middle", "in the center"),
    ("middle", "right"): ("on the right",),
    ("bottom", "left"): ("at the bottom left", "in the bottom left corner", "in the lower left corner"),
    ("bottom", "centre"): ("at the bottom",),
    ("bottom", "right"): ("at the bottom right", "in the bottom right corner", "in the lower right corner"),
}


def plural(shape: str) -> str:
    return shape + ("es" if shape.endswith("s") else "s")


def noun_phrase(thing: Thing, n: int = 1, article: str | None = None, rng: np.random.Generator | None = None) -> str:
    """ "a large striped red circle"; without a generator in one fixed wording."""
    large = _choose(rng, ("large", "large", "big"))
    size = {"large": large}.get(thing.size or "", thing.size)
    adjectives = [word for word in (size, thing.fill, thing.color) if word]
    if rng is not None and thing.fill and thing.color and rng.random() < 0.2:
        adjectives[-2:] = adjectives[:-3:-1]  # "a red striped circle"
    noun = thing.shape or "shape"
    words = [*adjectives, noun if n == 1 else plural(noun)]
    if article is None and n == 1:
        article = "an" if words[0][0] in "aeiou" else "a"
    elif article is None:
        article = NUMBERS[n] if rng is None or rng.random() < 0.85 else str(n)
    return " ".join([article or "", *words]).strip()


def _choose(rng: np.random.Generator | None, options: Sequence[str]) -> str:
    return options[0] if rng is None else options[int(rng.integers(len(options)))]


def _solid(thing: Thing) -> Thing:
    return replace(thing, fill=thing.fill or "solid")


def _article(rng: np.random.Generator | None) -> str | None:
    """What stands for "a", for a whole caption: once in a while "one" or nothing, "red circle left of blue square"."""
    u = 1.0 if rng is None else rng.random()
    return "" if u < 0.05 else "one" if u < 0.1 else None


def said(o: Object, color: bool = True) -> Thing:
    """An object as captions name it: without the fill and size that go without saying."""
    fill, size = o.fill if o.fill != "solid" else None, o.size if o.size != "medium" else None
    return Thing(o.shape, o.color if color else None, fill, size)


def caption(scene: Scene, rng: np.random.Generator, category: str | None = None) -> tuple[str, tuple[Fact, ...]]:
    """A sentence in varied wording, and the facts that it asserts.

    category: what the sentence tells (see scene.CATEGORIES), by default what the scene was drawn for: "single" and
    "two" name no colours, "position" says a relation. Raises ValueError where the scene does not suit it.
    """
    category = category or scene.category
    if category == "position":
        body, facts = _say_relation(scene, rng)
    else:
        body, facts = _say_items(scene, rng, colored=category not in ("single", "two"))
    if scene.background != DEFAULT_BACKGROUND or rng.random() < 0.15:
        body += say_background(scene.background, rng)
        facts.append(Background(scene.background))
    if not all(holds(scene, fact) for fact in facts):
        raise UserError(f"a {scene.category} scene has no caption of category {category!r}: leave the category out")
    return _dress(body, rng), tuple(facts)


def _say_relation(scene: Scene, rng: np.random.Generator) -> tuple[str, list[Fact]]:
    pair = scene.objects
    relation = relation_between(pair[0], pair[1], scene.aspect) if len(pair) == 2 else None
    if relation is None:
        raise UserError("the objects of this scene stand in no clear relation: caption it as 'mixed'")
    a, b = (said(o) for o in scene.objects)
    article = _article(rng)
    words = _choose(rng, (RELATION_WORDS[relation][0], *RELATION_WORDS[relation]))
    verb = "is " if rng.random() < 0.12 else ""
    body = f"{noun_phrase(a, 1, article, rng)} {verb}{words} {noun_phrase(b, 1, article, rng)}"
    return body, [Count(a), Count(b), Relation(a, relation, b)]


def _say_items(scene: Scene, rng: np.random.Generator | None, colored: bool) -> tuple[str, list[Fact]]:
    """Every object and text of the scene, equal objects together; without a generator in vocabulary order."""
    regions = rng is not None and rng.random() < (0.5 if displaced(scene) else 0.05)
    solid = rng is not None and rng.random() < 0.04  # say once in a while what goes without saying
    groups = Counter(_solid(said(o, colored)) if solid else said(o, colored) for o in scene.objects)
    things = list(groups) if rng is not None else sorted(groups, key=_rank)
    article = _article(rng)
    items: list[str] = []
    facts: list[Fact] = [Count(thing, groups[thing]) for thing in things]
    for thing in things:
        items.append(noun_phrase(thing, groups[thing], article if groups[thing] == 1 else None, rng))
        cell = region_of(next(o for o in scene.objects if thing.means(o)))
        if regions and groups[thing] == 1 and cell is not None:
            items[-1] += " " + _choose(rng, REGION_WORDS[cell])
            facts.append(Region(thing, *cell))
    if scene.text is not None:
        color = scene.text.color if rng is None or scene.text.color != "white" or rng.random() < 0.3 else None
        items.append(_say_text(scene.text.string, color, rng))
        facts.append(Lettering(scene.text.string, color))
    *most, last = items or ["nothing"]
    joint = ", and " if rng is not None and len(most) > 1 and rng.random() < 0.3 else " and "
    return (", ".join(most) + joint if most else "") + last, facts


def _rank(thing: Thing) -> tuple[int, int, int, int]:
    sizes = ("small", None, "large")
    return (
        SHAPES.index(thing.shape or ""), list(COLORS).index(thing.color or ""),
        FILLS.index(thing.fill or "solid"), sizes.index(thing.size),
    )  # fmt: skip


def _say_text(string: str, color: str | None, rng: np.random.Generator | None) -> str:
    if color is None:
        return _choose(rng, ("the text", "the text", "the word", "text that says")) + f' "{string}"'
    form = _choose(rng, ('the text "{}" in {}', 'the text "{}" in {}', 'the word "{}" in {}', 'the {1} text "{0}"'))
    return form.format(string, color)


def say_background(color: str, rng: np.random.Generator | None) -> str:
    color = "gray" if color == "grey" and rng is not None and rng.random() < 0.15 else color
    article = "an" if color[0] in "aeiou" else "a"
    forms = (f" on {article} {color} background", f" on {color}", f" with {article} {color} background")
    return forms[0] if rng is None or rng.random() < 0.8 else _choose(rng, forms[1:])


def _dress(body: str, rng: np.random.Generator) -> str:
    """Put an opening before it; sometimes a capital or a full stop."""
    if rng.random() < 0.3:
        opening = _choose(rng, _OPENINGS)
        several = body.split()[0] in (*NUMBERS[2:], "2", "3", "4")
        body = f"{'there are' if several and opening == 'there is' else opening} {body}"
        body = _RELATION.sub(lambda m: m[0].replace(" is ", " "), body)  # the opening has the verb
    if rng.random() < 0.2:
        body = body[0].upper() + body[1:]
    return body + "." if rng.random() < 0.15 else body


def describe(scene: Scene) -> str:
    """The full caption in one fixed wording: every object, in vocabulary order, and the background."""
    return _say_items(scene, None, colored=True)[0] + say_background(scene.background, None)


_OPENING = re.compile(
    r"^(?:there (?:is|are) |(?:(?:please )?(?:draw|paint|show|make|generate) (?:me )?)?"
    r"(?:an? (?:picture|image|photo|drawing) (?:of|with|showing) )?)"
)
_BACKGROUND = re.compile(rf",? (?:(?:on|with|against) (?:an? )?)?({'|'.join(BACKGROUNDS)})(?: background)?$")
_RELATION = re.compile(
    r" (?:is )?(?:(?:to the |on the )?(left|right) of|(above|over|on top of)|(below|under|beneath)) "
)
_REGION = re.compile(
    r" (?:at|in|on) the (?:(?P<corner>(?:top|upper|bottom|lower) (?:left|right))(?: corner)?|(?P<side>\w+))$"
)
_TEXT = re.compile(
    rf'^(?:the |an? )?(?:({"|".join(COLORS)}) )?(?:text|word|letters?)(?: that says| saying)? "(\w+)"'
    rf'(?: (?:written )?in ({"|".join(COLORS)}))?$', re.IGNORECASE
)  # fmt: skip
_NUMBER_WORDS = {"a": 1, "an": 1, "one": 1, "the": 1, "1": 1, "two": 2, "2": 2, "three": 3, "3": 3, "four": 4, "4": 4}
_NOUNS = {shape: shape for shape in SHAPES} | {plural(shape): shape for shape in SHAPES}


def parse(text: str) -> tuple[Fact, ...]:
    """The facts that a caption asserts; an empty tuple where it is not a sentence of this world."""
    text = re.sub(r"[“”']", '"', " ".join(text.split())).rstrip(". ")
    plain = "".join(part if i % 2 else part.lower() for i, part in enumerate(re.split(r'("[^"]*")', text)))
    plain = re.sub(r"\b(" + "|".join(_SPELLINGS) + r")\b", lambda m: _SPELLINGS[m[0]], plain)
    plain = _OPENING.sub("", plain, count=1)
    facts: list[Fact] = []
    found = _BACKGROUND.search(plain)
    if found and not _TEXT.match(plain):
        plain, facts = plain[: found.start()], [Background(found[1])]
    if plain == "nothing":
        return tuple(facts)
    sides = _RELATION.split(plain)
    said_facts = _parse_relation(sides) if len(sides) > 1 else _parse_items(plain)
    return (*said_facts, *facts) if said_facts else ()


def _parse_relation(sides: list[str]) -> list[Fact]:
    if len(sides) != 5:
        return []
    first, beside, above, below, second = sides
    things = [_parse_thing(side) for side in (first, second)]
    if any(found is None or found.n != 1 for found in things):
        return []
    a, b = (found.thing for found in things if found)
    return [Count(a), Count(b), Relation(a, beside or ("above" if above else "below"), b)]


def _parse_items(text: str) -> list[Fact]:
    counts: list[Fact] = []
    others: list[Fact] = []
    for item in re.split(r", and |, | and ", text):
        found = _TEXT.match(item)
        if found:
            others.append(Lettering(found[2], found[1] or found[3]))
            continue
        place = _REGION.search(item)
        counted = _parse_thing(item[: place.start()] if place else item)
        cell = _parse_region(place) if place else ("", "")
        if counted is None or cell is None:
            return []
        counts.append(counted)
        if place:
            others.append(Region(counted.thing, *cell))
    return counts + others


def _parse_region(found: re.Match[str]) -> tuple[str, str] | None:
    if found["corner"]:
        vertical, horizontal = found["corner"].split()
        return {"upper": "top", "lower": "bottom"}.get(vertical, vertical), horizontal
    return {
        "top": ("top", "centre"), "bottom": ("bottom", "centre"), "left": ("middle", "left"),
        "right": ("middle", "right"), "centre": ("middle", "centre"), "middle": ("middle", "centre"),
    }.get(found["side"])  # fmt: skip


def _parse_thing(phrase: str) -> Count | None:
    """ "two small red circles" as a count; None where a word is unknown, repeated, or missing."""
    *adjectives, noun = phrase.split() or [""]
    if noun not in _NOUNS:
        return None
    n = _NUMBER_WORDS[adjectives.pop(0)] if adjectives and adjectives[0] in _NUMBER_WORDS else 1
    named: dict[str, str] = {}
    for word in adjectives:
        kind = "size" if word in _SIZE_WORDS else "fill" if word in FILLS else "color" if word in COLORS else None
        if kind is None or kind in named:
            return None
        named[kind] = _SIZE_WORDS.get(word, word)
    return Count(Thing(_NOUNS[noun], named.get("color"), named.get("fill"), named.get("size")), n)


def tells_scene(scene: Scene, text: str) -> bool:
    """Whether a caption names exactly what the scene shows: each object with its shape, colour and fill (solid where
    unsaid) and each text; a size, a background, a place or a relation may be left out but not be wrong."""
    facts = parse(text)
    counts = [fact for fact in facts if isinstance(fact, Count)]
    told: Counter[tuple[str | None, ...]] = Counter()
    for fact in counts:
        told[fact.thing.shape, fact.thing.color, fact.thing.fill or "solid"] += fact.n
    true = Counter((o.shape, o.color, o.fill) for o in scene.objects)
    sizes_fit = all(sum(fact.thing.means(o) for o in scene.objects) >= fact.n for fact in counts)
    strings = {fact.string for fact in facts if isinstance(fact, Lettering)}
    others = [fact for fact in facts if not isinstance(fact, Count)]
    return (
        bool(facts) and told == true and sizes_fit
        and strings == ({scene.text.string} if scene.text else set())
        and all(holds(scene, fact) for fact in others)
    )  # fmt: skip
