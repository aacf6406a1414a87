"""Suites of the world benchmark: edits of true pictures (image_edit), and pictures of given objects (subject).

An edit is right only if what was asked happened ("asked") and everything else stayed ("kept"). The second judge looks
at the result alone: it compares no pixels with those before.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from openlance.eval.suite import HELDOUT, Model, Outcome, Suite, chunks, generator, sampling_seed
from openlance.rl.rewards.ocr import rapid_ocr
from toyworld.edits import HELDOUT_KINDS, KINDS, Edit, sample_edit
from toyworld.facts import Count, Thing
from toyworld.judge import is_right, nothing_else
from toyworld.judge_edits import judge_edit
from toyworld.outlines import opencv, second_opinion
from toyworld.render import render
from toyworld.subjects import SUBJECTS, Subject, sample_subject

if TYPE_CHECKING:
    from toyworld.suites.asked import Asked

_EDITED, _GIVEN = (*KINDS, HELDOUT), (*SUBJECTS, HELDOUT)
_EDIT, _SUBJECT = 2, 3  # numbers of the suites: they set the requests
LONGEST_TEXT = 3  # characters to write; a picture may come with four


def edits(category: str, bench: Asked) -> Iterator[Edit]:
    """The edits of one category: always the same for a seed, and the first n the same whatever `samples` is."""
    rng, heldout, done = generator(_EDIT, _EDITED.index(category), bench), category == HELDOUT, 0
    while done < bench.samples:
        edit = sample_edit(
            rng, kind=HELDOUT_KINDS[done % len(HELDOUT_KINDS)] if heldout else category, heldout=heldout,
            placement=bench.placement, aspect=bench.width / bench.height,
        )  # fmt: skip
        if edit.after.text is None or len(edit.after.text.string) <= LONGEST_TEXT:
            yield edit
            done += 1


def subjects(category: str, bench: Asked) -> Iterator[Subject]:
    """The requests with given objects of one category; as reproducible as `edits`."""
    rng, heldout = generator(_SUBJECT, _GIVEN.index(category), bench), category == HELDOUT
    for i in range(bench.samples):
        yield sample_subject(
            rng, n=1 + i % 2 if heldout else SUBJECTS[category], heldout=heldout,
            placement=bench.placement, aspect=bench.width / bench.height,
        )  # fmt: skip


def _edit(model: Model, category: str, bench: Asked) -> Iterator[Outcome]:
    size = bench.height, bench.width
    for i, chunk in enumerate(chunks(edits(category, bench), bench.batch)):
        seed = sampling_seed(_EDIT, _EDITED.index(category), i, bench)
        sources = [edit.pictures(*size)[0] for edit in chunk]
        images = model.edit(
            [Image.fromarray(source) for source in sources], [edit.instruction for edit in chunk],
            seed=seed, **dict(bench.settings),
        )  # fmt: skip
        for edit, source, image in zip(chunk, sources, images, strict=True):
            image = image.convert("RGB").resize(size[::-1])  # it has the size already, but for what no VAE can make
            verdict = judge_edit(edit, source, np.asarray(image))
            no_more = Count(Thing(), len(edit.after.objects))  # of a text every letter would be one
            facts = (*edit.asked, *edit.kept, *(() if edit.after.text else (no_more,)))
            yield Outcome(
                right=verdict.right, said={"instruction": edit.instruction}, image=beside(source, image),
                parts={"asked": verdict.asked, "kept": verdict.kept}, second=second_opinion(np.asarray(image), facts),
            )  # fmt: skip


def _draw_given(model: Model, category: str, bench: Asked) -> Iterator[Outcome]:
    size = bench.height, bench.width
    for i, chunk in enumerate(chunks(subjects(category, bench), bench.batch)):
        seed = sampling_seed(_SUBJECT, _GIVEN.index(category), i, bench)
        given = [[render(scene, *size) for scene in subject.references] for subject in chunk]
        images = model.subject(
            [[Image.fromarray(pixels) for pixels in pictures] for pictures in given], [s.prompt for s in chunk],
            height=bench.height, width=bench.width, seed=seed, **dict(bench.settings),
        )  # fmt: skip
        for subject, pictures, image in zip(chunk, given, images, strict=True):
            pixels, facts = np.asarray(image.convert("RGB")), nothing_else(subject.facts)
            yield Outcome(
                right=is_right(pixels, facts), said={"prompt": subject.prompt}, image=beside(*pictures, image),
                second=second_opinion(pixels, facts),
            )  # fmt: skip


def beside(*pictures: np.ndarray | Image.Image) -> Image.Image:
    """What was given, left, and what came of it, right, for people to look at."""
    return Image.fromarray(np.concatenate([np.asarray(p)[..., :3] for p in pictures], 1))


IMAGE_EDIT = Suite(name="image_edit", categories=_EDITED, outcomes=_edit, prepare=rapid_ocr)
SUBJECT = Suite(name="subject", categories=_GIVEN, outcomes=_draw_given, prepare=opencv)
