"""Questions about a picture whose answer follows from its scene, and the marking of answers.

    question = ask(scene, rng, "color", height=64, width=64)     # "what color is the star?" -> "red"
    score(question, "Red.")                                      # True

A question is asked only where the scene leaves one right answer.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from openlance.errors import UserError
from openlance.media.region import boxes_in
from toyworld.facts import Thing
from toyworld.render import pixel_box
from toyworld.scene import Object, Scene, pick, relation_between, sample_scene
from toyworld.vocabulary import COLORS, FILLS, HELDOUT_PAIRS, OPPOSITE, SHAPES
from toyworld.words import NUMBERS, describe, noun_phrase, plural, said, tells_scene

QUESTIONS = ("caption", "count", "color", "shape", "existence", "relation", "grounding", "ocr")
IOU_THRESHOLD = 0.5


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question with its one right answer, and what marking needs: the scene and the size of the picture."""

    category: str
    question: str
    answer: str
    scene: Scene
    height: int = 64
    width: int = 64


_Said = tuple[str, str] | None  # question and answer; None where the scene has no such question
_CAPTION = ("describe the picture", "describe this image", "what is in the picture?", "what do you see?",
            "what does the image show?", "write a caption")  # fmt: skip
_COLOR = ("what color is {}?", "what colour is {}?", "which color does {} have?", "what is the color of {}?")
_COUNT = ("how many {} are there?", "how many {} are in the picture?", "count the {}", "how many {} do you see?")
_SHAPE = ("what shape is {}?", "which shape is {}?", "what is the shape of {}?")
_EXISTENCE = ("is there {}?", "is there {} in the picture?", "do you see {}?", "does the image show {}?")
_RELATION = ("where is {a} relative to {b}?", "where is {a} compared to {b}?", "on which side of {b} is {a}?",
             "is {a} left, right, above or below {b}?")  # fmt: skip
_GROUNDING = ("detect {}", "locate {}", "find {}", "give the bounding box of {}", "where is {}? answer with a box")
_OCR = ("what does the text say?", "read the text", "what is written in the picture?", "what text is in the image?",
        "which word is shown?")  # fmt: skip
_BESIDE = {"left": "left of", "right": "right of", "above": "above", "below": "below"}


def ask(scene: Scene, rng: np.random.Generator, category: str, *, height: int = 64, width: int = 64) -> Question:
    """A question of one of QUESTIONS about the scene's picture of `height` x `width` pixels.

    Raises ValueError where the scene has none, such as the relation of a single object: see `askable`.
    """
    if category not in QUESTIONS:
        raise UserError(f"question category {category!r} is unknown: use one of {', '.join(QUESTIONS)}")
    found = _ask_grounding(scene, rng, height, width) if category == "grounding" else _ASKERS[category](scene, rng)
    if found is None:
        raise UserError(f"this scene has no {category} question with one right answer: see askable(scene)")
    question, answer = found
    if rng.random() < 0.15:
        question = question[0].upper() + question[1:]
    return Question(category=category, question=question, answer=answer, scene=scene, height=height, width=width)


def askable(scene: Scene) -> tuple[str, ...]:
    """The question categories that this scene has."""
    rng = np.random.default_rng(0)  # which question is drawn does not matter, only whether there is one
    plain = [name for name, asker in _ASKERS.items() if asker(scene, rng) is not None]
    grounding = ["grounding"] if clear_names(scene) else []
    return tuple(name for name in QUESTIONS if name in plain + grounding)


# The scenes that each kind of question is asked about, as categories of sample_scene.
_ABOUT = {
    "caption": ("mixed", "mixed", "attribute", "count", "color", "text"), "count": ("count", "count", "mixed"),
    "color": ("mixed", "attribute", "color", "mixed", "text"), "shape": ("mixed", "attribute", "color"),
    "existence": ("mixed", "attribute", "color"), "relation": ("position", "position", "mixed"),
    "grounding": ("mixed", "attribute", "color"), "ocr": ("text",),
}  # fmt: skip


def sample_question(
    rng: np.random.Generator,
    *,
    category: str | None = None,
    placement: str | float = "free",
    heldout: bool = False,
    height: int = 64,
    width: int = 64,
) -> Question:
    """Draw a question, and a scene for it (its `.scene`); a held out scene has no text, so no "ocr" question."""
    if category is None:
        category = pick(rng, QUESTIONS[:-1] if heldout else QUESTIONS)
    if category not in QUESTIONS or (heldout and category == "ocr"):
        raise UserError(f"no {'held out ' if heldout else ''}question of category {category!r}: use one of "
                         f"{', '.join(QUESTIONS[:-1] if heldout else QUESTIONS)}")  # fmt: skip
    about = [name for name in _ABOUT[category] if not (heldout and name == "text")]
    while True:
        scene = sample_scene(
            rng, placement=placement, category=pick(rng, about), heldout=heldout, aspect=width / height
        )
        if category in askable(scene):
            return ask(scene, rng, category, height=height, width=width)


def clear_names(scene: Scene) -> list[tuple[Object, Thing]]:
    """Every object with a shortest and a fuller name, if that name means no other object."""
    names = []
    for o in scene.objects:
        for thing in (Thing(shape=o.shape), Thing(shape=o.shape, color=o.color), said(o)):
            if sum(thing.means(other) for other in scene.objects) == 1 and (o, thing) not in names:
                names.append((o, thing))
    return names


def _the(thing: Thing, rng: np.random.Generator) -> str:
    return noun_phrase(thing, article="the", rng=rng)


def _ask_caption(scene: Scene, rng: np.random.Generator) -> _Said:
    return pick(rng, _CAPTION), describe(scene)


def _ask_count(scene: Scene, rng: np.random.Generator) -> _Said:
    if not scene.objects:
        return None
    o = pick(rng, scene.objects)
    absent = [shape for shape in SHAPES if all(shape != other.shape for other in scene.objects)]
    u = rng.random()
    if u < 0.15:
        name, n = pick(rng, ("objects", "shapes")), len(scene.objects)
    elif u < 0.25 and absent:
        name, n = plural(pick(rng, absent)), 0
    else:
        thing = Thing(shape=o.shape, color=o.color if rng.random() < 0.4 else None)
        name = noun_phrase(thing, n=2, article="", rng=rng)
        n = sum(thing.means(other) for other in scene.objects)
    return pick(rng, _COUNT).format(name), str(n)


def _ask_color(scene: Scene, rng: np.random.Generator) -> _Said:
    if rng.random() < 0.2:
        return pick(rng, _COLOR).format("the background"), scene.background
    if scene.text is not None:
        return pick(rng, _COLOR).format("the text"), scene.text.color
    names = [(o, thing) for o, thing in clear_names(scene) if thing.color is None]
    for o in scene.objects:  # equal things share one colour: "what color are the stars?"
        alike = [other for other in scene.objects if other.shape == o.shape]
        if len(alike) > 1 and len({other.color for other in alike}) == 1:
            return pick(rng, _COLOR[:2]).format("").replace("is ?", f"are the {plural(o.shape)}?"), o.color
    if not names:
        return pick(rng, _COLOR).format("the background"), scene.background
    o, thing = pick(rng, names)
    return pick(rng, _COLOR).format(_the(thing, rng)), o.color


def _ask_shape(scene: Scene, rng: np.random.Generator) -> _Said:
    if not scene.objects:
        return None
    if len(scene.objects) == 1 and rng.random() < 0.3:
        return pick(rng, _SHAPE).format("the object"), scene.objects[0].shape
    names = [(o, Thing(color=o.color)) for o in scene.objects]
    names += [(o, Thing(color=o.color, fill=o.fill)) for o in scene.objects if o.fill != "solid"]
    clear = [(o, thing) for o, thing in names if sum(thing.means(other) for other in scene.objects) == 1]
    if not clear:
        return None
    o, thing = pick(rng, clear)
    words = f"the {thing.fill} {thing.color}" if thing.fill else f"the {thing.color}"
    return pick(rng, _SHAPE).format(f"{words} {pick(rng, ('object', 'shape', 'thing'))}"), o.shape


def _ask_existence(scene: Scene, rng: np.random.Generator) -> _Said:
    if not scene.objects:
        return None
    o = pick(rng, scene.objects)
    if rng.random() < 0.5:
        thing = pick(rng, (Thing(shape=o.shape), Thing(shape=o.shape, color=o.color), said(o)))
        return pick(rng, _EXISTENCE).format(noun_phrase(thing, rng=rng)), "yes"
    # Never named as absent: a held out pair. Else a model learns that it does not exist.
    shapes = [Thing(shape=shape) for shape in SHAPES]
    pairs = [Thing(shape=s, color=c) for s in SHAPES for c in COLORS if (c, s) not in HELDOUT_PAIRS]
    near = [thing for thing in pairs if thing.shape == o.shape or thing.color == o.color]
    filled = [Thing(o.shape, o.color, fill) for fill in FILLS if fill != "solid"]
    sized = [Thing(o.shape, o.color, size=size) for size in ("small", "large")]
    options = [t for t in pick(rng, (shapes, pairs, near, near, filled + sized)) if not _shown(scene, t)]
    return pick(rng, _EXISTENCE).format(noun_phrase(pick(rng, options), rng=rng)), "no"


def _shown(scene: Scene, thing: Thing) -> bool:
    return any(thing.means(o) for o in scene.objects)


def _ask_relation(scene: Scene, rng: np.random.Generator) -> _Said:
    named = clear_names(scene)
    clear = [
        (ta, relation, tb) for a, ta in named for b, tb in named
        if a is not b and (relation := relation_between(a, b, scene.aspect)) is not None
    ]  # fmt: skip
    if not clear:
        return None
    a, relation, b = pick(rng, clear)
    if rng.random() < 0.2:
        asked = relation if rng.random() < 0.5 else OPPOSITE[relation]
        return f"is {_the(a, rng)} {_BESIDE[asked]} {_the(b, rng)}?", "yes" if asked == relation else "no"
    return pick(rng, _RELATION).format(a=_the(a, rng), b=_the(b, rng)), relation


def _ask_grounding(scene: Scene, rng: np.random.Generator, height: int, width: int) -> _Said:
    names = clear_names(scene)
    if not names:
        return None
    o, thing = pick(rng, names)
    label = noun_phrase(thing, article="")
    box = list(pixel_box(o, height, width))
    return pick(rng, _GROUNDING).format(f"the {label}"), json.dumps([{"bbox_2d": box, "label": label}])


def _ask_ocr(scene: Scene, rng: np.random.Generator) -> _Said:
    return None if scene.text is None else (pick(rng, _OCR), scene.text.string)


_ASKERS: dict[str, Callable[[Scene, np.random.Generator], _Said]] = {
    "caption": _ask_caption, "count": _ask_count, "color": _ask_color, "shape": _ask_shape,
    "existence": _ask_existence, "relation": _ask_relation, "ocr": _ask_ocr,
}  # fmt: skip


def score(question: Question, answer: str) -> bool:
    """Whether an answer is right: the same word after normalisation, for a caption the same things said, for a box
    an intersection over union above 0.5."""
    if question.category == "caption":
        return tells_scene(question.scene, answer)
    if question.category == "grounding":
        true, told = parse_box(question.answer), parse_box(answer)
        return true is not None and told is not None and iou(true, told) > IOU_THRESHOLD
    return normalise(answer) == normalise(question.answer)


_SAME = {"gray": "grey", **{word: str(i) for i, word in enumerate(NUMBERS) if i}, "none": "0", "zero": "0"}


def normalise(answer: str) -> str:
    """Lower case without quotes, articles and full stops; numbers as digits; a side without "of" and "to the"."""
    words = re.sub(r"[\"'.,!“”]", " ", answer.lower()).split()
    words = [word for word in words if word not in ("a", "an", "the", "to", "on", "of")] if len(words) > 1 else words
    return " ".join(_SAME.get(word, word) for word in words)


def parse_box(answer: str) -> tuple[float, float, float, float] | None:
    """The first box, x1 y1 x2 y2, of an answer in Qwen2.5-VL's form; None where there is none."""
    return next((box for box, _ in boxes_in(answer)), None)


def iou(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> float:
    """Intersection over union of two boxes x1, y1, x2, y2."""
    wide, tall = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(wide, 0.0) * max(tall, 0.0)
    areas = sum(max(x2 - x1, 0.0) * max(y2 - y1, 0.0) for x1, y1, x2, y2 in (a, b))
    return shared / (areas - shared) if areas > shared else 0.0
