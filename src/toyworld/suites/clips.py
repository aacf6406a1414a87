"""Suites of the world benchmark: clips drawn from prompts (t2v) and from a first picture (i2v), edits of true clips
(video_edit), of given objects (subject_video), and questions about true clips (video_vqa).

Rows besides the categories: "object", all things look as said and nothing else is there; "motion", they move as said;
"first_frame", the clip begins with the picture that was given; "asked" and "kept" as for pictures. A clip from a first
picture is right where it begins with it and moves as said; "object" is a row beside that.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from PIL import Image

from openlance.eval.suite import HELDOUT, Outcome, Suite, chunks, generator, sampling_seed
from openlance.media.clip import Clip
from toyworld.clip_edits import CLIP_EDITS, ClipEdit, judge_clip_edit, sample_clip_edit
from toyworld.clip_questions import CLIP_QUESTIONS, ClipQuestion, sample_clip_question, score_clip
from toyworld.clip_subjects import ClipSubject, sample_clip_subject
from toyworld.clips import ClipFact, caption_clip, clip_facts
from toyworld.judge_clips import verdict
from toyworld.judge_edits import psnr
from toyworld.motion import STILL, ClipScene, render_clip, sample_clip
from toyworld.outlines import opencv, second_opinion_of_clip
from toyworld.render import render
from toyworld.subjects import SUBJECTS

if TYPE_CHECKING:
    from toyworld.suites.asked import Asked

FIRST_FRAME_PSNR = 30.0  # decibels from which the given first picture counts as kept
SCENES = {"one": "color", "two": "attribute"}  # categories of clips, and those of the scenes they come from
_DRAWN, _ANIMATED, _ASKED = (*SCENES, HELDOUT), tuple(SCENES), (*CLIP_QUESTIONS, HELDOUT)
_T2V, _I2V, _EDIT, _ASK, _SUBJECT = 10, 11, 12, 13, 18  # numbers of the suites: they set the requests
FILMED = {"t2v": _T2V, "i2v": _I2V}  # those that ask for `filmings`


class ClipModel(Protocol):
    """What is scored; `openlance.load(...)` returns one. Lists in, lists of their length out, in their order."""

    def generate_video(
        self, prompt: list[str], /, *, num_frames: int, height: int, width: int, seed: int, **settings: Any
    ) -> list[Clip]:
        """One clip per prompt."""

    def animate(
        self, image: list[Clip], prompt: list[str], /, *, num_frames: int, seed: int, **settings: Any
    ) -> list[Clip]:
        """One clip per picture and prompt, of the picture's size."""

    def edit(self, source: list[Clip], instruction: list[str], /, *, seed: int, **settings: Any) -> list[Clip]:
        """One clip per clip and instruction, of its size and length."""

    def ask(self, media: list[Clip], question: list[str], /) -> list[str]:
        """One answer per pair."""


@dataclass(frozen=True, kw_only=True)
class Filming:
    """A prompt, what must hold in its clip, and one clip of which all of it is true."""

    prompt: str
    facts: tuple[ClipFact, ...]
    clip: ClipScene


def filmings(category: str, bench: Asked, suite: int = _T2V) -> Iterator[Filming]:
    """The prompts of one category: always the same for a seed, and the first n the same whatever `samples` is."""
    rng, heldout, done = generator(suite, _DRAWN.index(category), bench), category == HELDOUT, 0
    while done < bench.samples:
        kind = list(SCENES.values())[done % len(SCENES)] if heldout else SCENES[category]
        clip = sample_clip(
            rng, placement=bench.placement, category=kind, heldout=heldout, aspect=bench.width / bench.height,
            frames=bench.frames,
        )  # fmt: skip
        if all(m.kind == STILL for m in clip.motions):  # a picture would do
            continue
        # Of a given first picture, half of the prompts speak as of something known, and it shows all there is.
        prompt, facts = caption_clip(clip, rng, "the" if suite == _I2V and rng.random() < 0.5 else None)
        yield Filming(prompt=prompt, facts=clip_facts(clip) if suite == _I2V else facts, clip=clip)
        done += 1


def clip_edits(category: str, bench: Asked) -> Iterator[ClipEdit]:
    """The edits of one category; as reproducible as `filmings`."""
    rng = generator(_EDIT, CLIP_EDITS.index(category), bench)
    for _ in range(bench.samples):
        yield sample_clip_edit(
            rng, kind=category, placement=bench.placement, aspect=bench.width / bench.height, frames=bench.frames
        )


def clip_askings(category: str, bench: Asked) -> Iterator[ClipQuestion]:
    """The questions of one category; as reproducible as `filmings`."""
    rng, heldout = generator(_ASK, _ASKED.index(category), bench), category == HELDOUT
    for _ in range(bench.samples):
        yield sample_clip_question(
            rng, category=None if heldout else category, placement=bench.placement, heldout=heldout,
            aspect=bench.width / bench.height, frames=bench.frames,
        )  # fmt: skip


def judge_filming(
    request: Filming | ClipSubject, pixels: np.ndarray, first: np.ndarray | None = None
) -> tuple[bool, dict[str, bool]]:
    """Judge a clip, uint8 (T, H, W, 3), that was drawn for a request, from a first picture where one was given.

    Returns:
        Whether it is right, and its rows besides the categories.
    """
    found = verdict(pixels, request.facts)
    if first is None:
        return found.objects and found.motion, {"object": found.objects, "motion": found.motion}
    begins = psnr(pixels[0], first) >= FIRST_FRAME_PSNR
    return begins and found.motion, {"first_frame": begins, "motion": found.motion, "object": found.objects}


def _film(model: ClipModel, category: str, bench: Asked) -> Iterator[Outcome]:
    for i, chunk in enumerate(chunks(filmings(category, bench), bench.batch)):
        seed = sampling_seed(_T2V, _DRAWN.index(category), i, bench)
        clips = model.generate_video(
            [request.prompt for request in chunk], num_frames=bench.frames, height=bench.height, width=bench.width,
            seed=seed, **dict(bench.settings),
        )  # fmt: skip
        for request, clip in zip(chunk, clips, strict=True):
            right, parts = judge_filming(request, clip.pixels)
            yield Outcome(right=right, said={"prompt": request.prompt}, image=strip(clip.pixels), parts=parts)


def _animate(model: ClipModel, category: str, bench: Asked) -> Iterator[Outcome]:
    for i, chunk in enumerate(chunks(filmings(category, bench, _I2V), bench.batch)):
        seed = sampling_seed(_I2V, _DRAWN.index(category), i, bench)
        first = [Clip(render_clip(request.clip, bench.height, bench.width)[:1]) for request in chunk]
        prompts = [request.prompt for request in chunk]
        clips = model.animate(first, prompts, num_frames=bench.frames, seed=seed, **dict(bench.settings))
        for request, given, clip in zip(chunk, first, clips, strict=True):
            right, parts = judge_filming(request, clip.pixels, given.pixels[0])
            yield Outcome(right=right, said={"prompt": request.prompt}, image=strip(clip.pixels), parts=parts)


def _edit(model: ClipModel, category: str, bench: Asked) -> Iterator[Outcome]:
    for i, chunk in enumerate(chunks(clip_edits(category, bench), bench.batch)):
        seed = sampling_seed(_EDIT, CLIP_EDITS.index(category), i, bench)
        sources = [edit.clips(bench.height, bench.width)[0] for edit in chunk]
        said = [edit.instruction for edit in chunk]
        clips = model.edit([Clip(pixels) for pixels in sources], said, seed=seed, **dict(bench.settings))
        for edit, source, clip in zip(chunk, sources, clips, strict=True):
            found = judge_clip_edit(edit, source, clip.pixels)
            yield Outcome(
                right=found.right, said={"instruction": edit.instruction}, image=strip(source, clip.pixels),
                parts={"asked": found.asked, "kept": found.kept},
            )  # fmt: skip


def _ask(model: ClipModel, category: str, bench: Asked) -> Iterator[Outcome]:
    for chunk in chunks(clip_askings(category, bench), bench.batch):
        clips = [Clip(render_clip(q.clip, bench.height, bench.width)) for q in chunk]
        answers = model.ask(clips, [q.question for q in chunk])
        for q, answer, clip in zip(chunk, answers, clips, strict=True):
            said = {"question": q.question, "answer": answer, "right answer": q.answer}
            yield Outcome(right=score_clip(q, answer), said=said, image=strip(clip.pixels))


def strip(*clips: np.ndarray) -> Image.Image:
    """The frames of a clip, uint8 (T, H, W, 3), side by side; several clips below each other."""
    return Image.fromarray(np.concatenate([np.concatenate(list(pixels), 1) for pixels in clips], 0))


def clip_subjects(category: str, bench: Asked) -> Iterator[ClipSubject]:
    """The requests with given objects of one category; as reproducible as `filmings`."""
    rng, done = generator(_SUBJECT, list(SUBJECTS).index(category), bench), 0
    while done < bench.samples:
        subject = sample_clip_subject(
            rng, n=SUBJECTS[category], placement=bench.placement, aspect=bench.width / bench.height,
            frames=bench.frames,
        )  # fmt: skip
        if any(m.kind != STILL for m in subject.clip.motions):
            yield subject
            done += 1


def _film_given(model: Any, category: str, bench: Asked) -> Iterator[Outcome]:
    size = bench.height, bench.width
    for i, chunk in enumerate(chunks(clip_subjects(category, bench), bench.batch)):
        seed = sampling_seed(_SUBJECT, list(SUBJECTS).index(category), i, bench)
        given = [[Clip(render(scene, *size)[None]) for scene in subject.references] for subject in chunk]
        clips = model.subject(
            given, [subject.prompt for subject in chunk], num_frames=bench.frames, height=bench.height,
            width=bench.width, seed=seed, **dict(bench.settings),
        )  # fmt: skip
        for subject, pictures, clip in zip(chunk, given, clips, strict=True):
            right, parts = judge_filming(subject, clip.pixels)
            shown = Image.fromarray(np.concatenate([*(p.pixels[0] for p in pictures), *clip.pixels], 1))
            second = second_opinion_of_clip(clip.pixels, subject.facts)
            yield Outcome(right=right, said={"prompt": subject.prompt}, image=shown, parts=parts, second=second)


T2V = Suite(name="t2v", categories=_DRAWN, outcomes=_film)
I2V = Suite(name="i2v", categories=_ANIMATED, outcomes=_animate)
VIDEO_EDIT = Suite(name="video_edit", categories=CLIP_EDITS, outcomes=_edit)
VIDEO_VQA = Suite(name="video_vqa", categories=_ASKED, outcomes=_ask)
SUBJECT_VIDEO = Suite(name="subject_video", categories=tuple(SUBJECTS), outcomes=_film_given, prepare=opencv)
