"""Batches of clips of the procedural world, for every task that makes, changes or reads one. What `toyworld.batches` is
for pictures: drawn anew from (seed, step), so that a resumed run sees exactly what an uninterrupted one would."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from openlance.media.clip import Clip
from openlance.media.region import covered
from openlance.sequence import tasks
from openlance.sequence.segment import Region
from openlance.sequence.tasks import Views
from toyworld.batches import NO_SIZE, Made, WorldBatch, weighed
from toyworld.clip_edits import CLIP_EDITS, sample_clip_edit
from toyworld.clip_questions import CLIP_QUESTIONS, sample_clip_question
from toyworld.clip_subjects import sample_clip_subject
from toyworld.clips import caption_clip, clip_facts
from toyworld.edits import WHOLE
from toyworld.labels import dense_labels
from toyworld.motion import MOVING, ClipScene, render_clip, sample_clip
from toyworld.regions import around, beyond, changed, ends, in_part
from toyworld.render import render
from toyworld.scene import Scene
from toyworld.suites.clips import Filming

PART_EDITS = {kind: 0.0 if kind in WHOLE else 1.0 for kind in CLIP_EDITS}  # those that leave a part as it is
VIT_FRAMES = 2  # frames that one token of the vision tower sees (released code)


@dataclass(frozen=True, kw_only=True)
class ClipMixture:
    """What a batch holds. Counts are samples; weights need not add up to one.

    spread: placement, from canonical (0) to free (1), of what the words leave open.
    """

    drawn: int = 8  # clips from words
    animated: int = 4  # ... from a first picture
    bridged: int = 1  # ... from a first and a last picture
    edited: int = 4  # ... from another clip and an instruction
    subjects: int = 2  # ... from pictures of what is in it
    asked: int = 8  # questions about clips
    parts: int = 0  # edits of a region, all else given
    extended: int = 0  # clips of which the begin or the end is not there yet
    spread: tuple[float, float] = (0.0, 1.0)
    frames: dict[int, float] = field(default_factory=lambda: {9: 1.0})
    sizes: dict[tuple[int, int], float] = field(default_factory=lambda: {(64, 64): 1.0})
    scenes: dict[str, float] = field(default_factory=MOVING.copy)  # of clips from words and from pictures
    edits: dict[str, float] = field(default_factory=lambda: dict.fromkeys(CLIP_EDITS, 1.0) | {"motion": 2.0})
    part_edits: dict[str, float] = field(default_factory=lambda: dict(PART_EDITS))
    questions: dict[str, float] = field(
        default_factory=lambda: dict.fromkeys(CLIP_QUESTIONS, 1.0) | {"direction": 3.0, "caption": 3.0}
    )


@dataclass(frozen=True)
class _Draw:
    """Where one sample takes its numbers from, its (frames, height, width), and dense labels of what the vision tower
    sees of it, by the key of its clip."""

    rng: np.random.Generator
    mixture: ClipMixture
    size: tuple[int, int, int]
    labels: dict[bytes, np.ndarray]

    def settings(self, spread: tuple[float, float] = (0.0, 1.0)) -> dict:
        frames, height, width = self.size
        return {"placement": float(self.rng.uniform(*spread)), "aspect": width / height, "frames": frames}

    def moving(self, spread: tuple[float, float] = (0.0, 1.0)) -> ClipScene:
        return sample_clip(self.rng, category=weighed(self.rng, self.mixture.scenes), **self.settings(spread))

    def clip(self, scene: ClipScene) -> Clip:
        return Clip(render_clip(scene, *self.size[1:]))

    def picture(self, scene: Scene) -> Clip:
        return Clip(render(scene, *self.size[1:])[None])


def _asked(d: _Draw) -> Made:
    frames, height, width = d.size
    q = sample_clip_question(
        d.rng, category=weighed(d.rng, d.mixture.questions), placement=float(d.rng.random()), aspect=width / height,
        frames=frames,
    )  # fmt: skip
    clip = d.clip(q.clip)
    d.labels[clip.key] = clip_labels(q.clip, height, width)
    return tasks.understand(q.question, [Views(clip, clip)], NO_SIZE, q.answer), None


def _drawn(d: _Draw) -> Made:
    clip = d.moving(d.mixture.spread)
    text, facts = caption_clip(clip, d.rng)
    return tasks.text_to_visual(text, [], d.size, d.clip(clip)), Filming(prompt=text, facts=facts, clip=clip)


def _known(clip: ClipScene, rng: np.random.Generator) -> str:
    """A caption of a clip whose first picture is given."""
    return caption_clip(clip, rng, "the" if rng.random() < 0.6 else None)[0]


def _animated(d: _Draw) -> Made:
    clip = d.moving()
    text, frames = _known(clip, d.rng), d.clip(clip)
    first = Clip(frames.pixels[:1])
    truth = Filming(prompt=text, facts=clip_facts(clip), clip=clip)  # what is there is seen, so all of it counts
    return tasks.image_to_video(text, [Views(first, first)], d.size, frames), truth


def _bridged(d: _Draw) -> Made:
    clip = d.moving()
    text, frames = _known(clip, d.rng), d.clip(clip)
    ends = Clip(frames.pixels[:1]), Clip(frames.pixels[-1:])
    truth = Filming(prompt=text, facts=clip_facts(clip), clip=clip)
    return tasks.first_and_last(text, [Views(end, end) for end in ends], d.size, frames), truth


def _edited(d: _Draw) -> Made:
    edit = sample_clip_edit(d.rng, kind=weighed(d.rng, d.mixture.edits), **d.settings())
    before, after = (Clip(pixels) for pixels in edit.clips(*d.size[1:]))
    d.labels[before.key] = clip_labels(edit.before, *d.size[1:])
    return tasks.edit(edit.instruction, [Views(before, before)], d.size, after), edit


def _subjects(d: _Draw) -> Made:
    subject = sample_clip_subject(d.rng, n=1 + int(d.rng.random() < 0.4), **d.settings(d.mixture.spread))
    given = [d.picture(scene) for scene in subject.references]
    views = [Views(picture, picture) for picture in given]
    labelled = (dense_labels(scene, *d.size[1:]) for scene in subject.references)
    d.labels.update(zip((picture.key for picture in given), labelled, strict=True))
    clip = d.clip(subject.clip)
    return tasks.subject_driven(subject.prompt, views, d.size, clip), subject


def _parts(d: _Draw) -> Made:
    inside = None
    while inside is None:
        edit = sample_clip_edit(d.rng, kind=weighed(d.rng, d.mixture.part_edits), **d.settings())
        before, after = (Clip(pixels) for pixels in edit.clips(*d.size[1:]))
        inside = in_part(d.rng, partial(around, d.rng, changed(before.pixels, after.pixels)), 4)
    d.labels[before.key] = clip_labels(edit.before, *d.size[1:])
    sample = tasks.edit_part(edit.instruction, [Views(before, before)], d.size, after)
    return tasks.within(sample, Region(inside)), edit


def _extended(d: _Draw) -> Made:
    clip = d.moving()
    text, whole = _known(clip, d.rng), d.clip(clip)
    inside = in_part(d.rng, partial(ends if d.rng.random() < 0.85 else beyond, d.rng, d.size))
    assert inside is not None, "a clip has ends"
    known = Clip(covered(whole.pixels, inside))
    truth = Filming(prompt=text, facts=clip_facts(clip), clip=clip)
    return tasks.within(tasks.fill_part(text, [Views(known, known)], d.size, whole), Region(inside)), truth


_MAKERS: dict[str, Callable[[_Draw], Made]] = {
    "drawn": _drawn, "animated": _animated, "bridged": _bridged, "edited": _edited, "subjects": _subjects,
    "asked": _asked, "parts": _parts, "extended": _extended,
}  # fmt: skip


def clip_batch(mixture: ClipMixture, seed: int, step: int) -> WorldBatch:
    """The batch of one step: a pure function of its arguments."""
    rng = np.random.default_rng((seed, step, 1))  # apart from the pictures of the same seed and step
    made, labels = list[Made](), dict[bytes, np.ndarray]()
    for name, make in _MAKERS.items():
        for _ in range(getattr(mixture, name)):
            draw = _Draw(rng, mixture, (weighed(rng, mixture.frames), *weighed(rng, mixture.sizes)), labels)
            made.append(make(draw))
    return WorldBatch([segments for segments, _ in made], labels, [truth for _, truth in made])


def clip_labels(clip: ClipScene, height: int, width: int) -> np.ndarray:
    """Dense labels of every VIT_FRAMES-th frame, one below the other: the order of the cells of the vision tower."""
    scenes = [clip.at(frame) for frame in range(0, clip.frames, VIT_FRAMES)]
    return np.concatenate([dense_labels(scene, height, width) for scene in scenes], axis=1)
