"""Batches of the procedural world: lists of segments, drawn anew from (seed, step), so that a resumed run sees exactly
what an uninterrupted one would. They have no task priors, and conditions are dropped by whoever reads them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np

from openlance.media.clip import Clip
from openlance.media.region import covered
from openlance.sequence import tasks
from openlance.sequence.segment import Region as Area
from openlance.sequence.segment import Segments
from openlance.sequence.tasks import Views
from toyworld.edits import KINDS, WHOLE, sample_edit
from toyworld.facts import Fact, Region
from toyworld.labels import dense_labels
from toyworld.questions import ask, askable
from toyworld.reasoning import STEPS, sample_reasoning
from toyworld.regions import around, changed, hole, in_part
from toyworld.render import render
from toyworld.scene import Scene, sample_scene
from toyworld.subjects import sample_subject
from toyworld.suites.images import Drawing
from toyworld.words import caption

NO_SIZE = (1, 1, 1)  # of an answer
# Edits that leave a part of the picture as it is; what goes from one place to another has little of it.
PART_EDITS = {kind: 0.0 if kind in WHOLE else 0.5 if kind == "move" else 1.0 for kind in KINDS}


@dataclass(frozen=True, kw_only=True)
class WorldMixture:
    """What a batch holds. Weights need not add up to one."""

    drawn: int = 32  # pictures to generate
    asked: int = 24  # pictures with questions
    questions: int = 4  # questions per picture
    question_weights: dict[str, float] = field(  # of the kinds of questions, 1 where not named
        default_factory=lambda: {"relation": 4.0, "ocr": 3.0}  # learned last of all
    )
    edited: int = 0  # pairs of a picture and its edit
    subjects: int = 0  # pictures of given objects
    spread: tuple[float, float] = (0.0, 1.0)  # placement, canonical (0) to free (1), of what the words leave open
    sizes: dict[tuple[int, int], float] = field(default_factory=lambda: {(64, 64): 1.0})
    scenes: dict[str, float] = field(
        default_factory=lambda: {
            "single": 1.0,
            "color": 1.2,
            "two": 1.5,
            "attribute": 2.2,
            "position": 2.2,
            "count": 2.0,
            "text": 3.0,
            "mixed": 0.6,
        }  # fmt: skip
    )
    asked_scenes: dict[str, float] = field(
        default_factory=lambda: {"mixed": 3, "attribute": 2, "position": 3, "count": 1, "color": 0.3, "text": 3}
    )

    edits: dict[str, float] = field(default_factory=lambda: dict.fromkeys(KINDS, 1.0) | {"add": 1.5, "move": 1.5})
    given: dict[int, float] = field(default_factory=lambda: {1: 0.6, 2: 0.4})  # how many objects
    parts: int = 0  # edits of a region, all else given
    holes: int = 0  # pictures of which a part is not there yet
    reasoned: int = 0  # questions of two steps, each about a picture of its own
    steps: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STEPS, 1.0))
    part_edits: dict[str, float] = field(default_factory=lambda: dict(PART_EDITS))


Made = tuple[Segments, Any]  # a sample, and what it was made from


@dataclass(frozen=True)
class WorldBatch:
    samples: list[Segments]
    labels: dict[bytes, np.ndarray]  # dense labels of a picture, by the key of its clip
    truths: list[Any]  # what each sample was made from, by which a result is judged; None of questions


def weighed(rng: np.random.Generator, weights: dict):
    """One of the keys, as often as its weight says."""
    names, w = list(weights), np.array(list(weights.values()), float)
    return names[int(rng.choice(len(names), p=w / w.sum()))]


def _several(rng: np.random.Generator, kinds: tuple[str, ...], mixture: WorldMixture) -> list[str]:
    """Different kinds of questions to ask about one picture."""
    w = np.array([mixture.question_weights.get(kind, 1.0) for kind in kinds])
    many = min(mixture.questions, len(kinds))
    return [kinds[i] for i in rng.choice(len(kinds), many, replace=False, p=w / w.sum())]


class _Said(Protocol):
    """What words and a scene come as."""

    @property
    def facts(self) -> tuple[Fact, ...]: ...


S = TypeVar("S", bound=_Said)


def placed(rng: np.random.Generator, spread: tuple[float, float], draw: Callable[..., S]) -> S:
    """Something to draw. If its words say where things stand, these stand anywhere; if not, no further from their
    usual place than the spread: the less the words leave open, the sooner it is learned (docs/nano.md has
    figures)."""
    anywhere = draw(placement=1.0)
    if any(isinstance(fact, Region) for fact in anywhere.facts):
        return anywhere
    return draw(placement=float(rng.uniform(*spread)))


class Captioned(NamedTuple):
    scene: Scene
    text: str
    facts: tuple[Fact, ...]


def _captioned(rng: np.random.Generator, category: str, aspect: float, placement: float) -> Captioned:
    scene = sample_scene(rng, placement=placement, category=category, aspect=aspect)
    return Captioned(scene, *caption(scene, rng))


def picture(scene: Scene, size: tuple[int, int]) -> Clip:
    return Clip(render(scene, *size)[None])


def world_batch(mixture: WorldMixture, seed: int, step: int) -> WorldBatch:
    """The batch of one step: a pure function of its arguments."""
    rng = np.random.default_rng((seed, step))
    samples, labels, truths = list[Segments](), dict[bytes, np.ndarray](), list[Any]()
    for _ in range(mixture.drawn):
        size, category = weighed(rng, mixture.sizes), weighed(rng, mixture.scenes)
        scene, text, facts = placed(rng, mixture.spread, partial(_captioned, rng, category, size[1] / size[0]))
        samples.append(tasks.text_to_visual(text, [], (1, *size), picture(scene, size)))
        truths.append(Drawing(prompt=text, facts=facts, scene=scene, kind=category))
    for _ in range(mixture.asked):
        size = weighed(rng, mixture.sizes)
        category = weighed(rng, mixture.asked_scenes)
        scene = sample_scene(rng, placement=float(rng.random()), category=category, aspect=size[1] / size[0])
        clip = picture(scene, size)
        labels[clip.key] = dense_labels(scene, *size)
        for kind in _several(rng, askable(scene), mixture):
            q = ask(scene, rng, kind, height=size[0], width=size[1])
            samples.append(tasks.understand(q.question, [Views(clip, clip)], NO_SIZE, q.answer))
            truths.append(None)
    for _ in range(mixture.reasoned):
        size, placement = weighed(rng, mixture.sizes), float(rng.random())
        q = sample_reasoning(
            rng, category=weighed(rng, mixture.steps), placement=placement, height=size[0], width=size[1]
        )
        clip = picture(q.scene, size)
        labels[clip.key] = dense_labels(q.scene, *size)
        samples.append(tasks.understand(q.question, [Views(clip, clip)], NO_SIZE, q.answer))
        truths.append(None)
    more = (_parts(mixture, rng, labels), _holes(mixture, rng))
    for segments, truth in (*_edited(mixture, rng, labels), *_given(mixture, rng, labels), *more[0], *more[1]):
        samples.append(segments)
        truths.append(truth)
    return WorldBatch(samples, labels, truths)


def _edited(mixture: WorldMixture, rng: np.random.Generator, labels: dict[bytes, np.ndarray]) -> Iterator[Made]:
    for _ in range(mixture.edited):
        size = weighed(rng, mixture.sizes)
        kind, placement = weighed(rng, mixture.edits), float(rng.random())
        edit = sample_edit(rng, kind=kind, placement=placement, aspect=size[1] / size[0])
        before, after = (Clip(pixels[None]) for pixels in edit.pictures(*size))
        labels[before.key] = dense_labels(edit.before, *size)
        yield tasks.edit(edit.instruction, [Views(before, before)], (1, *size), after), edit


def _parts(mixture: WorldMixture, rng: np.random.Generator, labels: dict[bytes, np.ndarray]) -> Iterator[Made]:
    for _ in range(mixture.parts):
        size, inside = weighed(rng, mixture.sizes), None
        while inside is None:
            kind, placement = weighed(rng, mixture.part_edits), float(rng.random())
            edit = sample_edit(rng, kind=kind, placement=placement, aspect=size[1] / size[0])
            before, after = (Clip(pixels[None]) for pixels in edit.pictures(*size))
            inside = in_part(rng, partial(around, rng, changed(before.pixels, after.pixels)), 4)
        labels[before.key] = dense_labels(edit.before, *size)
        sample = tasks.edit_part(edit.instruction, [Views(before, before)], (1, *size), after)
        yield tasks.within(sample, Area(inside)), edit


def _holes(mixture: WorldMixture, rng: np.random.Generator) -> Iterator[Made]:
    for _ in range(mixture.holes):
        size, category = weighed(rng, mixture.sizes), weighed(rng, mixture.scenes)
        scene, text, facts = placed(rng, mixture.spread, partial(_captioned, rng, category, size[1] / size[0]))
        whole, inside = picture(scene, size), in_part(rng, partial(hole, rng, scene, (1, *size)))
        assert inside is not None, "borders always have an inside"
        known = Clip(covered(whole.pixels, inside))
        sample = tasks.fill_part(text, [Views(known, known)], (1, *size), whole)
        yield tasks.within(sample, Area(inside)), Drawing(prompt=text, facts=facts, scene=scene)


def _given(mixture: WorldMixture, rng: np.random.Generator, labels: dict[bytes, np.ndarray]) -> Iterator[Made]:
    for _ in range(mixture.subjects):
        size = weighed(rng, mixture.sizes)
        ask = partial(sample_subject, rng, n=weighed(rng, mixture.given), aspect=size[1] / size[0])
        subject = placed(rng, mixture.spread, ask)
        views = []
        for scene in subject.references:
            clip = picture(scene, size)
            labels[clip.key] = dense_labels(scene, *size)
            views.append(Views(clip, clip))
        target = picture(subject.scene, size)
        yield tasks.subject_driven(subject.prompt, views, (1, *size), target), subject
