"""Suites of the world benchmark about regions: edits of true pictures in a given region (image_inpaint), what is beyond
the borders of a picture (outpaint), and what comes before or after a clip (extend).

An edit in its region is judged as without one, and asked in the same way of every checkpoint, whether it has learned
regions or not. The other two are asked of those that have: the whole that comes of it has to show what the prompt says.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from openlance.eval.suite import Outcome, Suite, chunks, generator, sampling_seed
from openlance.media.clip import Clip
from openlance.rl.rewards.ocr import rapid_ocr
from openlance.sequence.tasks import fill_part, the_task
from toyworld.batches import PART_EDITS
from toyworld.clips import caption_clip, clip_facts
from toyworld.edits import Edit, sample_edit
from toyworld.facts import Count, Thing
from toyworld.judge import is_right, nothing_else
from toyworld.judge_edits import judge_edit
from toyworld.motion import STILL, render_clip, sample_clip
from toyworld.outlines import opencv, second_opinion, second_opinion_of_clip
from toyworld.regions import CELL, around, changed, in_part
from toyworld.render import render
from toyworld.scene import sample_scene
from toyworld.suites.clips import SCENES, Filming, judge_filming, strip
from toyworld.suites.edits import LONGEST_TEXT, beside
from toyworld.suites.images import Drawing
from toyworld.words import caption

if TYPE_CHECKING:
    from toyworld.suites.asked import Asked

_INPAINT, _OUTPAINT, _EXTEND = 15, 16, 17  # numbers of the suites: they set the requests
KINDS = tuple(kind for kind, weight in PART_EDITS.items() if weight)
SIDES = ("left", "top", "right", "bottom")
ENDS = ("before", "after")


def inpaintings(category: str, bench: Asked) -> Iterator[tuple[Edit, np.ndarray]]:
    """The edits of one kind, each with its region, bool (H, W): always the same for a seed, and the first n the same
    whatever `samples` is."""
    rng, done = generator(_INPAINT, KINDS.index(category), bench), 0
    while done < bench.samples:
        edit = sample_edit(rng, kind=category, placement=bench.placement, aspect=bench.width / bench.height)
        before, after = edit.pictures(bench.height, bench.width)
        cells = changed(before[None], after[None])
        inside = in_part(rng, lambda cells=cells: around(rng, cells), 4)  # type: ignore[misc]
        if inside is not None and (edit.after.text is None or len(edit.after.text.string) <= LONGEST_TEXT):
            yield edit, inside[0]
            done += 1


def outpaintings(category: str, bench: Asked) -> Iterator[Drawing]:
    """The prompts of one side; as reproducible as `inpaintings`."""
    rng = generator(_OUTPAINT, SIDES.index(category), bench)
    for _ in range(bench.samples):
        scene = sample_scene(
            rng, placement=bench.placement, category=("position", "attribute")[int(rng.integers(2))],
            aspect=bench.width / bench.height,
        )  # fmt: skip
        prompt, facts = caption(scene, rng)
        yield Drawing(prompt=prompt, facts=nothing_else(facts), scene=scene)


def extensions(category: str, bench: Asked) -> Iterator[Filming]:
    """The prompts of clips that go on, before or after; as reproducible as `inpaintings`."""
    rng, done = generator(_EXTEND, ENDS.index(category), bench), 0
    while done < bench.samples:
        clip = sample_clip(
            rng, placement=bench.placement, category=list(SCENES.values())[done % len(SCENES)],
            aspect=bench.width / bench.height, frames=bench.frames,
        )  # fmt: skip
        if any(m.kind != STILL for m in clip.motions):
            yield Filming(prompt=caption_clip(clip, rng)[0], facts=clip_facts(clip), clip=clip)
            done += 1


def _inpaint(model: Any, category: str, bench: Asked) -> Iterator[Outcome]:
    size = bench.height, bench.width
    for i, chunk in enumerate(chunks(inpaintings(category, bench), bench.batch)):
        seed = sampling_seed(_INPAINT, KINDS.index(category), i, bench)
        sources = [edit.pictures(*size)[0] for edit, _ in chunk]
        images = model.edit(
            [Image.fromarray(source) for source in sources], [edit.instruction for edit, _ in chunk],
            mask=[inside for _, inside in chunk], seed=seed, **dict(bench.settings),
        )  # fmt: skip
        for (edit, _), source, image in zip(chunk, sources, images, strict=True):
            made = np.asarray(image.convert("RGB"))
            verdict = judge_edit(edit, source, made)
            facts = (*edit.asked, *edit.kept, *(() if edit.after.text else (Count(Thing(), len(edit.after.objects)),)))
            yield Outcome(
                right=verdict.right, said={"instruction": edit.instruction}, image=beside(source, image),
                parts={"asked": verdict.asked, "kept": verdict.kept}, second=second_opinion(made, facts),
            )  # fmt: skip


def _outpaint(model: Any, category: str, bench: Asked) -> Iterator[Outcome]:
    height, width = bench.height, bench.width
    across = category in ("left", "right")
    room = (width if across else height) // 2 // CELL * CELL
    places: dict[str, tuple[slice, ...]] = {
        "left": np.s_[:, room:], "right": np.s_[:, : width - room], "top": np.s_[room:, :],
        "bottom": np.s_[: height - room, :],
    }  # fmt: skip
    for i, chunk in enumerate(chunks(outpaintings(category, bench), bench.batch)):
        seed = sampling_seed(_OUTPAINT, SIDES.index(category), i, bench)
        given = [render(drawing.scene, height, width)[places[category]] for drawing in chunk]
        how: dict[str, Any] = {category: room, "seed": seed} | dict(bench.settings)
        images = model.outpaint([Image.fromarray(one) for one in given], [drawing.prompt for drawing in chunk], **how)
        for drawing, image in zip(chunk, images, strict=True):
            pixels = np.asarray(image.convert("RGB"))
            yield Outcome(
                right=is_right(pixels, drawing.facts), said={"prompt": drawing.prompt}, image=image,
                second=second_opinion(pixels, drawing.facts),
            )  # fmt: skip


def _extend(model: Any, category: str, bench: Asked) -> Iterator[Outcome]:
    room = (bench.frames - 1) // 8 * 4 or bench.frames // 2
    kept = slice(room, None) if category == "before" else slice(bench.frames - room)
    for i, chunk in enumerate(chunks(extensions(category, bench), bench.batch)):
        seed = sampling_seed(_EXTEND, ENDS.index(category), i, bench)
        given = [Clip(render_clip(request.clip, bench.height, bench.width)[kept]) for request in chunk]
        how: dict[str, Any] = {category: room, "seed": seed} | dict(bench.settings)
        clips = model.extend(given, [request.prompt for request in chunk], **how)
        for request, clip in zip(chunk, clips, strict=True):
            right, parts = judge_filming(request, clip.pixels)
            second = second_opinion_of_clip(clip.pixels, request.facts)
            yield Outcome(
                right=right, said={"prompt": request.prompt}, image=strip(clip.pixels), parts=parts, second=second
            )


IMAGE_INPAINT = Suite(name="image_inpaint", categories=KINDS, outcomes=_inpaint, prepare=rapid_ocr)
OUTPAINT = Suite(
    name="outpaint", categories=SIDES, outcomes=_outpaint, prepare=opencv, needs=the_task(fill_part, "image").name
)
EXTEND = Suite(
    name="extend", categories=ENDS, outcomes=_extend, prepare=opencv, needs=the_task(fill_part, "video").name
)
