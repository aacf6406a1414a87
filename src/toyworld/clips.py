"""Sentences about clips, and back: what `words` is for pictures.

    caption_clip(clip, rng)  ->  'a red circle moves left while a blue square stays still', (Count(...), Moves(...))
    describe_clip(clip)      ->  'a blue square staying still and a red circle moving left on a black background'
    parse_clip(text)         ->  the facts that either of them asserts

A thing whose motion is left unsaid stands still.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from toyworld.facts import Background, Count, Fact, Thing, holds
from toyworld.motion import MOTIONS, STILL, ClipScene
from toyworld.scene import pick
from toyworld.vocabulary import COLORS, DEFAULT_BACKGROUND, FILLS, SHAPES
from toyworld.words import noun_phrase, parse, said


@dataclass(frozen=True)
class Moves:
    """Exactly n such things have this motion, one of MOTIONS."""

    thing: Thing
    motion: str
    n: int = 1


ClipFact: TypeAlias = Fact | Moves
Group: TypeAlias = tuple[Thing, str]  # things that a caption names together, and their motion

# Participle, singular, plural; the first wording of each motion is the most frequent one.
_VERBS = {"move": ("moving", "moves", "move"), "go": ("going", "goes", "go"), "slide": ("sliding", "slides", "slide"),
          "get": ("getting", "gets", "get"), "grow": ("growing", "grows", "grow"),
          "shrink": ("shrinking", "shrinks", "shrink"), "stay": ("staying", "stays", "stay"),
          "stand": ("standing", "stands", "stand")}  # fmt: skip
_WORDINGS = {
    "left": ("move left", "move to the left", "go left", "slide left"),
    "right": ("move right", "move to the right", "go right", "slide right"),
    "up": ("move up", "go up", "slide up", "move upwards"),
    "down": ("move down", "go down", "slide down", "move downwards"),
    "growing": ("grow", "get bigger", "get larger"),
    "shrinking": ("shrink", "get smaller"),
    STILL: ("stay still", "stand still", "stay in place"),
}
_OPENINGS = ("a video of", "a clip of", "an animation of")
PARTICIPLE, SINGULAR, PLURAL = range(3)


def motion_words(motion: str, form: int, rng: np.random.Generator | None = None) -> str:
    """ "moving to the left", "moves left", "move left"; without a generator always the first wording."""
    wordings = _WORDINGS[motion]
    wording = wordings[0] if rng is None or rng.random() < 0.55 else pick(rng, wordings)
    verb, _, rest = wording.partition(" ")
    return f"{_VERBS[verb][form]} {rest}".strip()


def groups_of(clip: ClipScene) -> Counter[Group]:
    """The things of a clip as captions name them, equal ones together, with their motions."""
    return Counter((said(o), m.kind) for o, m in zip(clip.scene.objects, clip.motions, strict=True))


def clip_facts(clip: ClipScene, background: bool = True) -> tuple[ClipFact, ...]:
    """All that a full caption asserts: which things there are, how each moves, on what background."""
    return _facts(groups_of(clip), Background(clip.scene.background) if background else None)


def _facts(groups: Counter[Group], background: Background | None) -> tuple[ClipFact, ...]:
    counts: Counter[Thing] = Counter()
    for (thing, _), n in groups.items():
        counts[thing] += n
    moves = [Moves(thing, motion, n) for (thing, motion), n in groups.items()]
    return (*(Count(thing, n) for thing, n in counts.items()), *moves, *([background] if background else []))


def clip_holds(clip: ClipScene, fact: ClipFact) -> bool:
    """Whether a fact is true of a clip; what pictures show is asked of all its objects as they stand at first."""
    if isinstance(fact, Moves):
        pairs = zip(clip.scene.objects, clip.motions, strict=True)
        return sum(fact.thing.means(o) and m.kind == fact.motion for o, m in pairs) == fact.n
    return holds(clip.scene, fact)


def caption_clip(
    clip: ClipScene, rng: np.random.Generator, article: str | None = None, names: Mapping[Thing, str] | None = None
) -> tuple[str, tuple[ClipFact, ...]]:
    """A sentence in varied wording that names every thing and motion, and the facts that it asserts.

    article: "the" speaks of things that are known already, from a given first frame; their background goes without
    saying. names: other words for some things, such as "the given object".
    """
    groups = groups_of(clip)
    order = list(groups)
    rng.shuffle(order)
    sentence = article == "the" or rng.random() < 0.45
    nouns = [(names or {}).get(group[0]) or _noun(group[0], groups[group], article, rng) for group in order]
    items = [_item(noun, group, groups[group], sentence, rng) for noun, group in zip(nouns, order, strict=True)]
    if not sentence and order[-1][1] == STILL and len(order) > 1 and rng.random() < 0.6:
        # Only the last one: in "a star and a circle growing" both would grow.
        items[-1] = nouns[-1]
    *most, last = items
    joint = " while " if sentence and len(items) == 2 and rng.random() < 0.5 else " and "
    text = (", ".join(most) + joint if most else "") + last
    background = None
    if article is None and (clip.scene.background != DEFAULT_BACKGROUND or rng.random() < 0.15):
        background = Background(clip.scene.background)
        text += _on(clip.scene.background)
    if not sentence and rng.random() < 0.25:
        text = f"{pick(rng, _OPENINGS)} {text}"
    return _dress(text, rng), _facts(groups, background)


def _noun(thing: Thing, n: int, article: str | None, rng: np.random.Generator) -> str:
    return noun_phrase(thing, n, f"{article} {_NUMBERS[n]}" if n > 1 and article else article, rng)


def _item(noun: str, group: Group, n: int, sentence: bool, rng: np.random.Generator) -> str:
    form = (SINGULAR if n == 1 else PLURAL) if sentence else PARTICIPLE
    return f"{noun} {motion_words(group[1], form, rng)}"


_NUMBERS = {2: "two", 3: "three"}


def _on(background: str) -> str:
    return f" on {'an' if background[0] in 'aeiou' else 'a'} {background} background"


def _dress(text: str, rng: np.random.Generator) -> str:
    if rng.random() < 0.15:
        text = text[0].upper() + text[1:]
    return text + "." if rng.random() < 0.15 else text


def describe_clip(clip: ClipScene) -> str:
    """The full caption in one fixed wording: every thing in vocabulary order, its motion, and the background."""
    groups = groups_of(clip)
    items = [
        f"{noun_phrase(thing, groups[thing, motion])} {motion_words(motion, PARTICIPLE)}"
        for thing, motion in sorted(groups, key=_rank)
    ]
    *most, last = items
    return (", ".join(most) + " and " if most else "") + last + _on(clip.scene.background)


def _rank(group: Group) -> tuple[int, ...]:
    thing, motion = group
    sizes = ("small", None, "large")
    return (
        SHAPES.index(thing.shape or ""), list(COLORS).index(thing.color or ""),
        FILLS.index(thing.fill or "solid"), sizes.index(thing.size), MOTIONS.index(motion),
    )  # fmt: skip


_JOINT = re.compile(r", and |,? while |, | and ")
_OPENING = re.compile(r"^(?:an? (?:video|clip|animation) (?:of|with|showing) )")
_MOTION = re.compile(
    r" (?:(?:that |which )?(?:is |are ))?(?:(?:mov(?:ing|es?)|go(?:ing|es)?|slid(?:ing|es?)) (?:to the )?"
    r"(?P<way>left|right|up|down)(?:wards?)?"
    r"|(?P<grow>grow(?:ing|s)?|get(?:ting|s)? (?:bigger|larger))"
    r"|(?P<shrink>shrink(?:ing|s)?|get(?:ting|s)? smaller)"
    r"|(?P<still>(?:stay(?:ing|s)?|stand(?:ing|s)?) (?:still|in place)|not moving))(?= |$)"
)


def parse_clip(text: str) -> tuple[ClipFact, ...]:
    """The facts that a caption of a clip asserts; an empty tuple where it is not a sentence of this world."""
    plain = _OPENING.sub("", " ".join(text.lower().split()).rstrip(". "), count=1)
    groups: Counter[Group] = Counter()
    background: Background | None = None
    for item in _JOINT.split(plain):
        found = _MOTION.search(item)
        rest = item[: found.start()] + item[found.end() :] if found else item
        facts = parse(re.sub(r"^the (?=two |three )", "", rest))
        counted = [fact for fact in facts if isinstance(fact, Count)]
        if len(counted) != 1 or any(not isinstance(fact, Count | Background) for fact in facts):
            return ()
        groups[counted[0].thing, _motion_of(found)] += counted[0].n
        background = next((fact for fact in facts if isinstance(fact, Background)), background)
    return _facts(groups, background)


def _motion_of(found: re.Match[str] | None) -> str:
    if found is None or found["still"]:
        return STILL
    return found["way"] or ("growing" if found["grow"] else "shrinking")


def tells_clip(clip: ClipScene, text: str) -> bool:
    """Whether a caption names exactly what the clip shows: each thing with shape, colour, fill (solid where unsaid) and
    motion; a size or a background may be left out but not be wrong."""
    facts = parse_clip(text)
    told = _totals((f.thing, f.motion, f.n) for f in facts if isinstance(f, Moves))
    true = _totals((thing, motion, n) for (thing, motion), n in groups_of(clip).items())
    others = [f for f in facts if isinstance(f, Background)]
    sizes = [f.thing for f in facts if isinstance(f, Count) and f.thing.size]
    return (
        bool(facts) and told == true and all(clip_holds(clip, f) for f in others)
        and all(any(thing.means(o) for o in clip.scene.objects) for thing in sizes)
    )  # fmt: skip


def _totals(groups: Iterable[tuple[Thing, str, int]]) -> Counter[tuple[str | None, ...]]:
    totals: Counter[tuple[str | None, ...]] = Counter()
    for thing, motion, n in groups:
        totals[thing.shape, thing.color, thing.fill or "solid", motion] += n
    return totals
