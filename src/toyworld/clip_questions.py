"""Questions about a clip whose answer follows from its scene and motions, and the marking of answers.

    question = sample_clip_question(rng, category="order")   # "which moves first, the star or the ring?" -> "the ring"
    score_clip(question, "The ring.")                        # True

Order is asked about clips with events: things that begin to move, or appear, one after the other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from openlance.errors import UserError
from toyworld.clips import PLURAL, SINGULAR, describe_clip, motion_words, tells_clip
from toyworld.facts import Count, Thing
from toyworld.motion import (
    DIRECTIONS,
    MOTIONS,
    RESIZING,
    REVERSED,
    STILL,
    ClipScene,
    Motion,
    clip_is_heldout,
    clip_is_valid,
    sample_clip,
)
from toyworld.questions import normalise
from toyworld.scene import Object, pick
from toyworld.words import noun_phrase, parse, plural

CLIP_QUESTIONS = ("caption", "direction", "order", "count", "growth")


@dataclass(frozen=True, kw_only=True)
class ClipQuestion:
    """A question with its one right answer and the clip it is about, which marking needs."""

    category: str
    question: str
    answer: str
    clip: ClipScene


_Said = tuple[str, str] | None  # question and answer; None where the clip has no such question
_Pair = tuple[Object, Motion]
_CAPTION = ("describe the video", "describe this clip", "what happens in the video?", "what do you see?",
            "what does the clip show?", "write a caption")  # fmt: skip
_WHICH_WAY = ("which way does {} move?", "in which direction does {} move?", "where does {} move?",
              "in what direction is {} moving?")  # fmt: skip
_WHAT_DOES = ("what does {} do?", "what happens to {}?", "how does {} move?")
_COUNT = ("how many {} {}?", "count the {} that {}")
_AT = {"start": ("at the start", "at the beginning", "in the first frame"),
       "end": ("at the end", "in the last frame", "at last")}  # fmt: skip
# Shares of the clip at which things begin or appear, far enough apart for five frames.
_EARLY, _LATE = (0.05, 0.25), (0.5, 0.62)


def ask_clip(clip: ClipScene, rng: np.random.Generator, category: str) -> ClipQuestion:
    """A question of one of CLIP_QUESTIONS. Raises ValueError where the clip has none: see `askable_clip`."""
    if category not in CLIP_QUESTIONS:
        raise UserError(f"question category {category!r} is unknown: use one of {', '.join(CLIP_QUESTIONS)}")
    found = _ASKERS[category](clip, rng)
    if found is None:
        raise UserError(f"this clip has no {category} question with one right answer: see askable_clip(clip)")
    question, answer = found
    if rng.random() < 0.15:
        question = question[0].upper() + question[1:]
    return ClipQuestion(category=category, question=question, answer=answer, clip=clip)


def askable_clip(clip: ClipScene) -> tuple[str, ...]:
    """The question categories that this clip has."""
    rng = np.random.default_rng(0)  # which question is drawn does not matter, only whether there is one
    return tuple(name for name in CLIP_QUESTIONS if _ASKERS[name](clip, rng) is not None)


def sample_clip_question(
    rng: np.random.Generator,
    *,
    category: str | None = None,
    placement: str | float = "free",
    heldout: bool = False,
    aspect: float = 1.0,
    frames: int = 9,
) -> ClipQuestion:
    """Draw a question and a clip for it (its `.clip`); keywords as in `sample_clip`."""
    category = category or pick(rng, CLIP_QUESTIONS)
    while True:
        about = pick(rng, _ABOUT[category]) if category in _ABOUT else None
        clip = sample_clip(rng, placement=placement, category=about, heldout=heldout, aspect=aspect, frames=frames)
        if rng.random() < _WITH_EVENTS.get(category, 0.0):
            clip = with_events(clip, rng) or clip
        if category not in CLIP_QUESTIONS or category in askable_clip(clip):
            return ask_clip(clip, rng, category)


# The scenes that some questions are asked about, where any would leave little to ask.
_ABOUT = {
    "order": ("attribute", "attribute", "mixed"), "count": ("attribute", "mixed", "count", "color"),
    "growth": ("attribute", "attribute", "mixed", "color"),
}  # fmt: skip
_WITH_EVENTS = {"order": 1.0, "count": 0.5, "direction": 0.1}  # how often clips that are asked about have events


def with_events(clip: ClipScene, rng: np.random.Generator) -> ClipScene | None:
    """The clip with two unlike things that begin to move, or that appear, one after the other; None where it has no
    two such things or they would meet."""
    movers = [i for i, m in enumerate(clip.motions) if m.kind != STILL]
    appear = len(movers) != 2 or rng.random() < 0.5  # a third mover would be the first to move
    able = [i for i in (range(len(clip.motions)) if appear else movers) if _alone(clip, i)]
    if len(able) < 2:
        return None
    motions = list(clip.motions)
    for i, (low, high) in zip(rng.permutation(able)[:2], (_EARLY, _LATE), strict=True):
        at = float(low + (high - low) * rng.random())
        motions[i] = replace(motions[i], begins=at, appears=at if appear else 0.0)
    changed = replace(clip, motions=tuple(motions))
    heldout = clip_is_heldout(clip)
    return changed if clip_is_valid(changed) and (heldout or not clip_is_heldout(changed)) else None


def _alone(clip: ClipScene, i: int) -> bool:
    """Whether colour and shape name this object and no other."""
    return sum(_name(clip.scene.objects[i]).means(o) for o in clip.scene.objects) == 1


def _name(o: Object) -> Thing:
    return Thing(shape=o.shape, color=o.color)


def _the(o: Object) -> str:
    return noun_phrase(_name(o), article="the")


def _known(clip: ClipScene) -> list[_Pair]:
    """The things that can be asked for by colour and shape."""
    pairs = zip(clip.scene.objects, clip.motions, strict=True)
    return [pair for i, pair in enumerate(pairs) if _alone(clip, i)]


def _short(o: Object, clip: ClipScene, rng: np.random.Generator) -> str:
    """ "the circle" where that is clear, or "the red circle"."""
    alone = sum(o.shape == other.shape for other in clip.scene.objects) == 1
    return noun_phrase(Thing(shape=o.shape), article="the") if alone and rng.random() < 0.5 else _the(o)


def _ask_caption(clip: ClipScene, rng: np.random.Generator) -> _Said:
    if any(m.begins or m.appears for m in clip.motions):
        return None
    return pick(rng, _CAPTION), describe_clip(clip)


def _ask_direction(clip: ClipScene, rng: np.random.Generator) -> _Said:
    known = [(o, m) for o, m in _known(clip) if not m.appears]
    going = [(o, m) for o, m in known if m.kind in DIRECTIONS]
    if not going:
        return None
    u = rng.random()
    if u < 0.25:
        o, m = pick(rng, known)
        return pick(rng, _WHAT_DOES).format(_short(o, clip, rng)), f"it {motion_words(m.kind, SINGULAR)}"
    o, m = pick(rng, going)
    if u < 0.4:
        asked = m.kind if rng.random() < 0.5 else REVERSED[m.kind]
        return f"does {_short(o, clip, rng)} move {asked}?", "yes" if asked == m.kind else "no"
    return pick(rng, _WHICH_WAY).format(_short(o, clip, rng)), m.kind


def _ask_order(clip: ClipScene, rng: np.random.Generator) -> _Said:
    appear = any(m.appears for m in clip.motions)
    timed = [(m.appears if appear else m.begins, o) for o, m in _known(clip) if (m.appears if appear else m.begins)]
    if len(timed) != 2:
        return None
    (_, first), (_, last) = sorted(timed, key=lambda pair: pair[0])
    does = "appear" if appear else pick(rng, ("move", "start to move"))
    thirds = does.replace("appear", "appears").replace("move", "moves") if " " not in does else "starts to move"
    a, b = (_the(o) for o in (pick(rng, ((first, last), (last, first)))))
    if rng.random() < 0.2:
        return f"does {a} {does} before {b}?", "yes" if a == _the(first) else "no"
    when, right = pick(rng, (("first", first), ("first", first), ("last", last)))
    question = pick(rng, ("which {} {}, {} or {}?", "what {} {}: {} or {}?", "which object {} {}?"))
    return question.format(thirds, when, a, b), _the(right)


def _ask_count(clip: ClipScene, rng: np.random.Generator) -> _Said:
    appear = any(m.appears for m in clip.motions)
    if appear:
        when = pick(rng, tuple(_AT))
        shown = clip.at(0 if when == "start" else clip.frames - 1)
        return f"how many objects are there {pick(rng, _AT[when])}?", str(len(shown.objects))
    pairs = list(zip(clip.scene.objects, clip.motions, strict=True))
    kinds = [m.kind for _, m in pairs]
    absent = pick(rng, [kind for kind in MOTIONS if kind not in kinds])
    asked = {motion_words(kind, PLURAL): kinds.count(kind) for kind in {*kinds, absent}}
    if not set(kinds) & set(RESIZING):  # whether growing is moving, nobody can say
        asked["move"] = sum(kind in DIRECTIONS for kind in kinds)
        shape = pick(rng, clip.scene.objects).shape
        n = sum(o.shape == shape and m.kind in DIRECTIONS for o, m in pairs)
        if rng.random() < 0.3:
            return pick(rng, _COUNT).format(plural(shape), "move"), str(n)
    predicate = pick(rng, sorted(asked))
    return pick(rng, _COUNT).format(pick(rng, ("objects", "shapes")), predicate), str(asked[predicate])


def _ask_growth(clip: ClipScene, rng: np.random.Generator) -> _Said:
    known = [(o, m) for o, m in _known(clip) if not m.appears]
    sizing = [(o, m) for o, m in known if m.kind in RESIZING]
    if not sizing:
        return None
    o, m = pick(rng, sizing)
    others = [other for other, _ in known if other is not o]
    only = [motion.kind for motion in clip.motions].count(m.kind) == 1
    u = rng.random()
    if u < 0.15:
        asked = m.kind if rng.random() < 0.5 else REVERSED[m.kind]
        return f"is {_short(o, clip, rng)} {asked}?", "yes" if asked == m.kind else "no"
    if u < 0.3 or not only or not others:
        return f"does {_short(o, clip, rng)} grow or shrink?", f"it {motion_words(m.kind, SINGULAR)}"
    verb = motion_words(m.kind, SINGULAR, rng)
    if u < 0.6:
        return f"which object {verb}?", _the(o)
    a, b = pick(rng, ((o, others[0]), (others[0], o)))
    return f"which one {verb}, {_the(a)} or {_the(b)}?", _the(o)


_ASKERS: dict[str, Callable[[ClipScene, np.random.Generator], _Said]] = {
    "caption": _ask_caption, "direction": _ask_direction, "order": _ask_order, "count": _ask_count,
    "growth": _ask_growth,
}  # fmt: skip


def score_clip(question: ClipQuestion, answer: str) -> bool:
    """Whether an answer is right: for a caption the same things and motions said, for a thing any name that means it
    alone, else the same words after normalisation (with or without "it")."""
    if question.category == "caption":
        return tells_clip(question.clip, answer)
    right, meant = _meant(question, question.answer), _meant(question, answer)
    if right:
        return meant == right
    return _plain(answer) == _plain(question.answer)


def _meant(question: ClipQuestion, answer: str) -> list[Object]:
    """The objects of the clip that an answer names; none where it names no thing."""
    named = [fact for fact in parse(answer) if isinstance(fact, Count)]
    return [o for o in question.clip.scene.objects if [f.n for f in named] == [1] and named[0].thing.means(o)]


def _plain(answer: str) -> str:
    return normalise(answer).removeprefix("it ")
