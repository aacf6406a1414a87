"""Suites of the world benchmark: pictures drawn from prompts (t2i), and questions about true pictures, of one step
(vqa) and of two (vqa.reasoning)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from openlance.eval.suite import HELDOUT, Model, Outcome, Suite, chunks, generator, sampling_seed
from openlance.rl.rewards.ocr import rapid_ocr
from toyworld.facts import Fact
from toyworld.judge import is_right, nothing_else
from toyworld.outlines import second_opinion
from toyworld.questions import QUESTIONS, Question, sample_question, score
from toyworld.reasoning import STEPS, sample_reasoning
from toyworld.render import render
from toyworld.scene import Scene, sample_scene
from toyworld.vocabulary import CATEGORIES, HELDOUT_CATEGORIES
from toyworld.words import caption

if TYPE_CHECKING:
    from toyworld.suites.asked import Asked

LONGEST_TEXT = 3  # characters asked for in "text"; questions about text ("ocr") go up to 4
_DRAWN, _ASKED, _STEPS = (*CATEGORIES, HELDOUT), (*QUESTIONS, HELDOUT), (*STEPS, HELDOUT)
_REASONING = 19  # number of the suite of questions of two steps; those of the others are 0 and 1


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """A prompt, what must hold in its picture, one scene of which all of it is true, and its kind, where it is told."""

    prompt: str
    facts: tuple[Fact, ...]
    scene: Scene
    kind: str = ""


@dataclass(frozen=True, kw_only=True, eq=False)
class Asking:
    """A picture, uint8 (H, W, 3), and a question about it with its answer."""

    pixels: np.ndarray
    question: Question


def drawings(category: str, bench: Asked) -> Iterator[Drawing]:
    """The prompts of one category: always the same for a seed, and the first n the same whatever `samples` is."""
    rng, done = generator(0, _DRAWN.index(category), bench), 0
    while done < bench.samples:
        heldout = category == HELDOUT
        scene = sample_scene(
            rng, placement=bench.placement, aspect=bench.width / bench.height, heldout=heldout,
            category=HELDOUT_CATEGORIES[done % len(HELDOUT_CATEGORIES)] if heldout else category,
        )  # fmt: skip
        if scene.text is not None and len(scene.text.string) > LONGEST_TEXT:
            continue
        prompt, facts = caption(scene, rng)
        yield Drawing(prompt=prompt, facts=nothing_else(facts), scene=scene)
        done += 1


def askings(category: str, bench: Asked) -> Iterator[Asking]:
    """The questions of one category, with the true pictures they are about; as reproducible as `drawings`."""
    rng = generator(1, _ASKED.index(category), bench)
    for _ in range(bench.samples):
        question = sample_question(
            rng, category=None if category == HELDOUT else category, heldout=category == HELDOUT,
            placement=bench.placement, height=bench.height, width=bench.width,
        )  # fmt: skip
        yield Asking(pixels=render(question.scene, bench.height, bench.width), question=question)


def _draw(model: Model, category: str, bench: Asked) -> Iterator[Outcome]:
    for i, chunk in enumerate(chunks(drawings(category, bench), bench.batch)):
        seed = sampling_seed(0, _DRAWN.index(category), i, bench)
        prompts = [drawing.prompt for drawing in chunk]
        images = model.generate(prompts, height=bench.height, width=bench.width, seed=seed, **dict(bench.settings))
        for drawing, image in zip(chunk, images, strict=True):
            image = image.convert("RGB")
            pixels = np.asarray(image)
            yield Outcome(
                right=is_right(pixels, drawing.facts), said={"prompt": drawing.prompt}, image=image,
                second=second_opinion(pixels, drawing.facts),
            )  # fmt: skip


def reasonings(category: str, bench: Asked) -> Iterator[Asking]:
    """Questions of two steps; as reproducible as `drawings`."""
    rng, heldout = generator(_REASONING, _STEPS.index(category), bench), category == HELDOUT
    for _ in range(bench.samples):
        question = sample_reasoning(
            rng, category=None if heldout else category, heldout=heldout, placement=bench.placement,
            height=bench.height, width=bench.width,
        )  # fmt: skip
        yield Asking(pixels=render(question.scene, bench.height, bench.width), question=question)


def _asking(model: Model, askings: Iterator[Asking], bench: Asked) -> Iterator[Outcome]:
    for chunk in chunks(askings, bench.batch):
        images = [Image.fromarray(asking.pixels) for asking in chunk]
        answers = model.ask(images, [asking.question.question for asking in chunk])
        for asking, answer, image in zip(chunk, answers, images, strict=True):
            q = asking.question
            said = {"question": q.question, "answer": answer, "right answer": q.answer}
            yield Outcome(right=score(q, answer), said=said, image=image)


def _ask(model: Model, category: str, bench: Asked) -> Iterator[Outcome]:
    yield from _asking(model, askings(category, bench), bench)


def _reason(model: Model, category: str, bench: Asked) -> Iterator[Outcome]:
    yield from _asking(model, reasonings(category, bench), bench)


T2I = Suite(name="t2i", categories=_DRAWN, outcomes=_draw, prepare=rapid_ocr)
VQA = Suite(name="vqa", categories=_ASKED, outcomes=_ask)
VQA_REASONING = Suite(name="vqa.reasoning", categories=_STEPS, outcomes=_reason)
