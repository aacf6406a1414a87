"""Edits of a clip: those of pictures, done to every frame, and changes of a motion.

    edit = sample_clip_edit(np.random.default_rng(0), kind="motion")
    edit.instruction                     # "make the red circle move up"
    before, after = edit.clips(64, 64)   # uint8 (frames, 64, 64, 3) each
    judge_clip_edit(edit, before, answer)

A frame of an answer is judged as a picture is (`judge_edits`), against where things should be by then; motions are
judged over the whole clip.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import numpy as np

from openlance.errors import UserError
from toyworld.analyse import analyse
from toyworld.clips import PLURAL, Moves, motion_words
from toyworld.edit_words import dress
from toyworld.edits import KINDS, WHOLE, Edit, at, edit_scene
from toyworld.facts import Background, Count, Fact, Relation, Thing, Within, holds
from toyworld.judge_clips import follow, judge_seen
from toyworld.judge_edits import EditVerdict, judge_edit
from toyworld.motion import (
    DIRECTIONS,
    RESIZING,
    REVERSED,
    STILL,
    ClipScene,
    Motion,
    clip_is_heldout,
    clip_is_valid,
    draw_motion,
    render_clip,
    sample_clip,
)
from toyworld.questions import clear_names
from toyworld.scene import Object, Scene
from toyworld.words import noun_phrase

MOTION = "motion"
CLIP_EDITS = (*(kind for kind in KINDS if kind != "text"), MOTION)
LAG = 0.06  # how much further than what stands still a moving thing may be from its place, in widths and heights
ENOUGH = 0.8  # share of the frames that must be right
# What of a growing thing an edit may change: another size or shape would not fit where the growth ends.
_OF_GROWING = ("recolour", "refill")
_ABOUT = {"remove": ("attribute", "attribute", "mixed")}
_ATTEMPTS = 3000


@dataclass(frozen=True, kw_only=True)
class ClipEdit:
    """One edit. first: what it does to the first frame, as an edit of a picture; moves: the motions of everything in
    the clip after, which are asked for where `kind` is "motion" and else belong to what is kept."""

    kind: str
    before: ClipScene
    after: ClipScene
    instruction: str
    first: Edit
    asked: tuple[Moves, ...]
    kept: tuple[Moves, ...]

    def clips(self, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
        """The clips before and after, uint8 (frames, height, width, 3)."""
        return render_clip(self.before, height, width), render_clip(self.after, height, width)

    def at(self, frame: int) -> Edit:
        """What the edit does to one frame: its facts with everything where it is by then."""
        before, after = self.before.at(frame), self.after.at(frame)
        asked = tuple(_later(fact, self.after, after) for fact in self.first.asked)
        kept = tuple(_later(fact, self.after, after) for fact in self.first.kept)
        return replace(self.first, before=before, after=after, asked=asked, kept=kept)


def _later(fact: Fact, clip: ClipScene, scene: Scene) -> Fact:
    """A fact of the first frame of a clip in a later one, `scene`. Growing things have no size."""
    if isinstance(fact, Count):
        return replace(fact, thing=_unsized(fact.thing, clip))
    if isinstance(fact, Relation):
        return replace(fact, a=_unsized(fact.a, clip), b=_unsized(fact.b, clip))
    if not isinstance(fact, Within):
        return fact
    x0, y0, x1, y1 = fact.box
    thing = _unsized(fact.thing, clip)
    for o, now, motion in zip(clip.scene.objects, scene.objects, clip.motions, strict=True):
        if fact.thing.means(o) and x0 <= o.x <= x1 and y0 <= o.y <= y1:
            dx, dy, more = now.x - o.x, now.y - o.y, LAG if motion.kind in DIRECTIONS else 0.0
            return Within(thing, (x0 + dx - more, y0 + dy - more, x1 + dx + more, y1 + dy + more))
    return replace(fact, thing=thing)


def _unsized(thing: Thing, clip: ClipScene) -> Thing:
    pairs = zip(clip.scene.objects, clip.motions, strict=True)
    grows = any(thing.means(o) and m.kind in RESIZING for o, m in pairs)
    return replace(thing, size=None) if grows else thing


def sample_clip_edit(
    rng: np.random.Generator,
    *,
    kind: str | None = None,
    placement: str | float = "free",
    aspect: float = 1.0,
    frames: int = 9,
) -> ClipEdit:
    """Draw an edit, one of CLIP_EDITS, and the clip it starts from; nothing in either is held out."""
    kind = kind or CLIP_EDITS[int(rng.integers(len(CLIP_EDITS)))]
    if kind not in CLIP_EDITS:
        raise UserError(f"no edit of clips of kind {kind!r}: use one of {', '.join(CLIP_EDITS)}")
    about = _ABOUT.get(kind, (None,))
    for _ in range(_ATTEMPTS):
        category = about[int(rng.integers(len(about)))]
        clip = sample_clip(rng, placement=placement, category=category, aspect=aspect, frames=frames)
        for _ in range(6):
            edit = edit_clip(clip, rng, kind)
            if edit is not None:
                return edit
    raise AssertionError(f"no edit of kind {kind} found in {_ATTEMPTS} clips")


def edit_clip(clip: ClipScene, rng: np.random.Generator, kind: str) -> ClipEdit | None:
    """Draw an edit of a kind, one of CLIP_EDITS, of a clip; None where this draw has none."""
    edit = _change_motion(clip, rng) if kind == MOTION else _edit_frames(clip, rng, kind)
    good = edit is not None and clip_is_valid(edit.after) and not clip_is_heldout(edit.after)
    return edit if good else None


def _edit_frames(clip: ClipScene, rng: np.random.Generator, kind: str) -> ClipEdit | None:
    """An edit of the first frame, carried through the clip; None where it would not stay true."""
    first = edit_scene(clip.scene, rng, kind)
    if first is None:
        return None
    motions = _motions_after(clip, first)
    after = ClipScene(scene=first.after, motions=motions, frames=clip.frames)
    if len(first.after.objects) == len(clip.scene.objects) and kind not in WHOLE:
        pairs = zip(clip.scene.objects, first.after.objects, motions, strict=True)
        touched = [m.kind for o, new, m in pairs if o != new]
        # What moves of itself has no place that it could be moved to.
        if any(m in RESIZING and kind not in _OF_GROWING or m != STILL and kind == "move" for m in touched):
            return None
    lasting = [fact for fact in first.asked if isinstance(fact, Relation | Count)]
    if not all(holds(scene, _later(fact, after, scene)) for scene in after.scenes() for fact in lasting):
        return None
    words = first.instruction.replace("picture", "video")
    if re.search(r"shrink|enlarge", words, re.IGNORECASE):  # of a clip this would ask for a motion
        return None
    return ClipEdit(
        kind=kind, before=clip, after=after, instruction=words, first=first, asked=(), kept=_moves(after)
    )  # fmt: skip


def _motions_after(clip: ClipScene, edit: Edit) -> tuple[Motion, ...]:
    """A motion for every object after an edit: what is new stands still, what is changed or left goes on."""
    before, after = clip.scene.objects, edit.after.objects
    if len(after) >= len(before):
        return (*clip.motions, *[Motion()] * (len(after) - len(before)))
    return tuple(m for o, m in zip(before, clip.motions, strict=True) if any(o is other for other in after))


def _moves(clip: ClipScene, leave_out: Object | None = None) -> tuple[Moves, ...]:
    """How everything moves, but for what is to change."""
    found: dict[tuple[Thing, str], int] = {}
    for o, m in zip(clip.scene.objects, clip.motions, strict=True):
        if o is not leave_out:
            key = Thing(o.shape, o.color, o.fill), m.kind
            found[key] = found.get(key, 0) + 1
    return tuple(Moves(thing, motion, n) for (thing, motion), n in found.items())


def _change_motion(clip: ClipScene, rng: np.random.Generator) -> ClipEdit | None:
    """Another motion for one thing, which begins as it did; None where the new one would not fit."""
    named = clear_names(clip.scene)
    if not named:
        return None
    o, thing = named[int(rng.integers(len(named)))]
    i = clip.scene.objects.index(o)
    old = clip.motions[i].kind
    new = Motion() if old != STILL and rng.random() < 0.25 else draw_motion(rng)
    backwards = REVERSED.get(old) == new.kind
    resized = RESIZING if new.kind in RESIZING or old in RESIZING else ()
    if new.kind == old or (resized and (o.size != "medium" or o.fill != "solid")):
        return None
    if new.kind in RESIZING and not _has_room(o, new.kind):
        return None
    motions = tuple(new if k == i else m for k, m in enumerate(clip.motions))
    after = replace(clip, motions=motions)
    name = noun_phrase(replace(thing, size=None) if resized else thing, article="the", rng=rng)
    first = Edit(
        kind=MOTION, before=clip.scene, after=clip.scene, instruction="", asked=(Count(_look(o)),),
        kept=_standing(clip, o),
    )  # fmt: skip
    return ClipEdit(
        kind=MOTION, before=clip, after=after, instruction=dress(_say(name, new.kind, backwards, rng), rng),
        first=first, asked=(Moves(_look(o), new.kind),), kept=_moves(after, leave_out=o),
    )  # fmt: skip


def _look(o: Object) -> Thing:
    return Thing(o.shape, o.color, o.fill)


def _standing(clip: ClipScene, changed: Object) -> tuple[Fact, ...]:
    """That everything else is where it is, and the background what it is."""
    return (*(at(o) for o in clip.scene.objects if o is not changed), Background(clip.scene.background))


def _has_room(o: Object, kind: str) -> bool:
    """Whether a thing can still grow or shrink to a size that the world has."""
    return o.r <= 0.175 if kind == "growing" else o.r >= 0.155


def _say(name: str, motion: str, backwards: bool, rng: np.random.Generator) -> str:
    if motion == STILL and rng.random() < 0.5:
        return f"stop {name}"
    if backwards and rng.random() < 0.4:
        return f"reverse the motion of {name}" if rng.random() < 0.5 else f"make {name} do the opposite"
    verb = "make" if rng.random() < 0.7 else "let"
    return f"{verb} {name} {motion_words(motion, PLURAL, rng)}"


def judge_clip_edit(edit: ClipEdit, before: np.ndarray, answer: np.ndarray) -> EditVerdict:
    """Judge an answer, uint8 (T, H, W, 3), to an edit of the clip `before` of the same shape.

    Raises ValueError where the shapes differ.
    """
    if before.shape != answer.shape:
        raise UserError(f"the answer has the shape {answer.shape} and the clip before {before.shape}: resize one")
    frames = [analyse(frame) for frame in answer]
    verdicts = [
        judge_edit(edit.at(t), before[t], answer[t], seen) for t, seen in enumerate(frames)
    ]  # fmt: skip
    asked, kept = (np.mean([getattr(v, name) for v in verdicts]) >= ENOUGH for name in ("asked", "kept"))
    seen = follow(frames, answer.shape[2] / answer.shape[1])
    moves = judge_seen(seen, (*edit.asked, *edit.kept))
    return EditVerdict(
        asked=bool(asked) and all(moves[f] for f in edit.asked), kept=bool(kept) and all(moves[f] for f in edit.kept)
    )
